"""Replication-based padding: components that a client lacks are those of the clients who have them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypedDict

import torch

from fedelta import lowrank as lr
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate, in_order, merge
from fedelta.method import Method, State
from fedelta.methods._shared.owners import owner_mean_factors
from fedelta.methods._shared.padding import ScalePolicy, slice_with, with_scale
from fedelta.peers import Peer, at_largest, kinds_of, with_ranks
from fedelta.sampling import share
from fedelta.seeding import SERVER
from fedelta.tree import Adapter, Message

logger = logging.getLogger("fedelta.methods")

SCORE = "validation_loss"


class ReplicationState(TypedDict):
    """The server's memory.

    Attributes:
        adapter: at the largest ranks.
        promoted: ids of the clients of high rank, ascending; None before the first round.
    """

    adapter: Adapter
    promoted: Sequence[int] | None


@dataclass(frozen=True, kw_only=True)
class Replication(Method):
    """Clients that do best on validation data get a high rank; the others are padded with what those have learned.

    Algorithm:
        init            A random and common to all, B = 0; everybody holds `low_rank` components
        client k        trains A and B at its present rank from what it got
        first round     the server scores every upload on the common validation split; the best `fraction` get all the
                        components that they can hold, once and for good: the common rows of A with B = 0, so the same dW
        server          with H the clients of the cohort that have component i:
                        i < low_rank:   B[:, i] <- sum_k p_k B_k[:, i];
                        i >= low_rank:  B[:, i] <- sum_{k in H} q_k B_k[:, i],  which pads the others too;
                        A likewise by rows;   head <- sum_k p_k head_k
        redistribution  the first r columns of B and rows of A, r being the client's present rank
        travels         A, B and head at the client's present rank, up and down
        scale           on B alone: multiplied by s_k / s_max before the mean and by s_max / s_r on the way back; A as it is

    The high rank is each promoted client's own capacity, the rank that it is configured with. Only clients that can hold more
    than `low_rank` are promoted; where nobody can, this is `rbla` at the capacities. The first cohort is scored, whoever is in
    it. With q by examples the mean is that of `rbla`, and only the promotion differs.

    Args:
        low_rank: the rank of everybody at first, and of those not promoted ever after; less where a capacity is less.
        fraction: the share of the first cohort's clients that are promoted, rounded up.
        q: weights among several clients of high rank: by "sample", n_k / sum_{j in H} n_j, or "uniform".
        scale_policy: "raw" leaves factors as they are whatever their scales.

    Source: Byun and Lee, "Towards Federated Low-Rank Adaptation of Language Models with Rank Heterogeneity", arXiv 2406.17477
    (NAACL 2025). The full text was not available and no code was found: this follows notes and a summary by others, where
    ranks are 5 and 20. Our decisions: q, how a promoted client starts, ties by id, scales, and that components that nobody in
    a cohort has keep their last value.
    """

    low_rank: int = 5
    fraction: float = 0.1
    q: Literal["sample", "uniform"] = "sample"
    scale_policy: ScalePolicy = "effective"

    paper = "Byun and Lee 2025, replication padding, arXiv 2406.17477"
    follows = "others' readings"
    reported = (
        "round 1 alone, accuracy of the well-balanced client: 84.34 before aggregation, 38.95 after zero padding, 82.11 "
        "after replication. Second-hand, unverified; the final tables were not found"
    )
    hetero_rank = True
    coordinates = "factors"
    needs_validation = True
    one_shot = False  # whom to promote takes a trained and scored round; `rbla` is the same mean at given ranks
    exempt: ClassVar[Mapping[str, str]] = {"bytes": "who has the high rank follows from validation scores"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low_rank < 1 or not 0 < self.fraction <= 1:
            raise ValueError(f"Replication needs low_rank >= 1 and 0 < fraction <= 1, got {self.low_rank} and {self.fraction}")

    def check(self, template: Adapter, peers: Sequence[Peer]) -> None:
        super().check(template, peers)
        if not any(self._has_room(p, template) for p in kinds_of(peers)):
            logger.warning("replication promotes nobody: no client can hold more than low_rank = %s components", self.low_rank)

    def init(self, template: Adapter, peers: Sequence[Peer], *, seed: int = 0) -> State:
        return ReplicationState(adapter=at_largest(template, peers), promoted=None)

    def broadcast(self, t: int, state: State, to: Peer) -> Message:
        if to.id != SERVER and to.id not in (state["promoted"] or []):
            to = with_ranks(to, {n: min(self.low_rank, to.rank_of(n)) for n in state["adapter"].layers})
        return {"adapter": slice_with(state["adapter"], to, self.scale_policy)}

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        adapter = merge(self._mean, updates, state["adapter"])
        first = state["promoted"] is None
        return ReplicationState(adapter=adapter, promoted=self._best(adapter, updates) if first else state["promoted"])

    def _mean(self, weights: Sequence[float], xs: Sequence[LoRA], old: LoRA) -> LoRA:
        xs = [with_scale(x, old.scale, self.scale_policy) for x in xs]
        among_high = weights if self.q == "sample" else [1 / len(xs)] * len(xs)
        low = _band_mean(weights, xs, old, 0, self.low_rank)
        high = _band_mean(among_high, xs, old, self.low_rank, old.rank)
        return LoRA(torch.cat([low.B, high.B], dim=1), torch.cat([low.A, high.A]), old.scale)

    def _best(self, adapter: Adapter, updates: Sequence[ClientUpdate]) -> list[int]:
        """Returns the ids of those who are promoted, ascending; a loss that is not finite counts as the worst."""
        candidates = [u for u in in_order(updates) if self._has_room(u.sender, adapter)]
        ranked = sorted(candidates, key=_loss)
        count = share(float(self.fraction), len(updates), "fraction", up=True)
        return sorted(u.sender.id for u in ranked[:count])

    def _has_room(self, peer: Peer, adapter: Adapter) -> bool:
        return any(peer.rank_of(n) > self.low_rank for n in adapter.layers)


def _band_mean(weights: Sequence[float], xs: Sequence[LoRA], old: LoRA, low: int, high: int) -> LoRA:
    return owner_mean_factors(weights, [lr.components(x, low, high) for x in xs], lr.components(old, low, high))


def _loss(update: ClientUpdate) -> float:
    if SCORE not in update.metrics:
        raise ValueError(
            f"client {update.sender.id} has no {SCORE!r} among its metrics {sorted(update.metrics)}: replication promotes by "
            "it; give the engine a `score` with the metric 'loss'"
        )
    loss = update.metrics[SCORE]
    return loss if math.isfinite(loss) else math.inf
