"""Keeps the gradients of a base that bitsandbytes has quantised to 4 bits.

On a CPU with bfloat16 instructions a layer in evaluation mode repacks its weight at the first pass without gradients, and from
then on multiplies by a function that passes none back: what lies below such a layer would not train, and nothing would say so.
Our bases are in evaluation mode in training, too.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from fedelta.models.patches import Undo

REPACKS = "support_avx512bf16_for_cpu"
"""The attribute of bitsandbytes' layers that allows it."""


def kept_differentiable(module: nn.Module) -> list[Undo]:
    """Forbids repacking in a model's quantised layers.

    Returns:
        What allows it again; nothing for a model without such layers.

    Raises:
        ValueError: naming a layer that is repacked already, since the model was asked something before.
    """
    layers: dict[str, Any] = {name: layer for name, layer in module.named_modules() if REPACKS in vars(layer)}
    for name, layer in layers.items():
        if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
            raise ValueError(
                f"layer {name!r} was repacked by bitsandbytes for answers alone, through which no gradient goes: load the "
                "model again, and train it before it is asked anything in evaluation mode"
            )
    undone: list[Undo] = []
    for layer in layers.values():
        undone.append(Undo(partial(setattr, layer, REPACKS, getattr(layer, REPACKS))))
        setattr(layer, REPACKS, False)
    return undone
