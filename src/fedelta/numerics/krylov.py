"""The leading singular triplets of a product of many components, without factorising it.

A randomised range finder with power iterations (Halko, Martinsson and Tropp 2011), which keeps every power that it has formed:
block Krylov iteration (Musco and Musco 2015, arXiv 1504.05477). It takes a few products with dW where an exact factorisation of
R components takes O(R^3), and knows how far it still is from the best answer. Letters are those of `lowrank`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fedelta.seeding import SERVER, generator

OVERSAMPLING = 8
"""Columns of a block beyond those that are wanted."""

TOLERANCE = 1e-6
"""The excess error at which the iteration stops."""

SHARE = 2
"""The basis grows to one part in so many of the full rank; up to there it costs less than an exact factorisation."""

NEGLIGIBLE = 1e-20
"""A loss of energy below this share of the energy that was found is round-off."""


class Triplets(NamedTuple):
    """The singular triplets that were found: U (o, count), S (count,) descending, Vh (count, i).

    `excess` is e for an approximation whose Frobenius error is estimated to be at most 1 + e times that of the best one.
    """

    U: Tensor
    S: Tensor
    Vh: Tensor
    excess: float


def width(count: int) -> int:
    """The columns of a block when `count` triplets are wanted."""
    return count + OVERSAMPLING


def leading(B: Tensor, A: Tensor, count: int) -> Triplets:
    """The `count` leading singular triplets of dW = B A; the same bits at every call.

    With Q an orthonormal basis and W = dW^T Q, the answer is the best one inside the span of Q, which grows by one block of
    dW dW^T Q until its excess error is below `TOLERANCE`, or the basis too large.

    Args:
        B: shape (o, R), float64.
        A: shape (R, i), float64.
        count: at most min(R, o, i) / 2, less `OVERSAMPLING`.
    """
    block, most = width(count), max(2 * width(count), min(B.shape[1], B.shape[0], A.shape[1]) // SHARE)
    start = B @ (A @ _gaussian(A.shape[1], block).to(A.device))
    Q = torch.linalg.qr(start).Q
    W = A.mT @ (B.mT @ Q)
    while True:
        beyond = _outside(Q, B @ (A @ W[:, -block:]))
        excess = _excess(Q, W, beyond, start, count)
        if excess <= TOLERANCE or Q.shape[1] + block > most:
            return Triplets(*_within(Q, W, count), excess)
        new = torch.linalg.qr(_outside(Q, torch.linalg.qr(beyond).Q)).Q  # again, for the digits that a small remainder lost
        Q, W = torch.cat([Q, new], dim=1), torch.cat([W, A.mT @ (B.mT @ new)], dim=1)


def _gaussian(rows: int, columns: int) -> Tensor:
    source = generator(0, 0, SERVER, "krylov", "")
    return torch.randn(rows, columns, generator=source, dtype=torch.float64)


def _outside(Q: Tensor, X: Tensor) -> Tensor:
    """(I - Q Q^T) X."""
    X = X - Q @ (Q.mT @ X)
    return X - Q @ (Q.mT @ X)


def _excess(Q: Tensor, W: Tensor, beyond: Tensor, start: Tensor, count: int) -> float:
    """Estimates how much larger the error of the answer inside Q is than that of the best one, relative to the latter.

    M = dW dW^T has the Ritz values theta in Q, and its Ritz vector u misses being an eigenvector by `beyond` times the last
    entries of u. So theta_j is too small by at most that residual, and by at most its square over the gap to the values that
    are not wanted; the sum of these is the energy lost. The energy that even the best answer leaves out is that of `start`,
    dW times Gaussian columns, outside the answer.
    """
    theta, u = torch.linalg.eigh(W.mT @ W)
    theta, u = theta.flip(0), u.flip(1)
    residual = (beyond @ u[-beyond.shape[1] :, :count]).norm(dim=0)
    gap = (theta[:count] - theta[count]).clamp(min=torch.finfo(theta.dtype).tiny)
    lost = torch.minimum(residual, residual.square() / gap).sum()
    if lost <= NEGLIGIBLE * theta[:count].sum():
        return 0.0
    U = Q @ u[:, :count]
    left = (start - U @ (U.mT @ start)).square().sum() / start.shape[1]
    return float(lost / (2 * left))


def _within(Q: Tensor, W: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading triplets of Q Q^T dW = Q W^T."""
    V, R = torch.linalg.qr(W)
    U, S, Vh = torch.linalg.svd(R.mT)
    return Q @ U[:, :count], S[:count], Vh[:count] @ V.mT
