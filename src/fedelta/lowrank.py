"""Low-rank algebra: the only module that multiplies factors together.

Shape letters, here and in every method: o = d_out, i = d_in, r = rank, R = stacked rank (the sum of ranks), k = client.
A layer's delta is  dW = scale * B @ A  with B (o, r) and A (r, i): PEFT's orientation and names.

Factorisations run in float64 whatever the input, since a float32 QR misses 1e-6 already at d = 384; results return in the
input's dtype. Nothing here forms dW, an o x i matrix, except `LoRA.dense`, and the factorisations when the stacked rank
exceeds min(o, i), where dW is the smaller of the two.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from fedelta import krylov
from fedelta.threads import one_thread

logger = logging.getLogger(__name__)

SigmaOn: TypeAlias = Literal["A", "B", "both"]
"""Which factor carries the singular values after a truncation."""

Weight: TypeAlias = float | Tensor
"""A client's weight, or one weight for each of its components, shape (r,)."""

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


@dataclass(frozen=True, eq=False)
class LoRA:
    """The delta of one layer as an operator: dW = scale * B @ A.

    Attributes:
        B: shape (o, r).
        A: shape (r, i).
        scale: lora_alpha / r, lora_alpha / sqrt(r) (rsLoRA) or any constant. It is part of the value.

    Raises:
        ValueError: if the factors are not matrices that multiply, or the scale is NaN or Inf.
    """

    B: Tensor
    A: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.B.ndim != 2 or self.A.ndim != 2 or self.B.shape[1] != self.A.shape[0]:
            raise ValueError(
                f"B (o, r) and A (r, i) must share the rank r; got B {tuple(self.B.shape)} and A {tuple(self.A.shape)}"
            )
        if not math.isfinite(self.scale):
            raise ValueError(f"the scale of a delta must be a finite number, got {self.scale}; check lora_alpha")

    @property
    def rank(self) -> int:
        """The number of components, r."""
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i), the shape of dW."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.B.dtype

    def to(self, *args: Any) -> LoRA:
        """Both factors moved or cast, as `Tensor.to`."""
        return LoRA(self.B.to(*args), self.A.to(*args), self.scale)

    def dense(self) -> Tensor:
        """dW itself, (o, i): for tests and for what is written into a weight, never inside an aggregation."""
        return self.scale * (self.B @ self.A)


# --- sums ------------------------------------------------------------------------------------------------------------


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over clients are formed: float32, or wider if the input is."""
    return torch.promote_types(dtype, torch.float32)


def mean(weights: Sequence[float], xs: Sequence[Tensor]) -> Tensor:
    """x_0 + sum_k w_k (x_k - x_0): the weighted mean, for weights that sum to one.

    Written on differences, so that identical copies come back bit for bit whatever the weights.
    """
    first = xs[0].to(wide(xs[0].dtype))
    total = torch.zeros_like(first)
    for w, x in zip(weights[1:], xs[1:], strict=True):
        total += w * (x.to(first.dtype) - first)
    return (first + total).to(xs[0].dtype)


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


def is_finite(x: Tensor) -> bool:
    """Whether no entry is NaN or Inf. The extremes say it in one pass, where `isfinite` writes out a mask."""
    return not x.numel() or all(math.isfinite(v) for v in torch.stack(torch.aminmax(x)).tolist())


def _demand_same(xs: Sequence[LoRA], what: Literal["rank", "scale"]) -> None:
    values = [getattr(x, what) for x in xs]
    if any(v != values[0] for v in values):
        raise ValueError(f"the mean of factors needs equal {what}s, got {values}: rescale or pad first, or stack")


# --- components ------------------------------------------------------------------------------------------------------


def components(x: LoRA, low: int, high: int) -> LoRA:
    """The rank-one terms low, ..., high - 1."""
    return LoRA(x.B[:, low:high], x.A[low:high], x.scale)


def bands(x: LoRA, edges: Sequence[int]) -> list[LoRA]:
    """The components between successive edges: edges (2, 5) of a rank-8 delta give 0-2, 2-5 and 5-8."""
    return [components(x, low, high) for low, high in pairwise([0, *edges, x.rank]) if high > low]


def rescale(x: LoRA, scale: float, *, on: SigmaOn = "both") -> LoRA:
    """The same dW written with another scale; the very same tensors where the scale is already that.

    `on` says which factor takes the ratio s / s': "both" puts its square root on each.

    Raises:
        ValueError: for a scale that cannot write dW: zero, or of the other sign where a square root is to be taken.
    """
    if scale == x.scale:
        return x
    if scale == 0 or (on == "both" and x.scale / scale < 0):
        raise ValueError(f"a delta of scale {x.scale} cannot be written with scale {scale}; check lora_alpha")
    ratio = x.scale / scale
    if on == "both":
        return LoRA(x.B * ratio**0.5, x.A * ratio**0.5, scale)
    return LoRA(x.B * ratio, x.A, scale) if on == "B" else LoRA(x.B, x.A * ratio, scale)


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


# --- factorisations --------------------------------------------------------------------------------------------------


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


def numerical_rank(S: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> int:
    """The fewest leading singular values that leave out no more than round-off, relative to the norm of all.

    Round-off is that of a matrix of this dtype, or of the factorisation in float64 where that is larger. A bound on each
    value alone would let a float32 matrix with a long tail lose ten times its precision.
    """
    tolerance = max(4 * torch.finfo(dtype).eps, max(shape) * torch.finfo(torch.float64).eps)
    tails = S.square().flip(0).cumsum(0).flip(0).sqrt()
    return int((tails > tolerance * S.norm()).sum())


# --- inner products and distances ------------------------------------------------------------------------------------


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


# --- spectra and subspaces -------------------------------------------------------------------------------------------


def spectrum(x: LoRA) -> Tensor:
    """The singular values of dW, descending, float64, min(r, o, i) of them."""
    return svd(x)[1]


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


def with_factor(x: LoRA, which: Literal["A", "B"], value: Tensor) -> LoRA:
    """x with one factor replaced."""
    return replace(x, B=value) if which == "B" else replace(x, A=value)
