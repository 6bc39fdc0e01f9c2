"""Graphs for gossip: mixing matrices and how fast they mix.

A mixing matrix W (n, n) is float64, symmetric and doubly stochastic: W[i, j] is the weight that node i gives to what it hears
from node j, W[i, i] to its own. Nodes are numbered in the order of their ids.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def complete(n: int) -> Tensor:
    """All nodes hear all nodes: every entry 1 / n, so that one round reaches the mean."""
    _demand_nodes(n)
    return torch.full((n, n), 1 / n, dtype=torch.float64)


def ring(n: int) -> Tensor:
    """Each node hears its two neighbours, with Metropolis weights: 1/3 each for n >= 3."""
    _demand_nodes(n)
    return metropolis(n, [(k, (k + 1) % n) for k in range(n) if n > 1])


def metropolis(n: int, edges: Iterable[tuple[int, int]]) -> Tensor:
    """W[i, j] = 1 / (1 + max(degree_i, degree_j)) on the edges of a graph, the rest on the diagonal (Xiao and Boyd 2004).

    Args:
        n: nodes.
        edges: pairs of nodes; direction and repetition do not matter.

    Raises:
        ValueError: for an edge from a node to itself or to a node that does not exist.
    """
    pairs = sorted({(min(e), max(e)) for e in edges})
    degree = [0] * n
    for i, j in pairs:
        if i == j or i < 0 or j >= n:
            raise ValueError(f"edge {(i, j)} does not join two of the nodes 0, ..., {n - 1}")
        degree[i], degree[j] = degree[i] + 1, degree[j] + 1
    W = torch.zeros(n, n, dtype=torch.float64)
    for i, j in pairs:
        W[i, j] = W[j, i] = 1 / (1 + max(degree[i], degree[j]))
    return W + torch.diag(1 - W.sum(1))


def rho(W: Tensor) -> float:
    """max(|lambda_2|, |lambda_n|): the factor by which one round shrinks the distance to consensus, at worst.

    1 - rho is the spectral gap. 0 for the complete graph; 1 for a graph in two parts, which never agree.
    """
    check_mixing(W, W.shape[0])
    moduli = torch.linalg.eigvalsh(W).abs().sort(descending=True).values
    return float(moduli[1]) if len(moduli) > 1 else 0.0


def spectral_gap(W: Tensor) -> float:
    """1 - rho(W)."""
    return 1 - rho(W)


def check_mixing(W: Tensor, n: int) -> None:
    """Raises ValueError unless W is n x n, symmetric, non-negative, with rows of sum one."""
    if W.shape != (n, n):
        raise ValueError(f"the mixing matrix has shape {tuple(W.shape)}, but there are {n} nodes: it must be {(n, n)}")
    if not bool((W >= 0).all() and (W - W.mT).abs().max() < 1e-9):
        raise ValueError("a mixing matrix is symmetric without negative entries; `metropolis` makes one from any graph")
    if not bool((W.sum(1) - 1).abs().max() < 1e-9):
        raise ValueError(f"the rows of a mixing matrix have sum 1, got {W.sum(1).tolist()}; `metropolis` makes one")


def _demand_nodes(n: int) -> None:
    if n < 1:
        raise ValueError(f"a graph needs at least one node, got {n}")
