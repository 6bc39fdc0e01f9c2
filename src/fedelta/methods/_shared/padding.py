"""Padding of factors with zeros: one scale for all, the mean of padded factors, the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.lowrank import LoRA
from fedelta.peers import Peer, slice_for
from fedelta.tree import Adapter

ScalePolicy: TypeAlias = Literal["effective", "raw"]
"""The treatment of factors whose scale is not the server's.

"effective" keeps dW: B is multiplied by s_k / s, and A stays as it is. "raw" averages and slices the bare factors, as published
codes do, so that dW changes with the receiver's scale.
"""


def padded_mean(
    weights: Sequence[float], xs: Sequence[LoRA], old: LoRA, *, scale_policy: ScalePolicy, faithful: bool = False
) -> LoRA:
    """Returns the mean of the factors padded with zeros to the rank of `old`, at its scale.

    A component that no input has comes out with both factors zero and would never train again; so its row of A is that of
    `old`, unless `faithful`.
    """
    alike = [lr.pad(with_scale(x, old.scale, scale_policy), old.rank, live=False) for x in xs]
    mean = lr.mean_factors(weights, alike)
    return mean if faithful else revive(mean, old.A)


def revive(x: LoRA, rows: Tensor) -> LoRA:
    """Returns x with rows of `rows` (r, i) in A where both factors of a component are zero; dW is the same."""
    dead = ~(x.B.any(dim=0) | x.A.any(dim=1))
    return lr.with_factor(x, "A", torch.where(dead[:, None], rows.to(x.A), x.A))


def with_scale(x: LoRA, scale: float, policy: ScalePolicy) -> LoRA:
    """Returns x at another scale: the same dW ("effective") or the same factors ("raw")."""
    return lr.rescale(x, scale) if policy == "effective" else replace(x, scale=scale)


def slice_with(adapter: Adapter, to: Peer, policy: ScalePolicy) -> Adapter:
    """Returns the leading components that a peer can hold, as `peers.slice_for`, under a scale policy."""
    if policy == "effective":
        return slice_for(adapter, to)

    def fit(layer: str, x: LoRA) -> LoRA:
        cut = lr.components(x, 0, to.rank_of(layer))
        return replace(cut, scale=to.scale_of(layer, cut.rank))

    return tree.map_named(fit, adapter)
