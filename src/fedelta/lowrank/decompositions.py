"""Factorisations of a delta: singular values, truncation, gauges and padding.

They run in float64 whatever the input, since a float32 QR misses 1e-6 already at d = 384; results return in the input's dtype.
"""

from __future__ import annotations

import logging
import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from fedelta.lowrank.measures import basis, numerical_rank
from fedelta.lowrank.value import LoRA, SigmaOn, is_finite
from fedelta.numerics import krylov
from fedelta.numerics.threads import one_thread

logger = logging.getLogger(__name__)


SvdKind: TypeAlias = Literal["auto", "exact", "randomised"]
"""How the leading components are found.

"exact" factorises the stacked factors. "randomised" is `krylov.leading`: a few products with them, within an estimated 1e-6 of
the error of the best approximation, or else a warning. "auto" is exact up to a stacked rank of `LARGE`, and beyond it
randomised where the estimate keeps to 1e-6, and exact where not.
"""


LARGE = 512
"""The rank up to which "auto" is exact: an exact factorisation then takes well under a second."""


TIE = 1e-9
"""Entries within this relative distance of the largest count as tied when signs are fixed."""


def pad(x: LoRA, rank: int, *, live: bool = True, fill: Tensor | None = None) -> LoRA:
    """The same dW written with `rank` components; x itself if it has that many.

    A component with both factors zero gets no gradient and would never train again, so the new rows of A are alive while
    the new columns of B are zero.

    Args:
        rank: the rank to reach.
        live: False gives rows of zeros, for algebra on what will not be trained.
        fill: shape (>= rank, i); rows x.rank, ..., rank - 1 become the new rows of A (the common initial A, so that all
            peers agree). Without it they are orthonormal to the rows of x, and the same on every call.
    """
    extra = rank - x.rank
    if extra <= 0:
        return x
    if fill is not None:
        rows = fill[x.rank : rank].to(x.A)
    else:
        rows = complete_rows(x.A, extra) if live else x.A.new_zeros(extra, x.A.shape[1])
    return LoRA(torch.cat([x.B, x.B.new_zeros(x.B.shape[0], extra)], dim=1), torch.cat([x.A, rows]), x.scale)


def complete_rows(rows: Tensor, count: int) -> Tensor:
    """`count` unit rows, orthogonal to `rows` (r, i) and each other as far as i allows; the same on every call."""
    generator = torch.Generator().manual_seed(0x6665_6465_6C74_61)  # not 0: rows that a caller drew so would have no complement
    width = rows.shape[1]
    drawn = torch.randn(width, count, generator=generator, dtype=torch.float64).to(rows.device)
    known = basis(rows.mT)
    free = min(count, width - known.shape[1])
    for _ in range(2 if free > 0 else 0):  # the second time for the digits that the first one lost
        drawn[:, :free] -= known @ (known.mT @ drawn[:, :free])
        drawn[:, :free] = torch.linalg.qr(drawn[:, :free]).Q
    return torch.nn.functional.normalize(drawn, dim=0).mT.to(rows.dtype)


