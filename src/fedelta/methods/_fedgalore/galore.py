"""GaLore's subspaces: which side of a weight is projected, on what basis, and how moments follow when the basis changes.

A weight W (o, i) is trained as W + scale * B A with one factor frozen to an orthonormal basis and the other, the coordinates,
started at zero. With the basis fixed this is GaLore on W: the gradient of the coordinates is scale times the projected
gradient, and the gradient of W is never formed.

Both sides are handled in one orientation: a basis has orthonormal columns (n, r), and coordinates are (m, r), where
n = o, m = i if A is trained (GaLore's left basis), n = i, m = o if B is trained (its right basis).

Source: Zhao et al., "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection", arXiv 2403.03507 (ICML 2024).
Transport of moments: Robert et al., "LDAdam", arXiv 2410.16103 (ICLR 2025), completed by us.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fedelta import lowrank as lr
from fedelta import seeding
from fedelta.lowrank import LoRA
from fedelta.tree import Factor

Side: TypeAlias = Literal["galore", "small_state"]
"""The side of a weight that is projected: the shorter, as GaLore does, or the longer."""


def trained_factor(shape: tuple[int, int], side: Side = "galore") -> Factor:
    """Returns the factor that holds the coordinates of a weight (o, i).

    GaLore projects the shorter side: B is trained where o > i, A where o < i. "small_state" does the opposite, which makes
    coordinates and moments smaller and the basis larger. For o = i the paper projects on the left; its code does on the right,
    and so does this.
    """
    o, i = shape
    return "B" if o == i or (o > i) == (side == "galore") else "A"


def coordinates(x: LoRA, which: Factor) -> Tensor:
    """Returns the trained factor as (m, r)."""
    return x.B if which == "B" else x.A.mT


def basis_of(x: LoRA, which: Factor) -> Tensor:
    """Returns the frozen factor as (n, r)."""
    return x.A.mT if which == "B" else x.B


def project_back(C: Tensor, basis: Tensor, which: Factor, scale: float) -> LoRA:
    """Returns the delta of coordinates (m, r) on a basis (n, r): the inverse of `coordinates` and `basis_of`."""
    B, A = (C, basis.mT) if which == "B" else (basis, C.mT)
    return LoRA(B.contiguous(), A.contiguous(), scale)


def seeded_basis(seed: int, epoch: int, layer: str, length: int, rank: int) -> Tensor:
    """Returns a random orthonormal basis, float64 (length, rank), the same wherever it is drawn; on the CPU."""
    draw = seeding.generator(seed, epoch, seeding.SERVER, "galore basis", layer)
    return torch.linalg.qr(torch.randn(length, rank, generator=draw, dtype=torch.float64)).Q


def leading_basis(x: LoRA, which: Factor, rank: int) -> Tensor:
    """Returns `rank` leading singular vectors, float64 (n, rank), on the side that is frozen; completed where x has fewer."""
    U, _, Vh = lr.svd(x)
    return completed_basis(Vh.mT if which == "B" else U, rank)


def completed_basis(columns: Tensor, rank: int) -> Tensor:
    """Returns the first `rank` of orthonormal columns (n, q), with further ones, orthogonal to them, where q < rank."""
    missing = rank - columns.shape[1]
    return columns[:, :rank] if missing <= 0 else torch.cat([columns, lr.complete_rows(columns.mT, missing).mT], dim=1)


def transport(v: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Transports second moments (m, r) on the basis `old` (n, r) to moments (m, q) on the basis `new` (n, q).

    For independent coordinates of mean zero and C = new^T old, the moments on `new` are v (C o C)^T, with o the elementwise
    product. What a new direction has outside the old span is not known; it counts with the mean over the old coordinates:

        v' = v (C o C)^T + mean_j(v_j) (1 - (C o C) 1)^T

    So moments that are alike in all coordinates stay as they are, and none turns negative.
    """
    squares = (new.mT.to(torch.float64) @ old.to(torch.float64)).square()
    unknown = (1 - squares.sum(dim=1)).clamp(min=0)
    v64 = v.to(torch.float64)
    return (v64 @ squares.mT + v64.mean(dim=1, keepdim=True) * unknown).to(v.dtype)
