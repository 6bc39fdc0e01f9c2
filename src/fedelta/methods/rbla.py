"""RBLA: the mean of the factors, each component over the clients that have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate, merge
from fedelta.method import Method, State
from fedelta.methods._shared.owners import owner_mean_factors
from fedelta.methods._shared.padding import ScalePolicy, slice_with, with_scale
from fedelta.methods._shared.sums import added, summand_of
from fedelta.peers import Peer
from fedelta.tree import Message, Tensors


@dataclass(frozen=True, kw_only=True)
class RBLA(Method):
    """Zero-padded FedAvg without the zeros: a component is averaged over its owners alone.

    Algorithm:
        init            A random and common to all (r_max rows, client k has the first r_k), B = 0
        client k        trains A and B at its rank r_k from what it got
        server          with the clients j of r_j > i:  q_k = n_k / sum_j n_j,
                        B[:, i] <- sum_k q_k B_k[:, i],   A[i, :] <- sum_k q_k A_k[i, :];   head <- sum_k p_k head_k
        redistribution  the first r columns of B and rows of A
        travels         A, B and head at the client's own rank, up and down
        scale           on B alone: multiplied by s_k / s_max before the mean and by s_max / s_r on the way back; A as it is

    Components do not fade, as they do in `zeropad`; the cross terms of a mean of factors stay. A component without an owner in
    the round keeps its last value (ours); in gossip, owners agree on it only as far as they are linked. `raflora` is the same
    weighting of products in place of factors.

    Args:
        scale_policy: "raw" leaves factors as they are whatever their scales, as published codes do.

    Source: Chen et al., "RBLA: Rank-Based-LoRA-Aggregation for Fine-tuning Heterogeneous Models in FLaaS", arXiv 2408.08699
    (ICWS 2024). The full text was not available: this follows an aggregator of that name in a public framework, which may or
    may not be the authors' own.
    """

    scale_policy: ScalePolicy = "effective"

    paper = "Chen et al. 2024, RBLA, arXiv 2408.08699"
    follows = "others' readings"
    reported = "none available to us"
    hetero_rank = True
    decentralised = True
    coordinates = "factors"
    sums = "exact"

    def broadcast(self, t: int, state: State, to: Peer) -> Message:
        return {"adapter": slice_with(state["adapter"], to, self.scale_policy)}

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        def rule(weights: Sequence[float], xs: Sequence[LoRA], old: LoRA) -> LoRA:
            return owner_mean_factors(weights, [with_scale(x, old.scale, self.scale_policy) for x in xs], old)

        return {"adapter": merge(rule, updates, state["adapter"])}

    def summand(self, t: int, down: Message, up: Message, peer: Peer, ranks: Mapping[str, int] | None = None) -> Tensors:
        return summand_of(down, up, peer, ranks, raw=self.scale_policy == "raw")

    def from_mean(self, t: int, state: State, mean: Tensors) -> State:
        return {"adapter": added(state["adapter"], mean, raw=self.scale_policy == "raw")}
