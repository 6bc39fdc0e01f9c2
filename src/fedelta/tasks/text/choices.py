"""The part that all tasks of multiple choice share: the fields of a row, and batches of choices."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch

from fedelta.data.rows import Row, require_rows, text_of, value_of
from fedelta.tasks.task import Batch, Example, Task, pad_examples

NO_SCORE = float("-inf")
"""The score of a choice that an example does not have."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Choices(Task):
    """Reads a context, its endings and the right one from a row, and makes batches of n examples x k choices x length.

    Rows may differ in their number of choices: `choice_mask` (n, k) is False where an example has none.
    """

    context: str = "context"
    choices: str | tuple[str, ...] = "choices"
    label: str = "label"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.choices, str):
            object.__setattr__(self, "choices", tuple(self.choices))

    def text_fields(self) -> tuple[str, ...]:
        """Returns the context's field, and the field or fields with the endings."""
        return (self.context, *((self.choices,) if isinstance(self.choices, str) else self.choices))

    def label_field(self) -> str | None:
        """Returns the field with the right one."""
        return self.label

    @abstractmethod
    def encode_choices(self, contexts: list[str], endings: list[list[str]], tokenizer: Any) -> list[list[Example]]:
        """Returns each row's choices, encoded one by one."""

    def encode(self, rows: Sequence[Row], tokenizer: Any) -> list[Example]:
        """Returns one example per row: lists of k sequences, and `label`, the right one's position."""
        require_rows(rows)
        endings = [self.choices_of(row, i) for i, row in enumerate(rows)]
        labels = [self._right_choice(row, i, len(endings[i])) for i, row in enumerate(rows)]
        contexts = [text_of(row, i, self.context) for i, row in enumerate(rows)]
        encoded = self.encode_choices(contexts, endings, tokenizer)
        return [_stacked(found) | {"label": label} for found, label in zip(encoded, labels, strict=True)]

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> Batch:
        """Returns `labels` (n,), `choice_mask` (n, k) and the sequences (n, k, length).

        A missing choice repeats its row's first one: a sequence that is all padding has no defined attention.
        """
        widest = max((len(example["input_ids"]) for example in examples), default=0)
        flat = [_choice(example, i) for example in examples for i in range(widest)]
        padded = pad_examples(flat, pad_token_id, self.pad_to_multiple)
        batch = {name: values.reshape(len(examples), widest, -1) for name, values in padded.items()}
        batch["labels"] = torch.tensor([example["label"] for example in examples])
        counts = torch.tensor([len(example["input_ids"]) for example in examples])
        batch["choice_mask"] = torch.arange(widest) < counts[:, None]
        return batch

    def length(self, example: Example) -> int:
        """Returns the number of tokens of the longest choice."""
        return max(map(len, example["input_ids"]))

    def choices_of(self, row: Row, index: int = 0) -> list[str]:
        """Returns the row's endings, from one field with a list or from several fields with a text each."""
        if not isinstance(self.choices, str):
            return [text_of(row, index, field) for field in self.choices]
        found = value_of(row, index, self.choices)
        if isinstance(found, str) or len(found) < 2 or not all(isinstance(choice, str) for choice in found):
            raise ValueError(f"row {index}: field {self.choices!r} holds {found!r}, but a list of two or more texts is needed")
        return list(found)

    def label_of(self, row: Row) -> Hashable:
        """Returns the position of the right choice."""
        return self._right_choice(row, 0, len(self.choices_of(row)))

    def _right_choice(self, row: Row, index: int, count: int) -> int:
        """Returns the position that a label names: by a number from 0, the same as text, or a letter from A."""
        value = value_of(row, index, self.label)
        text = str(value).strip()
        if len(text) == 1 and text.isascii() and text.isalpha():
            position = ord(text.upper()) - ord("A")
        else:
            position = int(text) if text.isascii() and text.isdigit() else -1
        if not 0 <= position < count:
            raise ValueError(
                f"row {index}: {value!r} in field {self.label!r} names none of the {count} choices: "
                f"give a position from 0 to {count - 1}, or a letter from A"
            )
        return position


def _stacked(choices: Sequence[Example]) -> dict[str, Any]:
    return {name: [choice[name] for choice in choices] for name in choices[0]}


def _choice(example: Example, position: int) -> Example:
    existing = position if position < len(example["input_ids"]) else 0
    return {name: values[existing] for name, values in example.items() if name != "label"}


def regrouped(flat: Sequence[T], endings: Sequence[Sequence[str]]) -> list[list[T]]:
    """Returns items that belong to the endings in order, as one list per row."""
    items = iter(flat)
    return [list(islice(items, len(found))) for found in endings]
