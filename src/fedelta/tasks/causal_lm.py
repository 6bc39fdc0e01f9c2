"""Instruction tuning of a causal language model: the loss is on the answer only, its end mark included."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn
from torch.nn import functional as F

from fedelta.data.rows import Row, label_in, require_rows, text_of
from fedelta.tasks.logits import logits_at
from fedelta.tasks.metrics import Metric
from fedelta.tasks.task import IGNORED, Batch, Decisions, Example, Task, model_inputs, pad_examples

Tokens = list[int]

PROMPT = "### Instruction:\n{instruction}\n\n### Answer:\n"
PROMPT_WITH_CONTEXT = "### Instruction:\n{instruction}\n\n### Context:\n{context}\n\n### Answer:\n"


@dataclass(frozen=True, kw_only=True)
class Instruction(Task):
    """An answer to an instruction, written token by token.

    A row that is too long loses the middle of its prompt's start, never its answer: the oldest prompt tokens go first (a
    leading BOS stays). Only an answer that alone exceeds `max_length` is cut, at its end and without EOS.

    Args:
        instruction: the field with the instruction.
        context: the field with the text that the instruction is about; rows may leave it empty. None: there is no such field.
        answer: the field with the answer.
        category: the field that `label_of` reads, for splits by kind of task.
        prompt: the text before the answer, with `{instruction}` in it.
        prompt_with_context: the same for rows with context, with `{instruction}` and `{context}` in it.
    """

    name: ClassVar[str] = "instruction"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    peft_task_type: ClassVar[str | None] = "CAUSAL_LM"

    instruction: str = "instruction"
    context: str | None = None
    answer: str = "response"
    category: str | None = None
    prompt: str = PROMPT
    prompt_with_context: str = PROMPT_WITH_CONTEXT
    max_length: int = 512
    metrics: tuple[str | Metric, ...] = ("loss", "perplexity", "accuracy")

    def __post_init__(self) -> None:
        for setting, needed in (("prompt", ("instruction",)), ("prompt_with_context", ("instruction", "context"))):
            for name in needed:
                if f"{{{name}}}" not in getattr(self, setting):
                    raise ValueError(f"{setting} {getattr(self, setting)!r} lacks the place {{{name}}}")

    def text_fields(self) -> tuple[str, ...]:
        """The instruction and the answer; a context may be left empty."""
        return self.instruction, self.answer

    def label_field(self) -> str | None:
        """The field with the category, if one was named."""
        return self.category

    def prompt_of(self, row: Row, index: int = 0) -> str:
        """The text that the model is given before its answer."""
        instruction = text_of(row, index, self.instruction)
        context = (row.get(self.context) or "") if self.context else ""
        if not context:
            return self.prompt.replace("{instruction}", instruction)
        before, after = self.prompt_with_context.split("{instruction}", 1)
        return before.replace("{context}", context) + instruction + after.replace("{context}", context)

    def encode(self, rows: Sequence[Row], tokenizer: Any) -> list[Example]:
        """One example per row: `input_ids`, `attention_mask`, and `token_labels`, which are `IGNORED` on the prompt."""
        require_rows(rows)
        prompts = encode_prefixes([self.prompt_of(row, i) for i, row in enumerate(rows)], tokenizer)
        answers = encode_continuations([text_of(row, i, self.answer) for i, row in enumerate(rows)], tokenizer)
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        return [
            self._example(prompt, answer + end, i, tokenizer)
            for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        ]

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> Batch:
        """Inputs and `token_labels`, all (n, length)."""
        return pad_examples(examples, pad_token_id, self.pad_to_multiple)

    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        """One decision among the vocabulary per answer token; the loss is their mean over the batch."""
        return token_decisions(model, batch)

    def label_of(self, row: Row) -> Hashable:
        """The row's category, or None if no field was named for it."""
        return label_in(row, 0, self.category) if self.category else None

    def _example(self, prompt: Tokens, answer: Tokens, index: int, tokenizer: Any) -> Example:
        if not answer:
            raise ValueError(f"row {index}: field {self.answer!r} has no tokens and the tokenizer no EOS: leave it out")
        return continued(prompt, answer, self.max_length, tokenizer, f"row {index}")


def token_decisions(model: nn.Module, batch: Batch) -> Decisions:
    """One decision among the vocabulary for each labelled token, sequence by sequence; no other logits are computed.

    Args:
        batch: inputs and `token_labels`, all (n, length). A sequence's first token is never predicted.
    """
    target = batch["token_labels"][:, 1:]
    answer = target != IGNORED
    predicting = F.pad(answer, (0, 1))  # each token is predicted at the position before it
    scores = logits_at(model, model_inputs(batch), predicting)
    return Decisions(scores, target[answer], owner=answer.nonzero()[:, 0])


def encode_prefixes(texts: Sequence[str], tokenizer: Any) -> list[Tokens]:
    """The tokens before a continuation: with the BOS that the tokenizer sets, without an EOS that it may set."""
    found = tokenizer(list(texts))["input_ids"]
    end = tokenizer.eos_token_id
    # One token that is both EOS and BOS stays: a prefix must not become empty.
    return [ids[:-1] if len(ids) > 1 and ids[-1] == end else list(ids) for ids in found]


def encode_continuations(texts: Sequence[str], tokenizer: Any) -> list[Tokens]:
    """The tokens of texts that stand behind a prefix: no special ones.

    Prefix and continuation are encoded apart, so the border between them never falls inside a token and the continuation
    has the same tokens whatever the prefix.
    """
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


def continued(prefix: Tokens, continuation: Tokens, max_length: int, tokenizer: Any, where: str) -> Example:
    """Prefix and continuation as one example of at most `max_length` tokens, labels on the continuation only.

    The prefix loses its oldest tokens first, but keeps a leading BOS, and at least one token: the continuation's first
    token is predicted from it. A continuation longer than the rest is cut at its end.

    Raises:
        ValueError: the prefix is empty and the tokenizer has no BOS or EOS to stand for it, or `max_length` is under 2.
    """
    if max_length < 2:
        raise ValueError(f"max_length {max_length} leaves no place for a continuation: give at least 2")
    prefix = prefix or [i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None][:1]
    if not prefix:
        raise ValueError(f"{where}: nothing stands before the text to predict, and the tokenizer has no BOS: give a context")
    room = max(max_length - len(continuation), 1)
    keeps_bos = room > 1 and prefix[0] == tokenizer.bos_token_id
    if len(prefix) > room:
        prefix = prefix[:1] + prefix[-(room - 1) :] if keeps_bos else prefix[-room:]
    ids = (prefix + continuation)[:max_length]
    return {
        "input_ids": ids,
        "attention_mask": [1] * len(ids),
        "token_labels": [IGNORED] * len(prefix) + ids[len(prefix) :],
    }
