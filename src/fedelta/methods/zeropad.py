"""FedAvg under unequal ranks by padding with zeros."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from fedelta import tree
from fedelta.merging import ClientUpdate, merge
from fedelta.method import Method, State
from fedelta.methods._shared.padding import ScalePolicy, padded_mean, revive, slice_with
from fedelta.methods._shared.sums import added, summand_of
from fedelta.peers import Peer
from fedelta.tree import Message, Tensors


@dataclass(frozen=True, kw_only=True)
class ZeroPad(Method):
    """The mean of the factors, where a component that a client lacks counts as zero.

    Algorithm:
        init            A random and common to all (r_max rows, client k has the first r_k), B = 0
        client k        trains A and B at its rank r_k from what it got
        server          B <- sum_k w_k [B_k 0],   A <- sum_k w_k [A_k; 0]
        redistribution  the first r columns of B and rows of A
        travels         A, B and head at the client's own rank, up and down
        scale           on B alone: multiplied by s_k / s_max before the mean and by s_max / s_r on the way back; A as it is

    A component that one client in K owns shrinks to 1/K of itself in each round: that is the method, and why others exist.

    Args:
        weights: "examples" for w_k = p_k, "uniform" for w_k = 1/K, also on the head.
        scale_policy: "raw" leaves factors as they are whatever their scales, as published codes do.
        faithful: keeps components dead that nobody had in a round. By default they get their last row of A back, with
            B = 0: the same dW, but able to train.

    Source: the baseline of all papers on unequal ranks (often called FedIT, and wrongly HetLoRA there); no paper of its own.
    """

    weights: Literal["examples", "uniform"] = "examples"
    scale_policy: ScalePolicy = "effective"
    faithful: bool = False

    paper = "baseline; Zhang et al. 2024 (arXiv 2305.05644) with padding"
    follows = "no paper of its own"
    reported = (
        "as a baseline, MMLU after Dolly with TinyLlama and mixed ranks: 31.47 (read in FLoRIST's paper), 15.76 (FLoRA's "
        "paper, second-hand)"
    )
    hetero_rank = True
    decentralised = True
    coordinates = "factors"
    sums = "exact"

    def broadcast(self, t: int, state: State, to: Peer) -> Message:
        return {"adapter": slice_with(state["adapter"], to, self.scale_policy)}

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        if self.weights == "uniform":
            updates = [replace(u, weight=1 / len(updates)) for u in updates]
        rule = partial(padded_mean, scale_policy=self.scale_policy, faithful=self.faithful)
        return {"adapter": merge(rule, updates, state["adapter"])}

    def summand(self, t: int, down: Message, up: Message, peer: Peer, ranks: Mapping[str, int] | None = None) -> Tensors:
        if self.weights == "uniform":
            raise ValueError(
                "zeropad's weights 'uniform' cannot be applied to a sum: give the run weights='uniform', the method 'examples'"
            )
        return summand_of(down, up, peer, ranks, raw=self.scale_policy == "raw")

    def from_mean(self, t: int, state: State, mean: Tensors) -> State:
        after = added(state["adapter"], mean, absent="fade", raw=self.scale_policy == "raw")
        return {"adapter": after if self.faithful else tree.map(lambda x, old: revive(x, old.A), after, state["adapter"])}
