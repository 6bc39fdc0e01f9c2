"""A toy tokenizer and toy models in float64: any task can be tried on them, and nothing is loaded from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fedelta.tasks import IGNORED, Task

PAD, BOS, EOS, FIRST = 0, 1, 2, 3
SIZE = FIRST + 256
"""The number of tokens: three marks, and all bytes."""
WIDTH = 8


class ToyTokenizer:
    """Makes a token of each byte; called as the tokenizers of transformers are.

    A text stands between BOS and EOS; the second of a pair follows with an EOS of its own.
    """

    pad_token_id = PAD
    bos_token_id = BOS
    eos_token_id = EOS

    def __call__(
        self,
        texts: str | list[str] | None = None,
        pairs: str | list[str] | None = None,
        *,
        text_target: list[str] | None = None,
        truncation: bool = False,
        max_length: int | None = None,
        add_special_tokens: bool = True,
    ) -> dict[str, Any]:
        """Returns `input_ids`, `attention_mask` and `token_type_ids`, each a list for a text and a list of lists for texts.

        Texts to be written, `text_target`, are given alone, and are marked as any other.
        """
        texts = (text_target or []) if texts is None else texts
        if isinstance(texts, str):
            columns = self([texts], None if pairs is None else [str(pairs)], truncation=truncation, max_length=max_length)
            return {name: values[0] for name, values in columns.items()}
        parts = [[list(text.encode())] for text in texts] if pairs is None else _paired(texts, list(pairs))
        marks = len(parts[0]) + 1 if add_special_tokens and parts else 0
        limit = max_length - marks if truncation and max_length is not None else None
        rows = [_joined(_cut(part, limit), add_special_tokens) for part in parts]
        return {
            "input_ids": [ids for ids, _ in rows],
            "attention_mask": [[1] * len(ids) for ids, _ in rows],
            "token_type_ids": [types for _, types in rows],
        }


def _paired(texts: list[str], pairs: list[str]) -> list[list[list[int]]]:
    return [[list(text.encode()), list(pair.encode())] for text, pair in zip(texts, pairs, strict=True)]


def _cut(parts: list[list[int]], limit: int | None) -> list[list[int]]:
    """Returns the parts with the longest of them shortened until all fit."""
    while limit is not None and sum(map(len, parts)) > max(limit, 0):
        longest = max(parts, key=len)
        del longest[-1]
    return parts


def _joined(parts: list[list[int]], marked: bool) -> tuple[list[int], list[int]]:
    """Returns the tokens of all parts, and of each token which part it belongs to."""
    ids, types = ([BOS], [0]) if marked else ([], [])
    for which, part in enumerate(parts):
        tokens = [FIRST + byte for byte in part] + ([EOS] if marked else [])
        ids += tokens
        types += [which] * len(tokens)
    return ids, types


class _Reader(nn.Module):
    """Reads text: a mean over the tokens that the mask lets through, so that only a wrong mask can let padding in."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SIZE, WIDTH)
        self.head = nn.Linear(WIDTH, outputs)

    def embedded(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        types = 0.0 if token_type_ids is None else token_type_ids[..., None]
        return self.embedding(input_ids) + types

    def summary(self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None = None) -> Tensor:
        """Returns one vector for each sequence: (..., WIDTH)."""
        mask = (torch.ones_like(input_ids) if attention_mask is None else attention_mask)[..., None]
        total = (self.embedded(input_ids, token_type_ids) * mask).sum(dim=-2)
        return torch.tanh(total / mask.sum(dim=-2).clamp(min=1))

    def so_far(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Returns one vector for each token, of what was read up to it: (..., length, WIDTH)."""
        mask = (torch.ones_like(input_ids) if attention_mask is None else attention_mask)[..., None]
        total = (self.embedded(input_ids) * mask).cumsum(dim=-2)
        return torch.tanh(total / mask.cumsum(dim=-2).clamp(min=1))


class ToyClassifier(_Reader):
    """Gives a sequence a score for each class: (n, classes)."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None) -> Any:
        return SimpleNamespace(logits=self.head(self.summary(input_ids, attention_mask, token_type_ids)))


class ToyChooser(_Reader):
    """Gives each of an example's choices one score: (n, choices)."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None) -> Any:
        return SimpleNamespace(logits=self.head(self.summary(input_ids, attention_mask, token_type_ids))[..., 0])


class ToyLanguageModel(_Reader):
    """Gives the next token's scores at each position: (n, length, tokens)."""

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None) -> Any:
        return SimpleNamespace(logits=self.head(self.so_far(input_ids, attention_mask)))


class ToyTagger(_Reader):
    """Gives each token of a sequence a score for each class: (n, length, classes)."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None) -> Any:
        whole = self.summary(input_ids, attention_mask, token_type_ids)
        return SimpleNamespace(logits=self.head(self.embedded(input_ids) + whole[..., None, :]))


class ToyEncoderDecoder(_Reader):
    """Gives the scores of an answer's tokens: (n, answer's length, tokens). The decoder's inputs are the labels, one later."""

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        begun = torch.full_like(labels[:, :1], BOS)
        return torch.cat([begun, labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED, PAD)], dim=1)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Tensor,
    ) -> Any:
        if decoder_input_ids is None and labels is not None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        if decoder_input_ids is None:
            raise ValueError("give decoder_input_ids, or labels to make them of")
        read = self.summary(input_ids, attention_mask)
        return SimpleNamespace(logits=self.head(self.so_far(decoder_input_ids) + read[:, None, :]))


class ToyImageClassifier(nn.Module):
    """Gives an image a score for each class from its pixels' mean, spread and extremes: (n, classes)."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(4, outputs)

    def forward(self, pixel_values: Tensor) -> Any:
        pixels = pixel_values.to(self.head.weight.dtype).flatten(1)
        facts = [pixels.mean(1), pixels.std(1), pixels.amin(1), pixels.amax(1)]
        return SimpleNamespace(logits=self.head(torch.stack(facts, dim=1)))


MODELS: Mapping[str, type[nn.Module]] = {
    "AutoModelForCausalLM": ToyLanguageModel,
    "AutoModelForImageClassification": ToyImageClassifier,
    "AutoModelForMultipleChoice": ToyChooser,
    "AutoModelForSeq2SeqLM": ToyEncoderDecoder,
    "AutoModelForSequenceClassification": ToyClassifier,
    "AutoModelForTokenClassification": ToyTagger,
}
"""The toy for each class of transformers that a task may name."""
WRITERS = (ToyLanguageModel, ToyEncoderDecoder)


def toy_model(task: Task, seed: int = 0) -> nn.Module:
    """Returns the toy model that fits a task's `auto_class`, in float64 and evaluation mode, drawn with a seed.

    Raises:
        ValueError: there is no such toy.
    """
    if task.auto_class not in MODELS:
        raise ValueError(f"there is no toy for {task.auto_class}, only for {', '.join(MODELS)}: give the check a small `model`")
    build = MODELS[task.auto_class]
    outputs = 1 if build is ToyChooser else SIZE if build in WRITERS else int(task.model_kwargs().get("num_labels", 2))
    with torch.random.fork_rng(devices=[]):  # the caller's generator stays where it was
        torch.manual_seed(seed)
        return build(outputs).double().eval()
