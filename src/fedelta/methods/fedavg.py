"""FedAvg on the factors of LoRA (FedIT)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedelta import lowrank as lr
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate, merge
from fedelta.method import Method, State
from fedelta.methods._shared.sums import added, summand_of
from fedelta.peers import Peer
from fedelta.tree import Message, Tensors


@dataclass(frozen=True, kw_only=True)
class FedAvg(Method):
    """The mean of the factors.

    Algorithm:
        init            A random and common to all, B = 0, one rank r
        client k        trains A and B from what it got
        server          B <- sum_k p_k B_k,   A <- sum_k p_k A_k,   head <- sum_k p_k head_k
        travels         A, B and head, up and down
        scale           part of the value: a B_k with another scale s_k is first multiplied by s_k / s, which is exactly 1 in
                        the paper's case of one scale for all; A_k stays as it is

    The product of the means is not the mean of the products: it differs by the cross terms B_j A_k, j != k.

    Unequal ranks are refused; `zeropad` is the same rule with padding, and `flexlora` averages the deltas themselves.

    Source: Zhang et al., "Towards Building the FederatedGPT: Federated Instruction Tuning", arXiv 2305.05644 (ICASSP 2024),
    after McMahan et al., arXiv 1602.05629 (AISTATS 2017).
    """

    paper = "Zhang et al. 2024, FedIT, arXiv 2305.05644"
    follows = "the paper"
    reported = "none available to us; other papers report it as their baseline"
    decentralised = True
    coordinates = "factors"
    sums = "exact"
    aliases = ("fedit",)

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        return {"adapter": merge(_mean, updates, state["adapter"])}

    def summand(self, t: int, down: Message, up: Message, peer: Peer, ranks: Mapping[str, int] | None = None) -> Tensors:
        return summand_of(down, up, peer, ranks)

    def from_mean(self, t: int, state: State, mean: Tensors) -> State:
        return {"adapter": added(state["adapter"], mean)}


def _mean(weights: Sequence[float], xs: Sequence[LoRA], old: LoRA) -> LoRA:
    ranks = [x.rank for x in xs]
    if ranks != [old.rank] * len(xs):
        raise ValueError(
            f"fedavg needs rank {old.rank} of all, got {ranks}; use a method for unequal ranks: zeropad or flexlora"
        )
    return lr.mean_factors(weights, [lr.rescale(x, old.scale) for x in xs])
