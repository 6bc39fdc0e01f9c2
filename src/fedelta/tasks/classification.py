"""Classification of a text, or of a pair of texts, into a fixed list of labels."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from fedelta.data.rows import Row, kind_of, label_in, labels_from, require_rows, text_of, unfit_label, value_of
from fedelta.tasks.metrics import Metric
from fedelta.tasks.task import Batch, Decisions, Example, Task, model_inputs, pad_examples, tokenized


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """Gives each text a label, by a model with a classification head.

    Args:
        labels: all labels in the order of the head's outputs. Left empty, `settled` reads them from the training rows.
        text: the field with the text.
        text_pair: the field with the second text of a pair (inference, paraphrase), if any.
        label: the field with the label: one of `labels`, or a position in them where all of `labels` are names.
    """

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    peft_task_type: ClassVar[str | None] = "SEQ_CLS"
    sample: ClassVar[tuple[Row, ...]] = (
        {"text": "it works as it should", "label": "good"},
        {"text": "it broke on the first day, and nobody answers", "label": "bad"},
        {"text": "a delight", "label": "good"},
        {"text": "neither here nor there", "label": "fair"},
    )

    labels: tuple[Hashable, ...] = ()
    text: str = "text"
    text_pair: str | None = None
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

    def settled(self, rows: Sequence[Row]) -> Classification:
        """Returns this task with its labels, read from the training rows if they were left empty."""
        return self if self.labels else replace(self, labels=labels_from(rows, self.label))

    def text_fields(self) -> tuple[str, ...]:
        """Returns the field of the text, or both fields of a pair."""
        return (self.text, self.text_pair) if self.text_pair else (self.text,)

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

    def encode(self, rows: Sequence[Row], tokenizer: Any) -> list[Example]:
        """Returns one example per row: the tokenizer's lists and `label`, a position in `labels`."""
        require_rows(rows)
        labels = [self._index(row, i) for i, row in enumerate(rows)]
        texts = [text_of(row, i, self.text) for i, row in enumerate(rows)]
        pairs = [text_of(row, i, self.text_pair) for i, row in enumerate(rows)] if self.text_pair else None
        encoded = tokenized(tokenizer, texts, pairs, self.max_length)
        self._refuse_empty(encoded)
        return [{**example, "label": label} for example, label in zip(encoded, labels, strict=True)]

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> Batch:
        """Returns `labels` (n,) and the inputs (n, length)."""
        return pad_examples(examples, pad_token_id, self.pad_to_multiple)

    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        """Returns one decision per example among the labels."""
        return Decisions(model(**model_inputs(batch)).logits, batch["labels"])

    def label_of(self, row: Row) -> Hashable:
        """Returns the label as `labels` spells it, or as the row does where the labels are not known yet."""
        return self.labels[self._index(row, 0)] if self.labels else label_in(row, 0, self.label)

    def _known_labels(self) -> tuple[Hashable, ...]:
        if not self.labels:
            raise ValueError("the labels are not known yet: give `labels`, or use task.settled(training_rows)")
        return self.labels

    def _index(self, row: Row, index: int) -> int:
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

    def _refuse_empty(self, examples: Sequence[Example]) -> None:
        for i, example in enumerate(examples):
            if not example["input_ids"]:
                raise ValueError(f"row {i}: its field {self.text!r} has no tokens: leave the row out")
