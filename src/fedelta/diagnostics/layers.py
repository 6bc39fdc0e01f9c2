"""One layer's deltas of all clients, and the small matrices that diagnostics are computed from, each formed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedelta import lowrank as lr
from fedelta.lowrank import LoRA
from fedelta.tree import Factor

SIDES: tuple[Factor, Factor] = ("B", "A")
"""B stands for the column space of a delta, A for its row space."""


@dataclass(frozen=True, eq=False)
class Layer:
    """The deltas of one layer, in float64, with R the sum of their numbers of components.

    Attributes:
        weights: p_k, one for each of the K clients.
        deltas: dW_k.
        mean: sum p_k dW_k.
        ranks: the most dimensions that the subspaces of client k may have.
    """

    weights: Sequence[float]
    deltas: Sequence[LoRA]
    mean: LoRA
    ranks: Sequence[int]

    @cached_property
    def gram(self) -> Tensor:
        """<dW_j, dW_k>, (K, K)."""
        columns, rows = self._products
        return self._owner.mT @ (columns * rows) @ self._owner

    @cached_property
    def mean_svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """U, S, Vh of the mean."""
        return lr.svd(self.mean)

    @cached_property
    def spans(self) -> dict[Factor, list[Tensor]]:
        """Orthonormal bases, (o, q_k) and (i, q_k), of the clients' subspaces; q_k is 0 for a factor that is zero."""
        found = [_spans(x, rank) for x, rank in zip(self.deltas, self.ranks, strict=True)]
        return {side: [span[side] for span in found] for side in SIDES}

    @cached_property
    def mean_span(self) -> dict[Factor, Tensor]:
        """Bases of the leading subspaces of the mean, of as many dimensions as the largest client has."""
        return _leading(*self.mean_svd, max(self.ranks), self.mean.shape)

    @cached_property
    def pairs(self) -> dict[Factor, Tensor]:
        """The mean squared cosine of the principal angles, for each pair of clients that both have a subspace."""
        return {side: _pairs(self.spans[side]) for side in SIDES}

    @cached_property
    def angles(self) -> dict[Factor, list[Tensor]]:
        """The principal angles between each client's subspace and the mean's, ascending; without those who have none."""
        return {side: _angles(self.spans[side], self.mean_span[side]) for side in SIDES}

    @cached_property
    def inside(self) -> dict[Factor, Tensor]:
        """The share of ||dW_k||^2 that lies in the mean's subspace; without clients whose delta is zero, or for a zero mean."""
        x, (columns, rows) = self._stack, self._products
        P, Q = self.mean_span["B"].mT @ x.B, x.A @ self.mean_span["A"]
        energy = self.gram.diagonal()
        alive = (energy > 0) & bool(self.mean_span["B"].shape[1])
        kept = {"B": (P.mT @ P) * rows, "A": columns * (Q @ Q.mT)}
        # the sum over a client's own block of the (R, R) matrix, without forming the blocks
        inside = {side: ((kept[side] @ self._owner) * self._owner).sum(0) for side in SIDES}
        return {side: (inside[side] / energy)[alive].clamp(0, 1) for side in SIDES}

    @cached_property
    def _stack(self) -> LoRA:
        return lr.stack([1.0] * len(self.deltas), self.deltas)

    @cached_property
    def _products(self) -> tuple[Tensor, Tensor]:
        """B^T B and A A^T of all clients' factors together, (R, R)."""
        x = self._stack
        return x.B.mT @ x.B, x.A @ x.A.mT

    @cached_property
    def _owner(self) -> Tensor:
        """The client of each component, as ones in (R, K)."""
        return _owners([x.rank for x in self.deltas])


def cumulative(weights: Sequence[float], deltas: Sequence[LoRA]) -> Layer:
    """Returns a layer of the clients' deltas themselves."""
    deltas = [x.to("cpu", torch.float64) for x in deltas]
    return Layer(weights, deltas, lr.stack(weights, deltas), [x.rank for x in deltas])


