"""Multiple choice by an encoder: which of a row's endings is right."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

from torch import nn

from fedelta.data.rows import Row
from fedelta.tasks.task import Batch, Decisions, Example, model_inputs, tokenized
from fedelta.tasks.text.choices import NO_SCORE, Choices, regrouped


@dataclass(frozen=True, kw_only=True)
class MultipleChoice(Choices):
    """The right ending, by an encoder that reads context and ending as a pair and gives each pair one score.

    Args:
        context: the field with the beginning or the question.
        choices: the field with the list of endings, or the fields that hold one ending each.
        label: the field with the right one: a position from 0, or a letter from A.
    """

    auto_class: ClassVar[str] = "AutoModelForMultipleChoice"
    peft_task_type: ClassVar[str | None] = None
    modules_to_save: ClassVar[tuple[str, ...]] = ("classifier",)
    sample: ClassVar[tuple[Row, ...]] = (
        {"context": "It rains, so", "choices": ["she takes a coat", "the sun burns"], "label": 0},
        {"context": "He is hungry and", "choices": ["sings", "eats", "sleeps for a long, long time"], "label": 1},
        {"context": "The cup fell and", "choices": ["flew away", "broke"], "label": "B"},
    )

    def encode_choices(self, contexts: list[str], endings: list[list[str]], tokenizer: Any) -> list[list[Example]]:
        """Returns each choice as the pair (context, ending), the longer of the two cut first."""
        firsts = [[context] * len(found) for context, found in zip(contexts, endings, strict=True)]
        examples = tokenized(tokenizer, list(chain.from_iterable(firsts)), list(chain.from_iterable(endings)), self.max_length)
        return regrouped(examples, endings)

    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        """Returns one decision per example among its choices; the model's logits are (n, k)."""
        logits = model(**model_inputs(batch)).logits
        return Decisions(logits.masked_fill(~batch["choice_mask"], NO_SCORE), batch["labels"])
