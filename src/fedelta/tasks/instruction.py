"""Instruction tuning of a language model: the loss is on the answer only, its end mark included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import nn

from fedelta.data.rows import Row, require_rows, text_of
from fedelta.tasks.task import Batch, Decisions, Example, Task
from fedelta.tasks.text.continuations import Tokens, continued, encode_continuations, encode_prefixes, token_decisions
from fedelta.tasks.text.prompts import PROMPT, PROMPT_WITH_CONTEXT, Prompted
from fedelta.tasks.text.written import EncoderDecoderInstruction

__all__ = ["PROMPT", "PROMPT_WITH_CONTEXT", "Instruction"]


@dataclass(frozen=True, kw_only=True)
class Instruction(Prompted):
    """Trains a model to answer instructions, token by token.

    A causal language model reads prompt and answer as one text. A row that is too long loses the middle of its prompt's start,
    never its answer: the oldest prompt tokens go first (a leading BOS stays). Only an answer that alone exceeds `max_length` is
    cut, at its end and without EOS.

    An encoder-decoder, such as T5 or BART, which its own config says that it is, reads the prompt in the encoder and writes the
    answer in the decoder. Each of them may have `max_length` tokens: a longer prompt loses its end, but not the tokenizer's
    special tokens there; a longer answer is cut at its end and has no EOS, unless a language's mark follows it.

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

    def for_encoder_decoder(self) -> Task:
        """Returns the same task with the prompt in the encoder and the answer in the decoder.

        A class that is derived from this one stays as it is: it reads rows in a way of its own.
        """
        if type(self) is not Instruction:
            return self
        return EncoderDecoderInstruction(**{entry.name: getattr(self, entry.name) for entry in fields(self)})

    def encode(self, rows: Sequence[Row], tokenizer: Any) -> list[Example]:
        """Returns one example per row: `input_ids`, `attention_mask`, and `token_labels`, which are `IGNORED` on the prompt."""
        require_rows(rows)
        prompts = encode_prefixes([self.prompt_of(row, i) for i, row in enumerate(rows)], tokenizer)
        answers = encode_continuations([text_of(row, i, self.answer) for i, row in enumerate(rows)], tokenizer)
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        pairs = enumerate(zip(prompts, answers, strict=True))
        return [self._example(prompt, answer + end, i, tokenizer) for i, (prompt, answer) in pairs]

    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        """Returns one decision among the vocabulary per answer token; the loss is their mean over the batch."""
        return token_decisions(model, batch)

    def _example(self, prompt: Tokens, answer: Tokens, index: int, tokenizer: Any) -> Example:
        self.demand_tokens(answer, index)
        return continued(prompt, answer, self.max_length, tokenizer, f"row {index}")
