"""Reads a LoRA configuration: makes the peers that it describes, and refuses what the model does not have."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, cast

from peft import LoraConfig
from torch import nn

from fedelta.demands import number
from fedelta.models.base_store import delta_shape
from fedelta.models.patterns import by_layer, demand_used
from fedelta.models.peft import PeftAdaptedModel, modules_ending
from fedelta.peers import Peer
from fedelta.tasks import Task


def peers_for(
    ranks: Sequence[int],
    lora_config: LoraConfig,
    sizes: Sequence[int],
    layers: Collection[str],
    *,
    scale: float | None = None,
) -> list[Peer]:
    """Makes peers 0, 1, ... with a LoRA configuration's scales and patterns; a rank pattern beats a rank, as in PEFT.

    Args:
        ranks: one for each peer.
        lora_config: its patterns are resolved here, and nowhere later.
        sizes: the number of each peer's examples.
        layers: the names of the layers that carry the adapter.
        scale: one for every rank and layer, in place of those that follow from `lora_alpha`.

    Raises:
        ValueError: for a pattern that is not accepted, or a scale beside patterns of `lora_alpha` or rsLoRA.
    """
    if scale is not None:
        number(above=0)("scale", scale)
        if lora_config.alpha_pattern or lora_config.use_rslora:
            raise ValueError("scale is one for every layer and rank: leave alpha_pattern and rslora out, or leave scale out")
    common = Peer(
        id=0,
        rank=1,
        lora_alpha=lora_config.lora_alpha if scale is None else None,
        rslora=lora_config.use_rslora,
        rank_pattern=by_layer(lora_config.rank_pattern or {}, layers, "rank_pattern"),
        alpha_pattern=by_layer(lora_config.alpha_pattern or {}, layers, "alpha_pattern"),
        scale=1.0 if scale is None else scale,
    )
    both = zip(ranks, sizes, strict=True)
    return [replace(common, id=k, rank=rank, num_examples=size) for k, (rank, size) in enumerate(both)]


def config_for(task: Task, lora_config: LoraConfig, model: nn.Module) -> LoraConfig:
    """Returns a copy of a LoRA configuration with the task's type, if it has none, and the task's heads that the model has."""
    config = copy.deepcopy(lora_config)
    config.task_type = config.task_type or task.peft_task_type
    heads = {*(config.modules_to_save or ()), *(head for head in task.modules_to_save if modules_ending(model, head))}
    config.modules_to_save = sorted(heads) or None
    return config


def check_ranks(adapted: PeftAdaptedModel, lora_config: LoraConfig, ranks: Sequence[int]) -> None:
    """Raises ValueError for names and patterns that no layer has, and for a rank above min(o, i), which no delta needs."""
    _check_names(adapted, lora_config)
    distinct = sorted(set(ranks))
    for peer in peers_for(distinct, lora_config, [1] * len(distinct), list(adapted.adapted_layers)):
        for name, layer in adapted.adapted_layers.items():
            o, i = delta_shape(cast("Any", layer).get_base_layer())
            if peer.rank_of(name) > min(o, i):
                raise ValueError(
                    f"layer {name!r} is {o} x {i}, so that no delta of it has a rank above {min(o, i)}, but rank "
                    f"{peer.rank_of(name)} is asked for: lower it, or give the layer a rank of its own by rank_pattern"
                )


def _check_names(adapted: PeftAdaptedModel, lora_config: LoraConfig) -> None:
    """Raises ValueError for what PEFT would leave out in silence: a name in the configuration that no layer has."""
    if not isinstance(targets := lora_config.target_modules or [], str):
        demand_used(sorted(targets), _own_layers(adapted.module), "target_modules")
    for where in ("rank_pattern", "alpha_pattern"):
        demand_used(getattr(lora_config, where) or (), list(adapted.adapted_layers), where)
    for key, value in (lora_config.alpha_pattern or {}).items():
        number(above=0)(f"alpha_pattern: {key!r}", value)


def _own_layers(module: nn.Module) -> list[str]:
    """Returns the names of a model's innermost modules, without what PEFT put into them."""
    inside = (".base_layer", ".lora_", ".original_module", ".modules_to_save")
    own = [name for name, _ in module.named_modules() if not any(part in name for part in inside)]
    outer = {name.rpartition(".")[0] for name in own}
    return [name for name in own if name not in outer]
