"""Choosing components of all layers together by what training adds to dW, and training and sending those alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedelta.lowrank import LoRA
from fedelta.method import GradientHook
from fedelta.tree import Adapter, Factor, Tensors


def scores(which: Factor, before: Adapter, after: Adapter) -> dict[str, Tensor]:
    """Returns by layer how much training one factor added to dW at each component, (r,): ||dB_j A_j|| = ||dB_j|| ||A_j||."""

    def of(x: LoRA, y: LoRA) -> Tensor:
        B, A = (y.B - x.B, x.A) if which == "B" else (x.B, y.A - x.A)
        return abs(x.scale) * B.norm(dim=0) * A.norm(dim=1)

    return {n: of(x, after.layers[n]) for n, x in before.layers.items()}


def best(scores: Tensors, count: int) -> dict[str, list[int]]:
    """Returns by layer, ascending, the components with the `count` largest scores of all layers together.

    Of those that tie the first ones are taken.
    """
    order = torch.cat(list(scores.values())).argsort(descending=True, stable=True)
    chosen = torch.zeros(len(order), dtype=torch.bool).index_fill(0, order[:count], True)
    parts = chosen.split([len(s) for s in scores.values()])
    return {n: part.nonzero()[:, 0].tolist() for n, part in zip(scores, parts, strict=True)}


def only_at(which: Factor, kept: Mapping[str, Sequence[int]]) -> GradientHook:
    """Returns a gradient hook that leaves the kept components of a factor to train."""

    def mask(grads: Tensors, params: Tensors, step: int) -> Tensors:
        masked = dict(grads)
        for layer, components in kept.items():
            name = f"{layer}.lora_{which}"
            if name in masked:
                nothing = torch.zeros_like(grads[name])
                masked[name] = put(which, nothing, components, take(which, grads[name], components))
        return masked

    return mask


def take(which: Factor, x: Tensor, components: Sequence[int]) -> Tensor:
    """Returns some columns of B, or rows of A."""
    return x.index_select(1 if which == "B" else 0, torch.tensor(components, dtype=torch.long, device=x.device))


def put(which: Factor, x: Tensor, components: Sequence[int], values: Tensor) -> Tensor:
    """Returns B with some columns replaced, or A with some rows."""
    index = torch.tensor(components, dtype=torch.long, device=x.device)
    return x.index_copy(1 if which == "B" else 0, index, values)


def check_kept(which: Factor, x: Tensor, components: Sequence[int], values: Tensor, who: str) -> None:
    """Raises ValueError, beginning with `who`, unless `values` can replace these components of x."""
    axis = 1 if which == "B" else 0
    expected = [len(components) if d == axis else n for d, n in enumerate(x.shape)]
    if len(set(components)) < len(components) or not set(components) <= set(range(x.shape[axis])):
        raise ValueError(f"{who} sends components {list(components)}: each must be one of {x.shape[axis]}, and once")
    if list(values.shape) != expected:
        raise ValueError(f"{who} sends {which} of shape {tuple(values.shape)} for {len(components)} components, not {expected}")