def increments(weights: Sequence[float], deltas: Sequence[LoRA], starts: Sequence[LoRA]) -> Layer:
    """Returns a layer of the differences between the clients' deltas and those that they started from."""
    deltas = [x.to("cpu", torch.float64) for x in deltas]
    starts = [x.to("cpu", torch.float64) for x in starts]
    changes = [lr.difference(x, start) for x, start in zip(deltas, starts, strict=True)]
    shared, total = _merged(weights, starts)
    # the mean of the changes, stacked from the deltas and the few different starts
    mean = lr.stack([*weights, *[-w for w in total]], [*deltas, *shared])
    return Layer(weights, changes, mean, [x.rank for x in deltas])


def overlaps_with(layer: Layer, factors: LoRA) -> dict[Factor, Tensor]:
    """Returns the mean squared cosine of the principal angles of each client's subspaces with what other factors span.

    A factor that is zero has no entries, and a client without a subspace has none.
    """
    other = _factor_spans(factors.to("cpu", torch.float64))
    return {side: _towards(layer.spans[side], other[side]) for side in SIDES}


def _merged(weights: Sequence[float], xs: Sequence[LoRA]) -> tuple[list[LoRA], list[float]]:
    """Returns the deltas that differ, with the sums of their weights.

    Clients mostly start from one delta, and the SVD of few deltas is smaller.
    """
    kept: list[LoRA] = []
    total: list[float] = []
    for w, x in zip(weights, xs, strict=True):
        same = next((k for k, y in enumerate(kept) if _equal(x, y)), None)
        if same is None:
            kept, total = [*kept, x], [*total, w]
        else:
            total[same] += w
    return kept, total


def _equal(x: LoRA, y: LoRA) -> bool:
    return x.scale == y.scale and torch.equal(x.B, y.B) and torch.equal(x.A, y.A)


def _spans(x: LoRA, rank: int) -> dict[Factor, Tensor]:
    """Returns the spans of the factors; of a delta with more components than its rank may be, the leading subspaces."""
    if x.rank <= rank:
        return _factor_spans(x)
    return _leading(*lr.svd(x), rank, x.shape)


def _factor_spans(x: LoRA) -> dict[Factor, Tensor]:
    return {"B": lr.basis(x.B), "A": lr.basis(x.A.mT)}


def _leading(U: Tensor, S: Tensor, Vh: Tensor, rank: int, shape: tuple[int, int]) -> dict[Factor, Tensor]:
    count = min(rank, lr.numerical_rank(S, shape, S.dtype))
    return {"B": U[:, :count], "A": Vh[:count].mT}


def _pairs(spans: Sequence[Tensor]) -> Tensor:
    spans = [Q for Q in spans if Q.shape[1]]
    if len(spans) < 2:
        return torch.empty(0, dtype=torch.float64)
    dims = torch.tensor([Q.shape[1] for Q in spans])
    Q, owner = torch.cat(list(spans), dim=1), _owners(dims.tolist())
    squares = owner.mT @ (Q.mT @ Q).square() @ owner
    both = torch.ones_like(squares).triu(1).bool()
    return (squares / torch.minimum(dims[:, None], dims))[both].clamp(max=1)


def _towards(spans: Sequence[Tensor], other: Tensor) -> Tensor:
    alive = [Q for Q in spans if Q.shape[1] and other.shape[1]]
    if not alive:
        return torch.empty(0, dtype=torch.float64)
    dims = torch.tensor([Q.shape[1] for Q in alive])
    squares = _owners(dims.tolist()).mT @ (torch.cat(alive, dim=1).mT @ other).square().sum(1)
    return (squares / dims.clamp(max=other.shape[1])).clamp(max=1)


def _angles(spans: Sequence[Tensor], other: Tensor) -> list[Tensor]:
    return [lr.angles_between(Q, other) for Q in spans if Q.shape[1] and other.shape[1]]


def _owners(ranks: Sequence[int]) -> Tensor:
    return torch.repeat_interleave(torch.eye(len(ranks), dtype=torch.float64), torch.tensor(ranks), dim=0)
