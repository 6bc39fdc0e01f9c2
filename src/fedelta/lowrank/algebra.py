"""Sums, means, stacks and distances of deltas, on their factors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from fedelta.lowrank.decompositions import pad
from fedelta.lowrank.value import LoRA, SigmaOn, Weight, wide


def mean(weights: Sequence[float], xs: Iterable[Tensor]) -> Tensor:
    """x_0 + sum_k w_k (x_k - x_0): the weighted mean, for weights that sum to one.

    Written on differences, so that identical copies come back bit for bit whatever the weights. Of an iterator's tensors only
    three are held at a time, however many there are.
    """
    others = iter(xs)
    given = next(others)
    first = given.to(wide(given.dtype))
    total = torch.zeros_like(first)
    for w, x in zip(weights[1:], others, strict=True):
        difference = x.to(first.dtype) - first
        difference *= w
        total += difference
        del difference  # or it would stay while the next one is made
    total += first
    return total.to(given.dtype)


def mean_factors(weights: Sequence[float], xs: Sequence[LoRA]) -> LoRA:
    """(sum_k w_k B_k, sum_k w_k A_k): the mean of factors (FedIT).

    Differs from the mean of deltas by the cross terms B_j A_k, j != k. All inputs must have the rank and the scale of
    the first; `rescale` and `pad` bring them there.

    Raises:
        ValueError: for unequal ranks or scales.
    """
    _demand_same(xs, "rank")
    _demand_same(xs, "scale")
    return LoRA(mean(weights, [x.B for x in xs]), mean(weights, [x.A for x in xs]), xs[0].scale)


def stack(weights: Sequence[Weight], xs: Sequence[LoRA], *, dtype: torch.dtype | None = None) -> LoRA:
    """sum_k w_k dW_k exactly, as one operator of rank R = sum_k r_k and scale 1.

    Args:
        weights: one number for each input, or a vector (r_k,) with one weight for each of its components.
        xs: deltas of one layer, of any ranks and scales.
        dtype: of the result, by default that of the first input. The weights and scales are multiplied in before the
            cast, in float64, so ask for float64 where more work follows.
    """
    dtype, R = dtype or xs[0].dtype, sum(x.rank for x in xs)
    B, A = xs[0].B.new_empty(xs[0].shape[0], R, dtype=dtype), xs[0].A.new_empty(R, xs[0].shape[1], dtype=dtype)
    low = 0
    for w, x in zip(weights, xs, strict=True):  # into place, since a list of parts would take the memory twice
        B[:, low : low + x.rank] = _weighted(w, x)
        A[low : low + x.rank] = x.A
        low += x.rank
    return LoRA(B, A)


def _weighted(weight: Weight, x: LoRA) -> Tensor:
    factor = weight.to(x.B.device, torch.float64) if isinstance(weight, Tensor) else weight
    return x.B.to(torch.float64) * (factor * x.scale)


def _demand_same(xs: Sequence[LoRA], what: Literal["rank", "scale"]) -> None:
    values = [getattr(x, what) for x in xs]
    if any(v != values[0] for v in values):
        raise ValueError(f"the mean of factors needs equal {what}s, got {values}: rescale or pad first, or stack")


def components(x: LoRA, low: int, high: int) -> LoRA:
    """The rank-one terms low, ..., high - 1."""
    return LoRA(x.B[:, low:high], x.A[low:high], x.scale)


def bands(x: LoRA, edges: Sequence[int]) -> list[LoRA]:
    """The components between successive edges: edges (2, 5) of a rank-8 delta give 0-2, 2-5 and 5-8."""
    return [components(x, low, high) for low, high in pairwise([0, *edges, x.rank]) if high > low]


def rescale(x: LoRA, scale: float, *, on: SigmaOn = "B") -> LoRA:
    """The same dW written with another scale; the very same tensors where the scale is already that.

    `on` says which factor takes the ratio s / s': "both" puts its square root on each. A component whose column of B is zero
    keeps its row of A whatever `on` says: dW would not show the ratio, and rows that are common to all stay common.

    Raises:
        ValueError: for a scale that cannot write dW: zero, or of the other sign where a square root is to be taken.
    """
    if scale == x.scale:
        return x
    if scale == 0 or (on == "both" and x.scale / scale < 0):
        raise ValueError(f"a delta of scale {x.scale} cannot be written with scale {scale}; check lora_alpha")
    ratio = x.scale / scale
    if on == "B":
        return LoRA(x.B * ratio, x.A, scale)
    idle = ~x.B.any(dim=0)
    B, A = (x.B * ratio**0.5, x.A * ratio**0.5) if on == "both" else (x.B, x.A * ratio)
    return LoRA(B, torch.where(idle[:, None], x.A, A), scale)


def inner(x: LoRA, y: LoRA) -> Tensor:
    """<dW_x, dW_y> (Frobenius) from two small Gram matrices; differentiable."""
    return x.scale * y.scale * ((x.B.mT @ y.B) * (x.A @ y.A.mT)).sum()


def norm(x: LoRA) -> Tensor:
    """||dW||_F, without forming dW."""
    return inner(x, x).clamp(min=0).sqrt()


def difference(x: LoRA, y: LoRA) -> LoRA:
    """dW_x - dW_y at scale 1, as `[s_x B_x - s_y B_y, s_y B_y] [A_x; A_x - A_y]`: small where the two are near each other.

    Its inner products keep their digits there, as those of a stack of x and -y do not.
    """
    rank = max(x.rank, y.rank)
    x, y = pad(x, rank, live=False), pad(y, rank, live=False)
    left = torch.cat([x.scale * x.B - y.scale * y.B, y.scale * y.B], dim=1)
    return LoRA(left, torch.cat([x.A, x.A - y.A], dim=0))


def dist2(x: LoRA, y: LoRA) -> Tensor:
    """||dW_x - dW_y||_F^2, differentiable, never negative.

    Written on the `difference`: the textbook <x,x> - 2<x,y> + <y,y> loses all digits in float32 when a client has moved by
    1e-4, and costs the same.
    """
    d = difference(x, y)
    return inner(d, d).clamp(min=0)
