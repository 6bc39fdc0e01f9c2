"""One line: what the task learns. Copy this file to `my_task.py` in this folder; its name is then the task's name."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from fedelta.data.rows import Row, require_rows, text_of, value_of
from fedelta.tasks.task import Batch, Decisions, Example, Task, model_inputs, pad_examples, tokenized


@dataclass(frozen=True, kw_only=True)
class YesOrNo(Task):
    """Answers a question about a passage with yes or no, by a model with a classification head.

    Args:
        passage: the field with the passage.
        question: the field with the question.
        answer: the field with the answer, true or false.
    """

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    peft_task_type: ClassVar[str | None] = "SEQ_CLS"
    sample: ClassVar[tuple[Row, ...]] = (
        {"passage": "The tower is old.", "question": "Is it new?", "answer": False},
        {"passage": "Two rivers meet in the town.", "question": "Is there a river?", "answer": True},
    )

    passage: str = "passage"
    question: str = "question"
    answer: str = "answer"

    def text_fields(self) -> tuple[str, ...]:
        """Returns the fields of the passage and the question."""
        return self.passage, self.question

    def label_field(self) -> str | None:
        """Returns the field with the answer."""
        return self.answer

    def model_kwargs(self) -> dict[str, Any]:
        """Returns the number of outputs."""
        return {"num_labels": 2}

    def encode(self, rows: Sequence[Row], tokenizer: Any) -> list[Example]:
        """Returns one example per row: the tokenizer's lists and `label`, 1 for yes."""
        require_rows(rows)
        passages = [text_of(row, i, self.passage) for i, row in enumerate(rows)]
        questions = [text_of(row, i, self.question) for i, row in enumerate(rows)]
        examples = tokenized(tokenizer, passages, questions, self.max_length)
        answers = [int(self._answer(row, i)) for i, row in enumerate(rows)]
        return [{**example, "label": answer} for example, answer in zip(examples, answers, strict=True)]

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> Batch:
        """Returns `labels` (n,) and the inputs (n, length)."""
        return pad_examples(examples, pad_token_id, self.pad_to_multiple)

    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        """Returns one decision per example, between no and yes."""
        return Decisions(model(**model_inputs(batch)).logits, batch["labels"])

    def label_of(self, row: Row) -> Hashable:
        """Returns the answer."""
        return self._answer(row, 0)

    def _answer(self, row: Row, index: int) -> bool:
        value = value_of(row, index, self.answer)
        if not isinstance(value, bool):
            raise ValueError(f"row {index}: field {self.answer!r} holds {value!r}, but true or false is needed")
        return value
