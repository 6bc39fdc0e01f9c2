"""Counts the tokens that a batch costs a model, and those that a pass has room for."""

from __future__ import annotations

from typing import Any

import torch

from fedelta.adapted import CPU_TOKENS, Batch

IMAGE_TOKENS = 197
"""The tokens that an image counts as: the patches of a ViT at 224 pixels."""

LIVE = 40
"""About how many activations of hidden size a layer keeps of a token for the backward pass."""


def pass_tokens(config: Any, device: torch.device, dtype: torch.dtype) -> int:
    """Returns the tokens of a pass: few on a CPU; on a GPU, those whose activations fill about half of its free memory."""
    if device.type != "cuda":
        return CPU_TOKENS
    free, _ = torch.cuda.mem_get_info(device)
    activations = LIVE * config.num_hidden_layers * config.hidden_size * dtype.itemsize
    return max(CPU_TOKENS, int(free / 2 / activations))


def tokens(batch: Batch, *, skips_padding: bool, writes: bool = False) -> int:
    """Counts the tokens of a batch that a model computes.

    Args:
        batch: of a task.
        skips_padding: whether the model leaves out padding, which counts otherwise.
        writes: whether the model has a decoder apart, which computes the batch's `token_labels`, too.
    """
    main, mask, answer = (batch.get(name) for name in ("input_ids", "attention_mask", "token_labels"))
    if main is None:
        return IMAGE_TOKENS * len(next(iter(batch.values())))
    read = int(mask.sum()) if mask is not None and skips_padding else main.numel()
    return read + (answer.numel() if writes and answer is not None else 0)


def longest(batch: Batch) -> int:
    """Returns the tokens of the longest sequence of a batch, padding included."""
    return batch["input_ids"].shape[-1] if "input_ids" in batch else IMAGE_TOKENS
