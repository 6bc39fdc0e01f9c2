"""Makes gradient checkpointing, where layers keep nothing for the backward pass and run again in it, draw alike both times.

Whether a model does so is its own setting (`model.gradient_checkpointing_enable()`). But transformers obeys it in training mode
only, in which the base's own dropout would draw. And the second run would draw other adapter dropout than the first, since our
generators are not torch's global one. Layers run by `Recomputed` stay in the base's mode, and draw the same both times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from fedelta import seeding

Sources: TypeAlias = Callable[[], Sequence[torch.Generator]]
"""Returns the generators that adapter dropout is drawn from in the step that runs."""


def recompute(module: nn.Module, sources: Sources | None) -> None:
    """Runs the layers for which a model has enabled checkpointing twice in training; for None, in evaluation, they run once.

    Models whose layers are not transformers' `GradientCheckpointingLayer` are left alone: they run once.
    """
    layers: list[Any] = [m for m in module.modules() if isinstance(m, GradientCheckpointingLayer)]
    for layer in layers:
        if layer.gradient_checkpointing:
            layer.training = module.training
            if sources is not None:
                layer._gradient_checkpointing_func = Recomputed(layer, sources)
                layer.training = True


def as_checkpointed_before(module: nn.Module) -> None:
    """Gives the layers back what ran them before `recompute`."""
    recompute(module, None)
    layers: list[Any] = [m for m in module.modules() if isinstance(m, GradientCheckpointingLayer)]
    for layer in layers:
        ours = vars(layer).get("_gradient_checkpointing_func")
        if isinstance(ours, Recomputed):
            layer._gradient_checkpointing_func = ours.before


class Recomputed:
    """Runs a layer that is checkpointed; transformers calls it.

    Args:
        layer: in the mode, training or evaluation, that it is to run in.
        sources: of the adapter dropout inside it.

    Attributes:
        before: what ran the layer before, for `as_checkpointed_before`.
    """

    def __init__(self, layer: nn.Module, sources: Sources) -> None:
        self.layer, self.sources, self.training = layer, sources, layer.training
        current: Any = vars(layer).get("_gradient_checkpointing_func")
        self.before: Any = current.before if isinstance(current, Recomputed) else current

    def __call__(self, forward: Callable[..., Any], *args: Any) -> Any:
        # Without a key-value cache, to which the second run would add its keys once more.
        args = tuple(None if isinstance(x, Cache) else x for x in args)
        # Not the reentrant kind, even if the model asks for it: that one does not work with torch.autograd.grad.
        return checkpoint(
            self._run, forward, *args, use_reentrant=False, preserve_rng_state=self.training, context_fn=self._contexts
        )

    def _run(self, forward: Callable[..., Any], *args: Any) -> Any:
        self.layer.training = self.training
        try:
            return forward(*args)
        finally:
            self.layer.training = True  # transformers checkpoints only layers in training mode

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), seeding.repeatable(self.sources())()
