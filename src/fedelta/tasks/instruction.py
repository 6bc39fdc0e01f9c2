"""Instruction tuning of a causal language model: the loss is on the answer only, its end mark included."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from fedelta.data.rows import Row, label_in, require_rows, text_of
from fedelta.tasks.metrics import Metric
from fedelta.tasks.task import Batch, Decisions, Example, Task, pad_examples
from fedelta.tasks.text.continuations import Tokens, continued, encode_continuations, encode_prefixes, token_decisions

PROMPT = "### Instruction:\n{instruction}\n\n### Answer:\n"
PROMPT_WITH_CONTEXT = "### Instruction:\n{instruction}\n\n### Context:\n{context}\n\n### Answer:\n"


@dataclass(frozen=True, kw_only=True)
class Instruction(Task):
    """Trains a model to answer instructions, token by token.

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

    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    peft_task_type: ClassVar[str | None] = "CAUSAL_LM"
    sample: ClassVar[tuple[Row, ...]] = (
        {"instruction": "Name a river.", "response": "The Rhine."},
        {"instruction": "What is two and two?", "response": "It is four."},
        {"instruction": "Say yes.", "response": "yes"},
    )

    instruction: str = "instruction"
    context: str | None = None
    answer: str = "response"
    category: str | None = None
    prompt: str = PROMPT
    prompt_with_context: str = PROMPT_WITH_CONTEXT
    max_length: int = 512
    metrics: tuple[str | Metric, ...] = ("loss", "perplexity", "accuracy")

    def __post_init__(self) -> None:
        super().__post_init__()
        for setting, needed in (("prompt", ("instruction",)), ("prompt_with_context", ("instruction", "context"))):
            for name in needed:
                if f"{{{name}}}" not in getattr(self, setting):
                    raise ValueError(f"{setting} {getattr(self, setting)!r} lacks the place {{{name}}}")

    def text_fields(self) -> tuple[str, ...]:
        """Returns the fields of the instruction and the answer; a context may be left empty."""
        return self.instruction, self.answer

    def label_field(self) -> str | None:
        """Returns the field with the category, if one was named."""
        return self.category

    def prompt_of(self, row: Row, index: int = 0) -> str:
        """Returns the text that the model is given before its answer."""
        instruction = text_of(row, index, self.instruction)
        context = (row.get(self.context) or "") if self.context else ""
        if not context:
            return self.prompt.replace("{instruction}", instruction)
        before, after = self.prompt_with_context.split("{instruction}", 1)
        return before.replace("{context}", context) + instruction + after.replace("{context}", context)

    def encode(self, rows: Sequence[Row], tokenizer: Any) -> list[Example]:
        """Returns one example per row: `input_ids`, `attention_mask`, and `token_labels`, which are `IGNORED` on the prompt."""
        require_rows(rows)
        prompts = encode_prefixes([self.prompt_of(row, i) for i, row in enumerate(rows)], tokenizer)
        answers = encode_continuations([text_of(row, i, self.answer) for i, row in enumerate(rows)], tokenizer)
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        pairs = enumerate(zip(prompts, answers, strict=True))
        return [self._example(prompt, answer + end, i, tokenizer) for i, (prompt, answer) in pairs]

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> Batch:
        """Returns inputs and `token_labels`, all (n, length)."""
        return pad_examples(examples, pad_token_id, self.pad_to_multiple)

    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        """Returns one decision among the vocabulary per answer token; the loss is their mean over the batch."""
        return token_decisions(model, batch)

    def label_of(self, row: Row) -> Hashable:
        """Returns the row's category, or None if no field was named for it."""
        return label_in(row, 0, self.category) if self.category else None

    def _example(self, prompt: Tokens, answer: Tokens, index: int, tokenizer: Any) -> Example:
        if not answer:
            raise ValueError(f"row {index}: field {self.answer!r} has no tokens and the tokenizer no EOS: leave it out")
        return continued(prompt, answer, self.max_length, tokenizer, f"row {index}")
