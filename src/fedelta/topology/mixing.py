"""Experimental: averaging over a graph beyond one product with W: directed links, compressed messages, tracked gradients.

No engine, and no method of `fedelta.methods`, uses these, so no run has tried them; names and arguments may change, or go, in
any version. They are for those who build a method without a server of their own.

X (n, d) holds the numbers of n nodes, row i those of node i, in the order of ids; `pack` and `unpack` lead from adapters to X
and back. Matrices have the convention of `fedelta.topology`: W[i, j] is the weight that node i gives to what it hears from
node j. Each algorithm is a frozen state: `start` makes it, `step` returns the next one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from fedelta import lowrank as lr
from fedelta import topology, tree
from fedelta.tree import Adapter

Compressor: TypeAlias = Callable[[Tensor], Tensor]
"""(n, d) -> what arrives of it, in the same shape; each row by itself."""

Gradient: TypeAlias = Callable[[Tensor], Tensor]
"""X -> the gradients (n, d), row i that of node i's own loss at its own row of X."""


# --- adapters --------------------------------------------------------------------------------------------------------


def pack(adapters: Sequence[Adapter]) -> Tensor:
    """X (n, d): all numbers of each adapter in a row, in float32 or wider.

    Raises:
        ValueError: for adapters of unequal layers, shapes, ranks or scales, whose numbers do not mean the same.
    """
    tree.check_alike(adapters)
    for name in adapters[0].layers:
        held = [(a.layers[name].rank, a.layers[name].scale) for a in adapters]
        if len(set(held)) > 1:
            raise ValueError(f"layer {name!r}: nodes mix factors of one rank and scale, got {held}; pad and rescale first")
    rows = [torch.cat([t.flatten() for _, t in _numbers(a)]) for a in adapters]
    return torch.stack(rows).to(lr.wide(rows[0].dtype))


def unpack(X: Tensor, adapters: Sequence[Adapter]) -> list[Adapter]:
    """The inverse of `pack`: these adapters with the numbers of X, each tensor in its own dtype.

    Raises:
        ValueError: if X has not a row for each adapter, of its length.
    """
    if X.shape != (len(adapters), tree.count(adapters[0])):
        expected = (len(adapters), tree.count(adapters[0]))
        raise ValueError(f"X has shape {tuple(X.shape)}, the adapters need {expected}: unpack what `pack` made of them")
    return [_filled(adapter, row) for adapter, row in zip(adapters, X, strict=True)]


def _filled(adapter: Adapter, row: Tensor) -> Adapter:
    old = _numbers(adapter)
    parts = row.split([t.numel() for _, t in old])
    return tree.with_parameters(adapter, {n: p.view_as(t).to(t) for (n, t), p in zip(old, parts, strict=True)})


def _numbers(adapter: Adapter) -> list[tuple[str, Tensor]]:
    return sorted(tree.parameters(adapter).items())  # the layers of two adapters may come in different orders


def _mixed(W: Tensor, X: Tensor) -> Tensor:
    """W X, written on differences, so that rows that are identical come back bit for bit; rows of W have sum one."""
    first = X[:1]
    return first + W.to(X) @ (X - first)


# --- push-sum --------------------------------------------------------------------------------------------------------


def push_weights(n: int, edges: Iterable[tuple[int, int]]) -> Tensor:
    """P (n, n) with P[j, i] = 1 / (1 + out-degree of i) if i sends to j, or is j: every column has sum one.

    A sender needs to know no more than how many hear it. The mean is reached if every node can reach every other one.

    Args:
        n: nodes.
        edges: pairs (sender, receiver); repetition does not matter.

    Raises:
        ValueError: for an edge from a node to itself or to a node that does not exist.
    """
    P = torch.eye(n, dtype=torch.float64)
    for i, j in edges:
        if i == j or not (0 <= i < n and 0 <= j < n):
            raise ValueError(f"({i}, {j}) is no edge between two of {n} nodes, which are numbered from 0")
        P[j, i] = 1
    return P / P.sum(0)


@dataclass(frozen=True, eq=False)
class PushSum:
    """Averaging over one-way links: what a node gives away is a share of what it has, so only columns of P need sum one.

    Algorithm:
        start       x_i the node's numbers, w_i = 1
        node i      sends P_ji (x_i, w_i) to each j that hears it, and keeps P_ii (x_i, w_i)
        node j      x_j <- sum_i P_ji x_i,   w_j <- sum_i P_ji w_i
        reads       z_i = x_i / w_i, which tends to the mean of all x; x_i alone does not
        travels     x and one number

    The sums of x and of w stay. A node that trains does so at z and adds its step to x: `replace(state, x=state.x + step)`.
    A message that gets lost (its entry of P set to zero) takes from x and w alike, so that z remains an average of what
    nodes began with, though no longer the plain one.

    Attributes:
        x: (n, d). A and B are mixed apart, as all numbers are, with one common w.
        w: (n,), positive.

    Source: Kempe, Dobra and Gehrke, "Gossip-based computation of aggregate information", FOCS 2003; with training Assran et
    al., "Stochastic gradient push for distributed deep learning", arXiv 1811.10792 (ICML 2019). Written without them at hand.
    """

    x: Tensor
    w: Tensor

    @classmethod
    def start(cls, X: Tensor) -> PushSum:
        """Returns the state before the first round."""
        return cls(X, torch.ones(len(X), dtype=torch.float64, device=X.device))

    @property
    def z(self) -> Tensor:
        """(n, d): each node's estimate of the mean, and what its model runs with."""
        return self.x / self.w[:, None].to(self.x)

    def step(self, P: Tensor) -> PushSum:
        """Carries out one round, with a P that may be another one in each.

        Raises:
            ValueError: for a P of another size, with a negative entry, with nothing kept by a node, or that makes mass.
        """
        n = len(self.x)
        if P.shape != (n, n):
            raise ValueError(f"P has shape {tuple(P.shape)}, but there are {n} nodes: it must be {(n, n)}")
        if not bool((P >= 0).all() and (P.diagonal() > 0).all() and (P.sum(0) < 1 + 1e-9).all()):
            raise ValueError(
                "P needs entries of at least 0, a diagonal above 0 and columns of sum 1 (less where a message got lost), got "
                f"columns of sum {P.sum(0).tolist()}; `push_weights` makes one of any directed graph"
            )
        return PushSum(P.to(self.x) @ self.x, P.to(self.w) @ self.w)