def svd(x: LoRA) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD of dW in float64, with fixed signs.

    Thin QR of both factors and an SVD of the r x r core: O((o + i) r^2 + r^3) against O(o i min(o, i)) for a dense SVD,
    and the same numbers. When r exceeds min(o, i) the dense dW is smaller, and is used.

    Returns:
        U (o, q), S (q,) descending, Vh (q, i) with q = min(r, o, i). The largest |entry| of each column of U is
        positive, the first of those that tie.
    """
    return _with_signs(*_exact(x, min(x.rank, *x.shape)))


def _leading(x: LoRA, count: int, kind: SvdKind) -> tuple[Tensor, Tensor, Tensor]:
    """The first `count` columns of U and rows of Vh, and at least as many singular values; fewer if q is smaller."""
    full, block = min(x.rank, *x.shape), krylov.width(count)
    if kind == "exact" or full < 2 * block or (kind == "auto" and full < max(LARGE, 16 * block)):
        return _with_signs(*_exact(x, count))
    found = krylov.leading(x.B.to(torch.float64), x.A.to(torch.float64), count)
    if found.excess > krylov.TOLERANCE:
        if kind == "auto":
            return _with_signs(*_exact(x, count))
        logger.warning(
            "a randomised SVD may err by %.1e more than the best of rank %d; ask for svd='exact'", found.excess, count
        )
    return _with_signs(found.U * math.copysign(1, x.scale), found.S * abs(x.scale), found.Vh)


def _exact(x: LoRA, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The thin SVD with all singular values but the first `count` vectors only: the others would cost memory for nothing."""
    B, A = x.B.to(torch.float64), x.A.to(torch.float64)
    if x.rank > min(x.shape):
        U, S, Vh = torch.linalg.svd(x.scale * (B @ A), full_matrices=False)
        return U[:, :count], S, Vh[:count]
    with one_thread() if x.rank <= LARGE else nullcontext():
        left, right = _Orthogonal.of(B), _Orthogonal.of(A.mT)
        U, S, Vh = torch.linalg.svd(x.scale * (left.R @ right.R.mT), full_matrices=False)
        return left.times(U[:, :count]), S, right.times(Vh[:count].mT).mT


@dataclass(frozen=True)
class _Orthogonal:
    """A thin QR whose Q (n, r) stays a product of reflections: a few columns of Q X cost a fraction of forming Q."""

    reflections: Tensor
    tau: Tensor

    @classmethod
    def of(cls, X: Tensor) -> _Orthogonal:
        return cls(*torch.geqrf(X))

    @property
    def R(self) -> Tensor:
        return self.reflections[: self.reflections.shape[1]].triu()

    def times(self, X: Tensor) -> Tensor:
        """Q X, for X (r, c)."""
        n, r = self.reflections.shape
        return torch.ormqr(self.reflections, self.tau, torch.cat([X, X.new_zeros(n - r, X.shape[1])]))


