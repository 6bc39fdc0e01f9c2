"""Passes of a transformer that compute what is read and no more: no padding, in the last layer only what the head reads.

The answers are the same but for rounding. Whether they are is tried when a model is prepared, on a small padded batch; an
architecture for which they are not (one that mixes tokens outside its attention, a head that reads other tokens) is left alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextvars import Token
from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from fedelta.models.fast.first_token import FirstToken, fits
from fedelta.models.fast.packing import ATTENTION, Packing, current, packing_of
from fedelta.models.fast.trial import agrees, answers, trial

logger = logging.getLogger("fedelta.models")


class Compact:
    """Makes the passes of a model compact, until `remove`; see `compacted`.

    A pass stays full in training mode (the base's own dropout draws for whole grids), under gradient checkpointing, and where
    hidden states or attention weights are asked for.

    Args:
        module: a transformers model whose layers attend by "sdpa".

    Attributes:
        padding: whether padding is left out.
        first_token: whether the last layer is cut to the first tokens.
    """

    def __init__(self, module: Any) -> None:
        self.module, self.layers = module, transformer_layers(module)
        self.padding, self.first_token = True, bool(self.layers) and fits(self.layers[-1])
        self._entered: Token[Packing | None] | None = None
        self._handles = [
            module.register_forward_pre_hook(self._before, with_kwargs=True),
            module.register_forward_hook(self._after, always_call=True),
            *(layer.register_forward_pre_hook(_pack, with_kwargs=True) for layer in self.layers),
            *(layer.register_forward_hook(_unpack) for layer in self.layers[-1:]),
        ]

    def remove(self) -> None:
        """Leaves the model as it was."""
        for handle in self._handles:
            handle.remove()

    def _before(self, module: Any, args: Any, inputs: dict[str, Any]) -> None:
        if not is_plain_pass(module, self.layers, inputs):
            return
        if self.first_token:
            self.layers[-1].forward = FirstToken(self.layers[-1])
        packing = Packing.of(inputs.get("attention_mask")) if self.padding else None
        self._entered = current.set(packing)
        if packing is not None:
            module.config._attn_implementation = ATTENTION

    def _after(self, module: Any, *_: Any) -> None:
        if self._entered is not None:
            current.reset(self._entered)
            self._entered = None
            module.config._attn_implementation = "sdpa"
            vars(self.layers[-1]).pop("forward", None)


def compacted(module: Any) -> Compact | None:
    """Makes a model's passes compact in what leaves its answers as they are; None where that is nothing."""
    if not _suits(module):
        return None
    try:
        batch = trial(module)
        expected = answers(module, batch)
    except Exception as error:  # a model that needs other inputs
        logger.debug("%s is not made compact", type(module).__name__, exc_info=error)
        return None
    for padding, first_token in ((True, True), (True, False), (False, True)):
        compact = Compact(module)
        compact.padding, compact.first_token = padding, first_token and compact.first_token
        if (compact.padding or compact.first_token) and agrees(module, batch, expected):
            return compact
        compact.remove()
    return None


def transformer_layers(module: nn.Module) -> list[Any]:
    """The layers in their order, if the model is one stack of them; else none."""
    stacks = {n.rpartition(".")[0]: None for n, m in module.named_modules() if isinstance(m, GradientCheckpointingLayer)}
    if len(stacks) != 1:
        return []
    layers = list(module.get_submodule(next(iter(stacks))).children())
    return layers if all(isinstance(layer, GradientCheckpointingLayer) for layer in layers) else []


def _suits(module: Any) -> bool:
    config = getattr(module, "config", None)
    plain = getattr(config, "_attn_implementation", None) == "sdpa" and not getattr(config, "is_encoder_decoder", False)
    return plain and bool(transformer_layers(module)) and not hasattr(module, "hf_device_map")


def is_plain_pass(module: Any, layers: Sequence[Any], inputs: Mapping[str, Any]) -> bool:
    """Whether a pass runs in evaluation mode, without checkpointing, and is asked for no hidden states or attention weights."""
    asked = ("output_hidden_states", "output_attentions")
    more = any(inputs.get(name) or getattr(module.config, name, False) for name in asked)
    return not (module.training or more or any(layer.gradient_checkpointing for layer in layers))


def _pack(layer: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[Any, ...] | None:
    packing = current.get()
    if packing is None:
        return None
    return tuple(packing.packed(a) for a in args), {n: packing.packed(v) for n, v in inputs.items()}


def _unpack(layer: Any, args: Any, output: Any) -> Any:
    first: Tensor = output[0] if isinstance(output, tuple) else output
    packing = packing_of(first)
    if packing is None:
        return None
    grid = packing.unpack(first)
    return (grid, *output[1:]) if isinstance(output, tuple) else grid
