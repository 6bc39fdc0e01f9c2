"""Rates at which a graph mixes, and the demands on a mixing matrix.

Two conventions are in the literature, so both numbers are named: `rho_lin` bounds what one round leaves of the distance to
consensus, `rho_sq` what it leaves of its square. That the gap predicts how well a model trains at a tuned learning rate is
disputed (Vogels et al., NeurIPS 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fedelta.topology.graphs import Edges, connected

Mixing: TypeAlias = Tensor | Callable[[int], Tensor]
"""A mixing matrix, or t -> the one of round t, the same on every call."""


def at(mixing: Mixing, t: int) -> Tensor:
    """The mixing matrix of round t."""
    return mixing if isinstance(mixing, Tensor) else mixing(t)


def rho_lin(W: Tensor) -> float:
    """||W - J||_2 with J = 1/n everywhere: what one round leaves of the distance to consensus, at worst.

    For a symmetric W it is max(|lambda_2|, |lambda_n|). 0 for the complete graph; 1 for a graph in parts, which never agree.
    """
    check_mixing(W, W.shape[0])
    return float(torch.linalg.matrix_norm(W - 1 / W.shape[0], 2))


def rho_sq(W: Tensor) -> float:
    """rho_lin squared: what one round leaves of the squared distance to consensus, at worst."""
    return rho_lin(W) ** 2


def spectral_gap(W: Tensor) -> float:
    """1 - rho_lin(W)."""
    return 1 - rho_lin(W)


def expected_rho_sq(mixing: Mixing, *, rounds: int = 2000) -> float:
    """lambda_max(mean of W^T W over rounds - J): what a round leaves of the expected squared distance to consensus, at worst.

    For a matrix that is drawn anew in every round; of a fixed one it is rho_sq. A single round of a sparse random graph is
    seldom connected, so that its own rho_lin of 1 says nothing.

    Args:
        mixing: t -> W; the rounds 0, ..., `rounds` - 1 are its sample.
    """
    if isinstance(mixing, Tensor):
        return rho_sq(mixing)
    total = sum(W.mT @ W for W in map(mixing, range(rounds)))
    mean = torch.as_tensor(total) / rounds
    return min(1.0, max(0.0, float(torch.linalg.eigvalsh(mean - 1 / mean.shape[0])[-1])))


def numbers(mixing: Mixing, *, rounds: int = 2000) -> dict[str, Any]:
    """`rho_lin`, `rho_sq` and `spectral_gap`; `expected` says whether they are those of a random graph, by sampling."""
    square = expected_rho_sq(mixing, rounds=rounds)
    return {
        "rho_lin": math.sqrt(square),
        "rho_sq": square,
        "spectral_gap": 1 - math.sqrt(square),
        "expected": not isinstance(mixing, Tensor),
    }


def is_connected(W: Tensor) -> bool:
    """Returns True if what any node has can reach any other, if W stays."""
    return connected(W.shape[0], links_of(W))


def is_symmetric(W: Tensor) -> bool:
    """Returns True if both ends of every link give each other the same weight."""
    return bool((W - W.mT).abs().max() < 1e-9)


def links_of(W: Tensor) -> Edges:
    """The pairs of nodes of which one at least hears the other, as edges."""
    return [(i, j) for i, j in ((W + W.mT) != 0).triu(1).nonzero().tolist()]


def check_mixing(W: Tensor, n: int) -> None:
    """Raises ValueError unless W is n x n and non-negative, with rows and columns of sum one."""
    if W.shape != (n, n):
        raise ValueError(f"the mixing matrix has shape {tuple(W.shape)}, but there are {n} nodes: it must be {(n, n)}")
    if not bool((W >= 0).all()):
        raise ValueError(f"a mixing matrix has no negative entries, got {float(W.min())}; `metropolis` makes one of any graph")
    for name, sums in (("rows", W.sum(1)), ("columns", W.sum(0))):
        if not bool((sums - 1).abs().max() < 1e-9):
            raise ValueError(f"the {name} of a mixing matrix have sum 1, got {sums.tolist()}; `metropolis` makes one")