def _with_signs(U: Tensor, S: Tensor, Vh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    sign = _signs(U)
    return U * sign, S, Vh * sign.mT


def _signs(U: Tensor) -> Tensor:
    """(1, q): -1 for columns whose largest entry is negative."""
    if not U.numel():
        return U.new_ones(1, U.shape[1])
    size = U.abs()
    pivot = (size >= size.amax(0, keepdim=True) * (1 - TIE)).to(torch.uint8).argmax(0, keepdim=True)
    return torch.where(U.gather(0, pivot) < 0, -1.0, 1.0).to(U.dtype)


def truncate(
    x: LoRA,
    rank: int,
    *,
    scale: float = 1.0,
    sigma_on: SigmaOn = "B",
    dtype: torch.dtype | None = None,
    fill: Tensor | None = None,
    svd: SvdKind = "auto",
) -> LoRA:
    """The best rank-`rank` approximation of dW in Frobenius norm (Eckart-Young), written with `scale`.

    Always returns `rank` components. Where dW has fewer, the rest have B = 0 and a live row of A. A zero dW keeps the rows
    of A that it came with, but for rows of zeros, so that a common initial A survives a round in which nothing was learned.

    Args:
        rank: of the result, at least 1.
        scale: of the result; dW does not depend on it.
        sigma_on: the factor that carries the singular values. "B" leaves orthonormal rows in A, "A" orthonormal columns
            in B, "both" puts the square root on each.
        dtype: of the result, by default that of `x`.
        fill: the rows of A for a zero dW, shape (>= rank, i), in place of those of `x`: a stack repeats the common rows.
        svd: how; "auto" differs from "exact" only for a large stacked rank.

    Raises:
        ValueError: for a rank below 1, a scale of zero, an unknown `sigma_on` or `svd`, factors with NaN or Inf, or a result
            too large for its dtype.
    """
    _check_truncation(x, rank, scale, sigma_on, svd)
    dtype = dtype or x.dtype
    U, S, Vh = _leading(x, rank, svd)
    alive = S > S[:1].clamp(min=0) * torch.finfo(torch.float64).eps * max(x.shape)
    if not bool(alive.any()):
        rows = _without_dead((x.A if fill is None else fill)[:rank].to(dtype))
        return pad(LoRA(x.B.new_zeros(x.shape[0], rows.shape[0], dtype=dtype), rows, scale), rank)
    count = min(rank, int(alive.sum()))
    B, A = _place(U[:, :count], S[:count] / scale, Vh[:count], sigma_on)
    idle = Vh[count:rank]  # orthonormal to the rest: what a component without a singular value gets as its live row
    B = torch.cat([B, B.new_zeros(B.shape[0], idle.shape[0])], dim=1)
    B, A = B.to(dtype), torch.cat([A, idle]).to(dtype)
    if not (is_finite(B) and is_finite(A)):
        raise ValueError(f"a delta of norm {float(S.norm()):.3g} overflows {dtype} at scale {scale}; lower the learning rate")
    return pad(LoRA(B, A, scale), rank)


def _without_dead(rows: Tensor) -> Tensor:
    """`rows` (r, i), with unit rows orthogonal to the others in place of rows of zeros."""
    dead = ~rows.any(dim=1)
    if not bool(dead.any()):
        return rows
    return rows.index_put((dead,), complete_rows(rows, int(dead.sum())))


def _place(U: Tensor, S: Tensor, Vh: Tensor, sigma_on: SigmaOn) -> tuple[Tensor, Tensor]:
    if sigma_on == "B":
        return U * S, Vh
    if sigma_on == "A":
        return U, S[:, None] * Vh
    root = S.abs().sqrt()
    return U * root, (S.sign() * root)[:, None] * Vh


def _check_truncation(x: LoRA, rank: int, scale: float, sigma_on: str, svd: str) -> None:
    if rank < 1:
        raise ValueError(f"cannot truncate to rank {rank}: a rank is at least 1")
    if scale == 0 or not math.isfinite(scale):
        raise ValueError(f"a delta cannot be written with scale {scale}; check lora_alpha")
    if sigma_on not in ("A", "B", "both"):
        raise ValueError(f"sigma_on must be 'A', 'B' or 'both', got {sigma_on!r}")
    if svd not in get_args(SvdKind):
        raise ValueError(f"svd must be one of {get_args(SvdKind)}, got {svd!r}")
    if not (is_finite(x.B) and is_finite(x.A)):
        raise ValueError(f"cannot factorise a delta of shape {x.shape}: its factors hold NaN or Inf")


def orthonormal_rows(x: LoRA) -> LoRA:
    """The SVD of dW within the rows of A: the same dW, orthonormal rows of A with their old span, and B = U S.

    `truncate` with sigma_on "B" is the same where dW has rank r. For a dW of lower rank, a zero one too, the components that
    are left over stay in the span of the rows of A here, so that a subspace which is common to all is never left.

    Raises:
        ValueError: for more rows than A has columns, which cannot be orthonormal.
    """
    if x.rank > x.shape[1]:
        raise ValueError(f"{x.rank} rows of length {x.shape[1]} cannot be orthonormal; lower the rank")
    Q, L = torch.linalg.qr(x.A.to(torch.float64).mT)  # A = L^T Q^T
    B = x.B.to(torch.float64) @ L.mT
    turn = torch.linalg.svd(torch.linalg.qr(B).R, full_matrices=True).Vh  # (r, r), complete whatever the rank of B
    B, A = B @ turn.mT, turn @ Q.mT
    sign = _signs(B)
    return LoRA(B * sign, A * sign.mT, x.scale).to(x.dtype)


def from_dense(delta: Tensor, *, rank: int | None = None, sigma_on: SigmaOn = "B") -> LoRA:
    """A dense dW (o, i) as factors: exact at its numerical rank by default, else its best rank-`rank` approximation."""
    o, i = delta.shape
    eye = torch.eye(min(o, i), dtype=delta.dtype, device=delta.device)
    x = LoRA(delta, eye) if i <= o else LoRA(eye, delta)
    return truncate(x, rank or max(1, numerical_rank(spectrum(x), x.shape, delta.dtype)), sigma_on=sigma_on)


def spectrum(x: LoRA) -> Tensor:
    """The singular values of dW, descending, float64, min(r, o, i) of them."""
    return svd(x)[1]
