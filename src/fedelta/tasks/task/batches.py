"""Examples, and batches of them: what a task's `encode` and `collate` are built from.

A batch maps names to tensors whose first dimension is the examples. Of its names a model is given those in `INPUTS`; all others
are the task's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Example = Mapping[str, Any]
"""One encoded example: lists of ints, or arrays such as an image, by name; and a `label` where the task has one."""
Batch = dict[str, Tensor]

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")
"""The names in a batch that a model takes; `pixel_values` are the images, (n, channels, height, width)."""
IGNORED = -100
"""The token label of a position that is not part of the answer."""


def model_inputs(batch: Batch, *, labels: Tensor | None = None) -> Batch:
    """Returns the part of a batch that the model takes.

    A batch's own `labels` stay away from the model, since the loss is the task's own, for toy models too.

    Args:
        batch: of a task.
        labels: (n, m), the tokens that an encoder-decoder is to write, with `IGNORED` behind an answer's end; such a model
            makes its decoder's inputs from them. None for all other models.
    """
    inputs = {name: batch[name] for name in INPUTS if name in batch}
    return inputs if labels is None else inputs | {"labels": labels}


def number_of_examples(batch: Batch) -> int:
    """Returns the number of examples in a batch, of text or not."""
    return len(next(iter(batch.values())))


def tokenized(tokenizer: Any, texts: list[str], pairs: list[str] | None, max_length: int) -> list[Example]:
    """Returns each text, or pair of texts, as the tokenizer's lists that the model takes; cut to `max_length`, unpadded."""
    encoded = tokenizer(texts, pairs, truncation=True, max_length=max_length)
    columns = {name: encoded[name] for name in INPUTS if name in encoded}
    return [{name: values[i] for name, values in columns.items()} for i in range(len(texts))]


def pad_rows(sequences: Sequence[Sequence[int]], value: int, multiple: int = 1) -> Tensor:
    """Returns integer sequences as one (n, length) int64 tensor, filled with `value` on the right.

    Args:
        sequences: n sequences of any lengths.
        value: what fills the places behind a sequence's end.
        multiple: the length is the longest sequence's, rounded up to a multiple of this.
    """
    longest = max(len(sequence) for sequence in sequences)
    padded = np.full((len(sequences), -(-longest // multiple) * multiple), value, dtype=np.int64)
    for i, sequence in enumerate(sequences):
        padded[i, : len(sequence)] = sequence
    return torch.from_numpy(padded)


def pad_examples(examples: Sequence[Example], pad_token_id: int, multiple: int = 1) -> Batch:
    """Returns the examples as a batch.

    Each field of lists is padded to its own longest list: an answer's tokens may be more or fewer than the input's. Arrays and
    tensors, such as images, are stacked as they are. A `label` becomes the (n,) tensor `labels`.

    Raises:
        ValueError: there are no examples, or arrays of one field differ in shape.
    """
    if not examples:
        raise ValueError("no examples to make a batch of")
    fill = {"input_ids": pad_token_id, "token_labels": IGNORED}
    batch: Batch = {}
    for name, first in examples[0].items():
        values = [example[name] for example in examples]
        if name == "label":
            batch["labels"] = torch.tensor(values)
        elif isinstance(first, np.ndarray | Tensor):
            batch[name] = _stacked(name, values)
        else:
            batch[name] = pad_rows(values, fill.get(name, 0), multiple)
    return batch


def _stacked(name: str, values: Sequence[np.ndarray | Tensor]) -> Tensor:
    shapes = sorted({tuple(value.shape) for value in values})
    if len(shapes) > 1:
        raise ValueError(
            f"{name} of one batch have the shapes {shapes[0]} and {shapes[1]}: bring them to one shape in `encode`"
        )
    return torch.stack([torch.as_tensor(value) for value in values])
