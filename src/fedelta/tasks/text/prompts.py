"""The part that tasks of instruction share, whatever kind of model answers: the fields of a row, and the text of a prompt."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedelta.data.rows import Row, label_in, text_of
from fedelta.tasks.metrics import Metric
from fedelta.tasks.task import Batch, Example, Task, pad_examples

PROMPT = "### Instruction:\n{instruction}\n\n### Answer:\n"
PROMPT_WITH_CONTEXT = "### Instruction:\n{instruction}\n\n### Context:\n{context}\n\n### Answer:\n"


@dataclass(frozen=True, kw_only=True)
class Prompted(Task):
    """Reads an instruction, its context and its answer from a row, and makes the prompt."""

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

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> Batch:
        """Returns the inputs (n, length), and `token_labels`, which an encoder-decoder has at a length of their own."""
        return pad_examples(examples, pad_token_id, self.pad_to_multiple)

    def label_of(self, row: Row) -> Hashable:
        """Returns the row's category, or None if no field was named for it."""
        return label_in(row, 0, self.category) if self.category else None

    def demand_tokens(self, answer: Sequence[int], index: int) -> None:
        """Raises ValueError for an answer without any token, in which there is nothing to learn."""
        if not answer:
            raise ValueError(f"row {index}: field {self.answer!r} has no tokens and the tokenizer no EOS: leave it out")
