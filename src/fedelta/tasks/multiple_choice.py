"""Multiple choice: which of a row's endings is right, by an encoder's head or by a causal language model's likelihood."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedelta.data.rows import Row, require_rows, text_of, value_of
from fedelta.tasks.causal_lm import continued, encode_continuations, encode_prefixes, token_decisions
from fedelta.tasks.task import (
    IGNORED,
    INPUTS,
    Batch,
    Decisions,
    Example,
    Task,
    at_least_float32,
    model_inputs,
    pad_examples,
    tokenized,
)

NO_SCORE = float("-inf")


@dataclass(frozen=True, kw_only=True)
class _Choices(Task):
    """What both ways of choosing share: the fields of a row, and batches of n examples x k choices x length.

    Rows may differ in their number of choices: `choice_mask` (n, k) is False where an example has none.
    """

    context: str = "context"
    choices: str | tuple[str, ...] = "choices"
    label: str = "label"

    def __post_init__(self) -> None:
        if not isinstance(self.choices, str):
            object.__setattr__(self, "choices", tuple(self.choices))

    def text_fields(self) -> tuple[str, ...]:
        """The context, and the field or fields with the endings."""
        return (self.context, *((self.choices,) if isinstance(self.choices, str) else self.choices))

    def label_field(self) -> str | None:
        """The field with the right one."""
        return self.label

    @abstractmethod
    def encode_choices(self, contexts: list[str], endings: list[list[str]], tokenizer: Any) -> list[list[Example]]:
        """Each row's choices, encoded one by one."""

    def encode(self, rows: Sequence[Row], tokenizer: Any) -> list[Example]:
        """One example per row: lists of k sequences, and `label`, the right one's position."""
        require_rows(rows)
        endings = [self.choices_of(row, i) for i, row in enumerate(rows)]
        labels = [self._right_choice(row, i, len(found)) for i, (row, found) in enumerate(zip(rows, endings, strict=True))]
        contexts = [text_of(row, i, self.context) for i, row in enumerate(rows)]
        encoded = self.encode_choices(contexts, endings, tokenizer)
        return [_stacked(found) | {"label": label} for found, label in zip(encoded, labels, strict=True)]

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> Batch:
        """`labels` (n,), `choice_mask` (n, k) and the sequences (n, k, length).

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
        """The number of tokens of the longest choice."""
        return max(map(len, example["input_ids"]))

    def choices_of(self, row: Row, index: int = 0) -> list[str]:
        """The row's endings, from one field with a list or from several fields with a text each."""
        if not isinstance(self.choices, str):
            return [text_of(row, index, field) for field in self.choices]
        found = value_of(row, index, self.choices)
        if isinstance(found, str) or len(found) < 2 or not all(isinstance(choice, str) for choice in found):
            raise ValueError(f"row {index}: field {self.choices!r} holds {found!r}, but a list of two or more texts is needed")
        return list(found)

    def label_of(self, row: Row) -> Hashable:
        """The position of the right choice."""
        return self._right_choice(row, 0, len(self.choices_of(row)))

    def _right_choice(self, row: Row, index: int, count: int) -> int:
        """A label may be a position from 0, the same as text, or a letter from A."""
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


@dataclass(frozen=True, kw_only=True)
class MultipleChoice(_Choices):
    """The right ending, by an encoder that reads context and ending as a pair and gives each pair one score.

    Args:
        context: the field with the beginning or the question.
        choices: the field with the list of endings, or the fields that hold one ending each.
        label: the field with the right one: a position from 0, or a letter from A.
    """

    name: ClassVar[str] = "multiple_choice"
    auto_class: ClassVar[str] = "AutoModelForMultipleChoice"
    peft_task_type: ClassVar[str | None] = None
    modules_to_save: ClassVar[tuple[str, ...]] = ("classifier",)

    def encode_choices(self, contexts: list[str], endings: list[list[str]], tokenizer: Any) -> list[list[Example]]:
        """Each choice as the pair (context, ending), the longer of the two cut first."""
        pairs = [context for context, found in zip(contexts, endings, strict=True) for _ in found]
        examples = tokenized(tokenizer, pairs, list(chain.from_iterable(endings)), self.max_length)
        return _regrouped(examples, endings)

    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        """One decision per example among its choices; the model's logits are (n, k)."""
        logits = model(**model_inputs(batch)).logits
        return Decisions(logits.masked_fill(~batch["choice_mask"], NO_SCORE), batch["labels"])


@dataclass(frozen=True, kw_only=True)
class ChoiceByLikelihood(_Choices):
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

    name: ClassVar[str] = "choice_likelihood"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    peft_task_type: ClassVar[str | None] = "CAUSAL_LM"

    max_length: int = 256

    def encode_choices(self, contexts: list[str], endings: list[list[str]], tokenizer: Any) -> list[list[Example]]:
        """Context and " " + ending, encoded apart and joined; a long context loses its oldest tokens."""
        prefixes = encode_prefixes([context.rstrip() for context in contexts], tokenizer)
        flat = encode_continuations([" " + ending.strip() for ending in chain.from_iterable(endings)], tokenizer)
        return [
            [self._continued(prefix, tokens, i, tokenizer) for tokens in found]
            for i, (prefix, found) in enumerate(zip(prefixes, _regrouped(flat, endings), strict=True))
        ]

    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        """One decision per example among its endings' mean log-probabilities (n, k); only real endings are computed."""
        exists = batch["choice_mask"]
        real = {name: batch[name][exists] for name in (*INPUTS, "token_labels") if name in batch}
        found = mean_log_probability(token_decisions(model, real), real["token_labels"])
        scores = found.new_full(exists.shape, NO_SCORE).masked_scatter(exists, found)
        return Decisions(scores, batch["labels"])

    def _continued(self, prefix: list[int], ending: list[int], index: int, tokenizer: Any) -> Example:
        if not ending:
            raise ValueError(f"row {index}: an ending in field {self.choices!r} has no tokens: leave the row out")
        return continued(prefix, ending, self.max_length, tokenizer, f"row {index}")


def mean_log_probability(tokens: Decisions, token_labels: Tensor) -> Tensor:
    """Each sequence's mean log-probability over its labelled tokens, in nats.

    Args:
        tokens: the decision of each labelled token, sequence by sequence.
        token_labels: (m, length), the tokens themselves, `IGNORED` where they do not count.

    Returns:
        (m,) in float32, or float64 for float64 scores.
    """
    counted = token_labels[:, 1:] != IGNORED
    losses = F.cross_entropy(at_least_float32(tokens.scores), tokens.target, reduction="none")
    return -losses.new_zeros(counted.shape).masked_scatter(counted, losses).sum(dim=1) / counted.sum(dim=1)


def _stacked(choices: Sequence[Example]) -> dict[str, Any]:
    return {name: [choice[name] for choice in choices] for name in choices[0]}


def _choice(example: Example, position: int) -> Example:
    existing = position if position < len(example["input_ids"]) else 0
    return {name: values[existing] for name, values in example.items() if name != "label"}


def _regrouped(flat: Sequence[Any], endings: Sequence[Sequence[str]]) -> list[list[Any]]:
    """Items that belong to the endings in order, as one list per row."""
    items = iter(flat)
    return [[next(items) for _ in found] for found in endings]
