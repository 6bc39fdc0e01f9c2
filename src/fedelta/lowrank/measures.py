"""Numbers about a delta or a subspace: spectrum, ranks, energies and principal angles."""

from __future__ import annotations

import torch
from torch import Tensor


def numerical_rank(S: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> int:
    """The fewest leading singular values that leave out no more than round-off, relative to the norm of all.

    Round-off is that of a matrix of this dtype, or of the factorisation in float64 where that is larger. A bound on each
    value alone would let a float32 matrix with a long tail lose ten times its precision.
    """
    tolerance = max(4 * torch.finfo(dtype).eps, max(shape) * torch.finfo(torch.float64).eps)
    tails = S.square().flip(0).cumsum(0).flip(0).sqrt()
    return int((tails > tolerance * S.norm()).sum())


def effective_rank(S: Tensor) -> float:
    """exp(entropy of sigma / sum sigma) of a spectrum (Roy and Vetterli 2007); 0 for a zero matrix."""
    total = S.sum()
    if not total > 0:
        return 0.0
    p = (S / total).clamp(min=0)
    return float(torch.exp(torch.special.entr(p).sum()))


def stable_rank(S: Tensor) -> float:
    """||.||_F^2 / ||.||_2^2 of a spectrum; 0 for a zero matrix."""
    top = S.max() if S.numel() else S.new_zeros(())
    return float((S / top).square().sum()) if top > 0 else 0.0


def higher_rank_energy(S: Tensor, r_min: int) -> float:
    """The share of ||dW||_F^2 beyond the first `r_min` singular values, in [0, 1); 0 for a zero matrix.

    With r_min the smallest rank of a federation it falls towards 0 when the higher ranks fade: rank collapse (Wu et al. 2026,
    arXiv 2602.13486, as 1 - rho).

    Raises:
        ValueError: for an `r_min` below 1.
    """
    if r_min < 1:
        raise ValueError(f"r_min must be a rank of at least 1, got {r_min}")
    energy = S.square()
    total = energy.sum()
    return float(energy[r_min:].sum() / total) if total > 0 else 0.0


def basis(columns: Tensor, *, rtol: float | None = None) -> Tensor:
    """An orthonormal basis, float64 (n, q), of the span of the columns (n, r).

    q is the numerical rank: a zero matrix has an empty basis, where a bare QR would return arbitrary columns.
    """
    if not columns.shape[1]:
        return columns.to(torch.float64)
    U, S, _ = torch.linalg.svd(columns.to(torch.float64), full_matrices=False)
    rtol = max(columns.shape) * torch.finfo(columns.dtype).eps if rtol is None else rtol
    return U[:, S > S.max() * rtol] if S.max() > 0 else U[:, :0]


def principal_angles(x: Tensor, y: Tensor) -> Tensor:
    """The principal angles in radians, ascending, between the column spans of x (n, r) and y (n, q).

    One angle for each dimension of the smaller span; none if either matrix is zero. For row spans pass the transposes.
    """
    return angles_between(basis(x), basis(y))


def angles_between(P: Tensor, Q: Tensor) -> Tensor:
    """`principal_angles` between the spans of orthonormal columns, such as those of `basis`.

    Small angles come from sines, large ones from cosines (Bjorck and Golub 1973), so both ends are accurate.
    """
    if P.shape[1] < Q.shape[1]:
        P, Q = Q, P
    cosines = torch.linalg.svdvals(P.mT @ Q).clamp(max=1)
    sines = torch.linalg.svdvals(Q - P @ (P.mT @ Q)).clamp(max=1).flip(0)
    return torch.where(cosines.square() < 0.5, torch.arccos(cosines), torch.arcsin(sines))
