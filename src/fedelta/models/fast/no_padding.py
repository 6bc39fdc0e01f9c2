"""Leaves padding out of a transformer's layers.

Inside the layers everything but attention works token by token. So the layers get only the real tokens, packed one behind
another, and attention puts them back into the grid for its own products. Answers are the same but for rounding. An architecture
for which they are not, since it mixes tokens outside its attention, is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import Token
from typing import Any

from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fedelta.models.layer_stack import attends_by_sdpa, is_plain_pass, transformer_layers
from fedelta.models.packing import Packing, current, packing_of
from fedelta.models.passes import FastPass, PassSettings, Trained
from fedelta.models.trial import kept_if_harmless

SETTING, ORDER = "compact", 2

ATTENTION = "fedelta_packed"
"""The name of a model's attention while its layers are packed."""


def install(model: Trained, settings: PassSettings) -> FastPass | None:
    """Leaves padding out, unless the base's own dropout would draw for whole grids."""
    return without_padding(model.module) if settings.compact and not settings.base_dropout else None


def without_padding(module: nn.Module) -> NoPadding | None:
    """Leaves padding out of a model's layers; returns None for a model that this does not suit or that answers otherwise."""
    return kept_if_harmless(module, lambda: NoPadding(module)) if attends_by_sdpa(module) else None


class NoPadding(FastPass):
    """Packs what enters the layers of a model and unpacks what leaves the last one, until `remove`.

    A pass keeps its padding in training mode, under gradient checkpointing, where hidden states or attention weights are asked
    for, and where there is too little of it; see `Packing.of`.

    Args:
        module: a transformers model whose layers attend by "sdpa".
    """

    skips_padding = True

    def __init__(self, module: nn.Module) -> None:
        self.layers = transformer_layers(module)
        self._entered: Token[Packing | None] | None = None
        self._handles = [
            module.register_forward_pre_hook(self._before, with_kwargs=True),
            module.register_forward_hook(self._after, always_call=True),
            *(layer.register_forward_pre_hook(_pack, with_kwargs=True) for layer in self.layers),
            self.layers[-1].register_forward_hook(_unpack),
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, module: Any, args: Any, inputs: dict[str, Any]) -> None:
        if not is_plain_pass(module, self.layers, inputs):
            return
        packing = Packing.of(inputs.get("attention_mask"))
        self._entered = current.set(packing)
        if packing is not None:
            module.config._attn_implementation = ATTENTION

    def _after(self, module: Any, *_: Any) -> None:
        if self._entered is not None:
            current.reset(self._entered)
            self._entered = None
            module.config._attn_implementation = "sdpa"


def _pack(layer: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[Any, ...] | None:
    packing = current.get()
    if packing is None:
        return None
    return tuple(packing.packed(a) for a in args), {n: packing.packed(v) for n, v in inputs.items()}


def _unpack(layer: Any, args: Any, output: Any) -> Any:
    first: Tensor = output[0] if isinstance(output, tuple) else output
    packing = packing_of(first)
    if packing is None:  # so it is, too, if the last layer returned the first tokens alone
        return None
    grid = packing.unpack(first)
    return (grid, *output[1:]) if isinstance(output, tuple) else grid


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Attends by scaled dot products from packed tokens to packed tokens; registered with transformers under `ATTENTION`.

    Args:
        module: the attention layer.
        query, key, value: (1, heads, N, width), or a grid's (B, heads, L, width).
        attention_mask: of the grid, as for "sdpa".
        options: as for "sdpa".
    """
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    packing = packing_of(key.transpose(1, 2))
    if packing is None:
        return attend(module, query, key, value, attention_mask, **options)
    heads: Sequence[Tensor] = [packing.unpack(x.transpose(1, 2)).transpose(1, 2) for x in (query, key, value)]
    result, weights = attend(module, *heads, attention_mask, **options)
    return packing.pack(result), weights


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
