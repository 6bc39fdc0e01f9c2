"""Finds the stack of layers of a transformer, and the passes that may be changed in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def transformer_layers(module: nn.Module) -> list[Any]:
    """Returns the layers in their order, if the model is one stack of them; else none."""
    stacks = {n.rpartition(".")[0]: None for n, m in module.named_modules() if isinstance(m, GradientCheckpointingLayer)}
    if len(stacks) != 1:
        return []
    layers = list(module.get_submodule(next(iter(stacks))).children())
    return layers if all(isinstance(layer, GradientCheckpointingLayer) for layer in layers) else []


def attends_by_sdpa(module: nn.Module) -> bool:
    """Says if a model is one stack of layers, on one device, that attend by "sdpa" to their own sequence alone."""
    config = getattr(module, "config", None)
    plain = getattr(config, "_attn_implementation", None) == "sdpa" and not getattr(config, "is_encoder_decoder", False)
    return plain and bool(transformer_layers(module)) and not hasattr(module, "hf_device_map")


def is_plain_pass(module: nn.Module, layers: Sequence[Any], inputs: Mapping[str, Any]) -> bool:
    """Says if a pass runs in evaluation mode, without checkpointing, and is asked for no hidden states or attention weights."""
    asked = ("output_hidden_states", "output_attentions")
    more = any(inputs.get(name) or getattr(module.config, name, False) for name in asked)
    # In training mode the base's own dropout draws for whole grids. A checkpointed layer runs twice, and must find the same
    # both times. And hidden states or attention weights would be handed out in a form that nobody expects.
    return not (module.training or more or any(layer.gradient_checkpointing for layer in layers))
