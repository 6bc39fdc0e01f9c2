"""The mean of each component over the clients that have it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fedelta import lowrank as lr
from fedelta.lowrank import LoRA


def owner_mean_factors(weights: Sequence[float], xs: Sequence[LoRA], old: LoRA) -> LoRA:
    """Returns both factors by `owner_mean`; a component that no input has is that of `old`. All must have one scale."""
    B = owner_mean(weights, [x.B for x in xs], old.B)
    A = owner_mean(weights, [x.A.mT for x in xs], old.A.mT).mT
    return LoRA(B, A.contiguous(), old.scale)


def owner_mean(weights: Sequence[float], columns: Sequence[Tensor], old: Tensor) -> Tensor:
    """Returns columns of which column j is the weighted mean of column j over the inputs that have one, else column j of `old`.

    Args:
        weights: one for each input; those of a column's owners are normalised to sum one.
        columns: shape (n, r_k), factors B or transposed factors A.
        old: shape (n, r) with r at least every r_k.
    """
    # Between two neighbouring ranks all columns have the same owners, so that they are averaged at once.
    edges = sorted({c.shape[1] for c in columns})
    parts = [_band(weights, columns, old, low, high) for low, high in pairwise([0, *edges])]
    return torch.cat([*parts, old[:, edges[-1] :]], dim=1)


def _band(weights: Sequence[float], columns: Sequence[Tensor], old: Tensor, low: int, high: int) -> Tensor:
    owners = [(w, c[:, low:high]) for w, c in zip(weights, columns, strict=True) if c.shape[1] >= high]
    share = sum(w for w, _ in owners)
    if not share > 0:
        return old[:, low:high]
    return lr.mean([w / share for w, _ in owners], [c for _, c in owners])
