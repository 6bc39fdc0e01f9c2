"""Merges an adapter into a plain Hugging Face model, which then needs neither PEFT nor fedelta."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from fedelta import tree
from fedelta.models.base_store import added, delta_shape, is_plain
from fedelta.models.fingerprint import fingerprint
from fedelta.tree import Adapter, BaseDelta


def merge_into(model: Any, adapter: Adapter, base: BaseDelta | None = None, *, tokenizer: Any = None) -> Any:
    """Adds adapter and base delta to a plain model's weights, in place, and sets its heads; returns the model.

    Sums are formed in float32 or wider and stored in the weight's dtype.

    Args:
        model: a transformers model without PEFT layers, as loaded.
        adapter: of any rank and scale.
        base: what the method has added to the base; it is part of the model that was trained.
        tokenizer: where given, the fingerprint of model and tokenizer must be the adapter's.

    Raises:
        ValueError: for another base model, a layer or head that does not fit, or a quantised weight.
    """
    if any(isinstance(m, LoraLayer) for m in model.modules()):
        raise ValueError("the model carries PEFT layers; unload() them, or load a plain model to merge into")
    _check_base(model, adapter, tokenizer)
    terms = [adapter.layers, tree.total(base) if base is not None else {}]
    for name in {**terms[0], **terms[1]}:
        layer = _layer(model, name)
        for term in (part[name] for part in reversed(terms) if name in part):
            if tuple(term.shape) != delta_shape(layer):
                raise ValueError(f"layer {name!r}: the delta has shape {tuple(term.shape)}, the layer {delta_shape(layer)}")
            layer.weight.data = added(layer, layer.weight.data, term)
    for name, value in adapter.dense.items():
        _set_head(model, name, value)
    return model


def _check_base(model: Any, adapter: Adapter, tokenizer: Any) -> None:
    if adapter.base is None or tokenizer is None:
        return
    found = fingerprint(model, tokenizer, adapter.layers, adapter.dense)
    if found != adapter.base:
        raise ValueError(
            f"the adapter was trained on base {adapter.base}, this model is {found}; load the model it was trained on"
        )


def _layer(model: nn.Module, name: str) -> Any:
    try:
        layer = model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"the adapter names layer {name!r}, which the model does not have: another architecture") from error
    if not is_plain(layer):
        raise ValueError(f"layer {name!r} is quantised and cannot be merged into; load the model without quantization")
    return layer


def _set_head(model: nn.Module, name: str, value: torch.Tensor) -> None:
    parameters = dict(model.named_parameters())
    if name not in parameters or parameters[name].shape != value.shape:
        found = tuple(parameters[name].shape) if name in parameters else "no such tensor"
        raise ValueError(
            f"dense tensor {name!r}: the adapter has {tuple(value.shape)}, the model {found}; load it with the same labels"
        )
    with torch.no_grad():
        parameters[name].copy_(value)
