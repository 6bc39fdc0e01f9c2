"""Classification of a text, or of a pair of texts, into a fixed list of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from fedelta.data.rows import Row, require_rows, text_of
from fedelta.tasks.task import Batch, Decisions, Example, Labelled, model_inputs, pad_examples, tokenized


@dataclass(frozen=True, kw_only=True)
class Classification(Labelled):
    """Gives each text a label, by a model with a classification head.

    Args:
        text: the field with the text.
        text_pair: the field with the second text of a pair (inference, paraphrase), if any.
    """

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    peft_task_type: ClassVar[str | None] = "SEQ_CLS"
    sample: ClassVar[tuple[Row, ...]] = (
        {"text": "it works as it should", "label": "good"},
        {"text": "it broke on the first day, and nobody answers", "label": "bad"},
        {"text": "a delight", "label": "good"},
        {"text": "neither here nor there", "label": "fair"},
    )

    text: str = "text"
    text_pair: str | None = None

    def text_fields(self) -> tuple[str, ...]:
        """Returns the field of the text, or both fields of a pair."""
        return (self.text, self.text_pair) if self.text_pair else (self.text,)

    def encode(self, rows: Sequence[Row], tokenizer: Any) -> list[Example]:
        """Returns one example per row: the tokenizer's lists and `label`, a position in `labels`."""
        require_rows(rows)
        labels = [self.position_of(row, i) for i, row in enumerate(rows)]
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

    def _refuse_empty(self, examples: Sequence[Example]) -> None:
        for i, example in enumerate(examples):
            if not example["input_ids"]:
                raise ValueError(f"row {i}: its field {self.text!r} has no tokens: leave the row out")
