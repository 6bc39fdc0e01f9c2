"""SVD redistribution: FlexLoRA with a cap on the norm, a balanced split and the energy restored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate, merge
from fedelta.method import Method, State
from fedelta.methods._shared.energy import capped, check_cap, with_norm_of
from fedelta.peers import Peer, largest, slice_for, truncate_for
from fedelta.tree import Adapter, Message


@dataclass(frozen=True, kw_only=True)
class SVDRedistribution(Method):
    """Mean of the deltas, capped, truncated, and brought back to the norm that it had before the truncation.

    Algorithm:
        init            A random and common to all, B = 0
        client k        trains A and B from what it got
        server          M = sum_k p_k s_k B_k A_k;   M <- M min(1, c / ||M||_F);   U S V^T = SVD(M / s)
        redistribution  B = rho U_r S_r^1/2,  A = rho S_r^1/2 V_r^T,  rho^2 = ||M||_F / ||s U_r S_r V_r^T||_F
        travels         A, B and head, up and down
        scale           s_k before the mean, the receiver's s after the SVD, its root on each factor; where B = 0, A stays as
                        it is, common to all

    With rho the result is not the best approximation of M: the kept singular values are inflated so that they hide the
    energy of those that were cut.

    Args:
        norm_cap: c, per layer; None for no cap.
        rescale: False leaves rho at 1, which is FlexLoRA with a balanced split.

    Unequal ranks are ours: each receiver gets its leading components, with a rho of its own.

    Source: the baseline "svd" in the code released with "Subspace-Reg", arXiv 2606.22724, which has one rank for all.
    """

    norm_cap: float | None = None
    rescale: bool = True

    paper = "baseline of Subspace-Reg, arXiv 2606.22724"
    follows = "the authors' code"
    reported = (
        "as a baseline of Subspace-Reg, HellaSwag with RoBERTa-large, 3 of 10 clients a round: final accuracy 0.3143, "
        "chance 0.25; recomputed from the authors' published logs"
    )
    hetero_rank = True
    decentralised = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_cap(self.norm_cap)

    def init(self, template: Adapter, peers: Sequence[Peer], *, seed: int = 0) -> State:
        return {"adapter": truncate_for(template, largest(template, peers), sigma_on="both")}

    def broadcast(self, t: int, state: State, to: Peer) -> Message:
        cut = slice_for(state["adapter"], to)
        return {"adapter": tree.map(with_norm_of, cut, state["adapter"]) if self.rescale else cut}

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        def best(weights: Sequence[float], xs: Sequence[LoRA], old: LoRA) -> LoRA:
            M = capped(lr.stack(weights, xs, dtype=torch.float64), self.norm_cap)
            x = lr.truncate(M, old.rank, scale=old.scale, sigma_on="both", fill=old.A)
            return (with_norm_of(x, M) if self.rescale else x).to(old.dtype)

        return {"adapter": merge(best, updates, state["adapter"])}
