"""The part that all tasks with a list of labels share: what is one, where it stands in a row, and its position in the head."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from fedelta.data.rows import Row, kind_of, label_in, labels_from, unfit_label, value_of
from fedelta.tasks.metrics import Metric
from fedelta.tasks.task.contract import Task

L = TypeVar("L", bound="Labelled")


@dataclass(frozen=True, kw_only=True)
class Labelled(Task):
    """Gives each row one of a fixed list of labels, by a model with a classification head.

    Args:
        labels: all labels in the order of the head's outputs. Left empty, `settled` reads them from the training rows.
        label: the field with the label: one of `labels`, or a position in them where all of `labels` are names.
    """

    labels: tuple[Hashable, ...] = ()
    label: str = "label"
    metrics: tuple[str | Metric, ...] = ("accuracy", "macro_f1", "loss")

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.labels, str | Mapping):
            raise ValueError(f"labels must be a list of labels, got {self.labels!r}")
        object.__setattr__(self, "labels", tuple(self.labels))
        for label in self.labels:
            if problem := unfit_label(label):
                raise ValueError(f"labels holds {label!r}, {problem}")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels occur twice in {self.labels!r}: give each label once")

    def settled(self: L, rows: Sequence[Row]) -> L:
        """Returns this task with its labels, read from the training rows if they were left empty."""
        return self if self.labels else replace(self, labels=labels_from(rows, self.label))

    def label_field(self) -> str | None:
        """Returns the field with the label."""
        return self.label

    def model_kwargs(self) -> dict[str, Any]:
        """Returns the number of outputs, and their names for the model's config."""
        names = [str(label) for label in self._known_labels()]
        return {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
        }

    def label_of(self, row: Row) -> Hashable:
        """Returns the label as `labels` spells it, or as the row does where the labels are not known yet."""
        return self.labels[self.position_of(row, 0)] if self.labels else label_in(row, 0, self.label)

    def position_of(self, row: Row, index: int) -> int:
        """Returns the position in `labels` of the label of a row, the one at `index`.

        Raises:
            ValueError: the labels are not known yet, or the row has none of them.
        """
        labels, value = self._known_labels(), value_of(row, index, self.label)
        if isinstance(value, Hashable) and value in labels:
            found = labels.index(value)
            if kind_of(labels[found]) == kind_of(value):  # true and 1.0 equal 1, but are no other way to write it
                return found
        named = all(isinstance(label, str) for label in labels)
        if named and isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(labels):
            return value
        known = ", ".join(map(repr, labels[:12])) + (", ..." if len(labels) > 12 else "")
        raise ValueError(
            f"row {index}: {value!r} in field {self.label!r} is not one of the {len(labels)} labels ({known}): "
            "add it to `labels` or leave the row out"
        )

    def _known_labels(self) -> tuple[Hashable, ...]:
        if not self.labels:
            raise ValueError("the labels are not known yet: give `labels`, or use task.settled(training_rows)")
        return self.labels
