"""Multiple choice by a causal language model's likelihood: which of a row's endings is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

from torch import nn

from fedelta.data.rows import Row
from fedelta.tasks.multiple_choice import MultipleChoice
from fedelta.tasks.task import INPUTS, Batch, Decisions, Example
from fedelta.tasks.text.choices import NO_SCORE, Choices, regrouped
from fedelta.tasks.text.continuations import (
    Tokens,
    continued,
    encode_continuations,
    encode_prefixes,
    mean_log_probability,
    token_decisions,
)


@dataclass(frozen=True, kw_only=True)
class ChoiceByLikelihood(Choices):
    """The right ending, as the one whose tokens a causal language model finds likeliest after the context.

    An ending's score is its mean log-probability per token. Training is the cross-entropy over the scores of a row's
    endings, so right and wrong endings are told apart; the context itself is never predicted.

    A row that is too long keeps its ending and loses its oldest context, and a tokenizer's BOS stays in front: the released
    code of Subspace-Reg does neither, so that its numbers on long rows, and of a model with a BOS, are not to be expected.

    Args:
        context: the field with the beginning or the question.
        choices: the field with the list of endings, or the fields that hold one ending each.
        label: the field with the right one: a position from 0, or a letter from A.
    """

    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    peft_task_type: ClassVar[str | None] = "CAUSAL_LM"
    sample: ClassVar[tuple[Row, ...]] = MultipleChoice.sample

    max_length: int = 256

    def encode_choices(self, contexts: list[str], endings: list[list[str]], tokenizer: Any) -> list[list[Example]]:
        """Returns context and " " + ending, encoded apart and joined; a long context loses its oldest tokens."""
        prefixes = encode_prefixes([context.rstrip() for context in contexts], tokenizer)
        flat = encode_continuations([" " + ending.strip() for ending in chain.from_iterable(endings)], tokenizer)
        rows = enumerate(zip(prefixes, regrouped(flat, endings), strict=True))
        return [self._continued(prefix, found, i, tokenizer) for i, (prefix, found) in rows]

    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        """Returns one decision per example among its endings' mean log-probabilities (n, k); only real endings are computed."""
        exists = batch["choice_mask"]
        real = {name: batch[name][exists] for name in (*INPUTS, "token_labels") if name in batch}
        found = mean_log_probability(token_decisions(model, real), real["token_labels"])
        scores = found.new_full(exists.shape, NO_SCORE).masked_scatter(exists, found)
        return Decisions(scores, batch["labels"])

    def _continued(self, prefix: Tokens, endings: Sequence[Tokens], index: int, tokenizer: Any) -> list[Example]:
        if not all(endings):
            raise ValueError(f"row {index}: an ending in field {self.choices!r} has no tokens: leave the row out")
        return [continued(prefix, ending, self.max_length, tokenizer, f"row {index}") for ending in endings]