# --- CHOCO -----------------------------------------------------------------------------------------------------------


def top_k(share: float) -> Compressor:
    """Keeps the entries of each row that are largest in size, a `share` of them and one at least; the others become zero.

    Raises:
        ValueError: for a share that is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"top_k keeps a share in (0, 1] of the entries, got {share}")

    def compress(X: Tensor) -> Tensor:
        kept = X.abs().topk(math.ceil(share * X.shape[1]), dim=1).indices
        return torch.zeros_like(X).scatter(1, kept, X.gather(1, kept))

    return compress


@dataclass(frozen=True, eq=False)
class Choco:
    """CHOCO-Gossip: nodes send a compressed difference to their own public copy, so that what was cut is sent later.

    Algorithm:
        start       x_i the node's numbers (after its own steps), xh_i = 0: the copy of i that i and its neighbours hold
        node i      q_i = Q(x_i - xh_i), sent to all neighbours
        all         xh_j <- xh_j + q_j for every j that they hold a copy of, themselves included
        node i      x_i <- x_i + gamma sum_j W_ij (xh_j - xh_i)
        travels     q: for `top_k` the kept values and where they belong

    The mean of all x stays whatever Q does. The error is fed back, since x - xh has what Q has left out so far. With nothing
    compressed and gamma = 1 this is plain gossip; a Q that keeps little needs a small gamma, or x diverges.

    All who hold a copy add the same q to it, so that it is here once. Over a network each edge must deliver in order: a q that
    gets lost makes copies differ for good, and xh must then be sent whole.

    Attributes:
        x: (n, d). A node that trains writes its step into it: `replace(state, x=state.x + step)`.
        public: (n, d), xh.

    Source: Koloskova, Stich and Jaggi, "Decentralized stochastic optimization and gossip algorithms with compressed
    communication", arXiv 1902.00340 (ICML 2019), which asks for a symmetric W. Written without it at hand.
    """

    x: Tensor
    public: Tensor

    @classmethod
    def start(cls, X: Tensor) -> Choco:
        """Returns the state before the first round, in which nobody has been told anything."""
        return cls(X, torch.zeros_like(X))

    def step(self, W: Tensor, compress: Compressor, gamma: float) -> tuple[Choco, Tensor]:
        """Carries out one round; returns the state after it, and what was sent: q (n, d), row i by node i.

        Raises:
            ValueError: for a W that does not mix, or a gamma that is not in (0, 1].
        """
        topology.check_mixing(W, len(self.x))
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma must be in (0, 1], got {gamma}")
        sent = compress(self.x - self.public)
        public = self.public + sent
        return replace(self, x=self.x + gamma * (_mixed(W, public) - public), public=public), sent


# --- gradient tracking -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Tracking:
    """Gradient tracking (DIGing): each node follows its own estimate of the mean gradient in place of its own gradient.

    Algorithm:
        start       y_i = g_i(x_i)
        node i      x_i' = sum_j W_ij x_j - eta y_i
                    y_i' = sum_j W_ij y_j + g_i(x_i') - g_i(x_i)
        travels     x and y: twice what plain gossip sends

    The mean of y is that of the gradients in every round. So with unequal data and a constant eta all nodes reach the optimum
    of the mean loss, where descent on each node's own gradient stops beside it. With several local steps a round's displacement
    takes the place of g, and with AdamW this is no longer the published method.

    Attributes:
        x: (n, d).
        y: (n, d), the tracked gradients.
        g: (n, d), the gradients at x.

    Source: Nedic, Olshevsky and Shi, "Achieving geometric convergence for distributed optimization over time-varying
    graphs", arXiv 1607.03218 (SIAM J. Optimization 2017). Written without it at hand.
    """

    x: Tensor
    y: Tensor
    g: Tensor

    @classmethod
    def start(cls, X: Tensor, gradient: Gradient) -> Tracking:
        """Returns the state before the first round."""
        g = gradient(X)
        return cls(X, g, g)

    def step(self, W: Tensor, gradient: Gradient, learning_rate: float) -> Tracking:
        """Carries out one round; `learning_rate` is eta.

        Raises:
            ValueError: for a W that does not mix.
        """
        topology.check_mixing(W, len(self.x))
        x = _mixed(W, self.x) - learning_rate * self.y
        g = gradient(x)
        return Tracking(x, _mixed(W, self.y) + (g - self.g), g)
