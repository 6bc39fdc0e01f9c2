"""Tries a prepared model on a small batch, to find out if a change of its passes leaves its answers as they are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fedelta.models.patches import Patch
from fedelta.tasks.text.written import MAKES_INPUTS

P = TypeVar("P", bound=Patch)

logger = logging.getLogger("fedelta.models")

TOLERANCE = 1e-4
"""The largest relative difference, by norm, between answers of float32 or better that are alike."""


def trial(module: Any) -> dict[str, Tensor]:
    """Returns three sequences of 2, 5 and 8 tokens, padded; one that writes from a decoder gets up to 6 to begin by."""
    table = module.get_input_embeddings().weight
    draw = torch.Generator().manual_seed(0)
    mask = torch.arange(8) < torch.tensor([[2], [5], [8]])
    ids = torch.randint(min(3, len(table) - 1), len(table), mask.shape, generator=draw)
    padding = getattr(module.config, "pad_token_id", None) or 0
    inputs = {"input_ids": ids.where(mask, padding), "attention_mask": mask.long()}
    if hasattr(module, MAKES_INPUTS):
        inputs["decoder_input_ids"] = inputs["input_ids"][:, :6]
    return {name: x.to(table.device) for name, x in inputs.items()}


def answers(module: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Returns the logits of a batch in evaluation mode, in float64; by token, those of real tokens."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            logits = module(**batch).logits
    finally:
        module.train(was_training)
    by_token = logits.ndim > 2
    return (logits[batch["attention_mask"].bool()] if by_token else logits).double()


def agrees(module: nn.Module, batch: Mapping[str, Tensor], expected: Tensor) -> bool:
    """Says if the logits of a batch are the expected ones but for rounding."""
    try:
        found = answers(module, batch)
    except Exception as error:  # layers that cannot do without the grid
        logger.debug("a trial of %s failed", type(module).__name__, exc_info=error)
        return False
    return near(found, expected, module)


def near(found: Tensor, expected: Tensor, module: nn.Module) -> bool:
    """Returns whether answers are alike but for the rounding of a model."""
    tolerance = max(TOLERANCE, 10 * torch.finfo(next(module.parameters()).dtype).eps)
    return found.shape == expected.shape and bool((found - expected).norm() <= tolerance * expected.norm())


def kept_if_harmless(module: nn.Module, make: Callable[[], P]) -> P | None:
    """Makes a patch and keeps it if the model answers the trial as before; else takes it back, and returns None."""
    try:
        batch = trial(module)
        expected = answers(module, batch)
    except Exception as error:  # a model that needs other inputs
        logger.debug("%s cannot be tried", type(module).__name__, exc_info=error)
        return None
    patch = make()
    if agrees(module, batch, expected):
        return patch
    patch.remove()
    return None
