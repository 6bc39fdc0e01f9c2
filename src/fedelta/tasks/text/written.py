"""Texts that an encoder-decoder writes: the encoder reads a prompt, and the decoder an answer's tokens, one behind another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from fedelta.data.rows import Row, require_rows, text_of
from fedelta.tasks.task import IGNORED, Batch, Decisions, Example, model_inputs, tokenized
from fedelta.tasks.text.continuations import Tokens
from fedelta.tasks.text.logits import logits_at
from fedelta.tasks.text.prompts import Prompted

READ = ("input_ids", "attention_mask")
"""What an encoder takes of a tokenizer's lists: few of these models know token types."""

MAKES_INPUTS = "prepare_decoder_input_ids_from_labels"
"""The method by which a model of transformers makes its decoder's inputs of an answer."""


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderInstruction(Prompted):
    """Trains an encoder-decoder to answer instructions; what `Instruction` becomes for such a model, and documented there."""

    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    peft_task_type: ClassVar[str | None] = "SEQ_2_SEQ_LM"

    def encode(self, rows: Sequence[Row], tokenizer: Any) -> list[Example]:
        """Returns one example per row: `input_ids` and `attention_mask` of the prompt, and the answer's `token_labels`."""
        require_rows(rows)
        prompts = tokenized(tokenizer, [self.prompt_of(row, i) for i, row in enumerate(rows)], None, self.max_length)
        answers = encode_answers([text_of(row, i, self.answer) for i, row in enumerate(rows)], tokenizer)
        cut = [cut_answer(answer, self.max_length, tokenizer.eos_token_id) for answer in answers]
        pairs = enumerate(zip(prompts, cut, strict=True))
        return [self._example(prompt, answer, i) for i, (prompt, answer) in pairs]

    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        """Returns one decision among the vocabulary per answer token; the loss is their mean over the batch."""
        return written_decisions(model, batch)

    def length(self, example: Example) -> int:
        """Returns the number of tokens of the prompt or of the answer, whichever is longer."""
        return max(len(example["input_ids"]), len(example["token_labels"]))

    def _example(self, prompt: Example, answer: Tokens, index: int) -> Example:
        self.demand_tokens(answer, index)
        if not prompt["input_ids"]:
            raise ValueError(f"row {index}: its prompt has no tokens for the encoder to read: fill {self.instruction!r}")
        if len(prompt["input_ids"]) > self.max_length:  # which tokenizers do where nothing but their marks would be left
            raise ValueError(
                f"max_length {self.max_length} leaves no place for a prompt beside the tokenizer's marks: raise it"
            )
        return {name: prompt[name] for name in READ} | {"token_labels": answer}


def written_decisions(model: Any, batch: Batch) -> Decisions:
    """Returns one decision among the vocabulary for each labelled token, answer by answer; no other logits are computed.

    Equals what `model(..., labels=token_labels)` scores, but for cut answers of mBART: the decoder's inputs are made by the
    model, of the labels one place later, behind its start token.

    Args:
        model: an encoder-decoder of transformers.
        batch: inputs (n, length) and `token_labels` (n, m), `IGNORED` behind an answer's end.
    """
    target = batch["token_labels"]
    written = target != IGNORED
    inputs = model_inputs(batch) | {"decoder_input_ids": decoder_inputs(model, target)}
    return Decisions(logits_at(model, inputs, written), target[written], owner=written.nonzero()[:, 0])


def decoder_inputs(model: Any, token_labels: Tensor) -> Tensor:
    """Returns what the decoder reads to write these labels, as the model makes it: (n, m).

    An answer without an EOS is given one while this is made. mBART's models move the last token to the front, and would begin a
    cut answer by a word; models with a start token of their own make the same of it with and without.
    """
    make, end = getattr(model, MAKES_INPUTS), getattr(getattr(model, "config", None), "eos_token_id", None)
    if not isinstance(end, int) or not (cut := (token_labels != end).all(dim=1)).any():
        return make(token_labels)
    ended = F.pad(token_labels, (0, 1), value=IGNORED)
    behind = (token_labels != IGNORED).sum(dim=1)
    ended[cut, behind[cut]] = end
    return make(ended)[:, :-1]


def encode_answers(texts: Sequence[str], tokenizer: Any) -> list[Tokens]:
    """Returns the tokens that a decoder is to write: as the tokenizer marks targets, and with an EOS at the end.

    Some models begin an answer with a mark, as BART does with its BOS; their tokenizers set it. In mBART's a language's mark
    stands behind the EOS: the model moves the last token to the front, and would begin with an EOS that were set once more.
    """
    end = tokenizer.eos_token_id
    found = [list(ids) for ids in tokenizer(text_target=list(texts))["input_ids"]]
    return [ids if end is None or end in ids[-2:] else [*ids, end] for ids in found]


def cut_answer(ids: Tokens, max_length: int, end: int | None) -> Tokens:
    """Returns the first tokens of an answer that is too long, without an EOS: it does not end there.

    Where a language's mark stands behind the EOS, both are kept and the text before them is cut: the model moves the last token
    to the front, and would begin by a word.

    Raises:
        ValueError: if such marks alone fill `max_length`.
    """
    if len(ids) <= max_length or end is None or ids[-1] == end or ids[-2] != end:
        return ids[:max_length]
    if max_length < 3:
        raise ValueError(f"max_length {max_length} leaves no place for an answer beside the tokenizer's marks: raise it")
    return ids[: max_length - 2] + ids[-2:]
