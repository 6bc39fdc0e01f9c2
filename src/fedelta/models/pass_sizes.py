"""Counts the tokens that a batch costs a model, and those that a pass has room for."""

from __future__ import annotations

from typing import Any

import torch

from fedelta.adapted import CPU_TOKENS, Batch

PATCH = 16
"""Pixels of a patch's side, for a model whose config names none."""

LIVE = 40
"""About how many activations of hidden size a layer keeps of a token for the backward pass."""


def pass_tokens(config: Any, device: torch.device, dtype: torch.dtype) -> int:
    """Returns the tokens of a pass: few on a CPU; on a GPU, those whose activations fill about half of its free memory."""
    if device.type != "cuda":
        return CPU_TOKENS
    free, _ = torch.cuda.mem_get_info(device)
    activations = LIVE * config.num_hidden_layers * config.hidden_size * dtype.itemsize
    return max(CPU_TOKENS, int(free / 2 / activations))


def tokens(batch: Batch, *, skips_padding: bool, patch: int = PATCH, writes: bool = False) -> int:
    """Counts the tokens of a batch that a model computes; padding counts, unless the model leaves it out.

    Args:
        batch: of text or of images.
        skips_padding: says that padding is left out.
        patch: pixels of a side of what is one token of an image.
        writes: says that the model has a decoder apart, which computes the batch's `token_labels`, too.
    """
    main, mask, answer = (batch.get(name) for name in ("input_ids", "attention_mask", "token_labels"))
    if main is None:
        return longest(batch, patch) * len(next(iter(batch.values())))
    read = int(mask.sum()) if mask is not None and skips_padding else main.numel()
    return read + (answer.numel() if writes and answer is not None else 0)


def longest(batch: Batch, patch: int = PATCH) -> int:
    """Returns the tokens of the longest sequence of a batch, padding included; of an image, its patches and one more.

    Of inputs by other names, which a task of one's own may have, the second dimension is taken for the length of a sequence.
    """
    if "input_ids" in batch:
        return batch["input_ids"].shape[-1]
    if "pixel_values" not in batch:
        return max((values.shape[1] for values in batch.values() if values.ndim > 1), default=1)
    height, width = batch["pixel_values"].shape[-2:]
    return -(-height // patch) * -(-width // patch) + 1


def patch_of(config: Any) -> int:
    """Returns the pixels of a side of a model's patches, as its config names them."""
    size = getattr(config, "patch_size", None) or PATCH
    return min(size) if isinstance(size, list | tuple) else size
