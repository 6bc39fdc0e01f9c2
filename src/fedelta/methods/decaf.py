"""DeCAF: nodes without a server agree on the product of the factors, and factorise it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from fedelta import lowrank as lr
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate, merge
from fedelta.method import Method, State
from fedelta.peers import Peer
from fedelta.tree import Message, map_named


@dataclass(frozen=True, kw_only=True)
class DeCAF(Method):
    """Consensus on dW: averaging A and B apart adds terms B_i A_j of different nodes, averaging the products does not.

    Algorithm:
        init            A random and common to all, B = 0
        node i          trains A and B from what it has
        mixing          M_i = sum_j W_ij s_j B_j A_j;   U S V^T = SVD(M_i / s_i)
                        B_i <- U_r S_r^1/2,   A_i <- S_r^1/2 V_r^T
        travels         A, B and head to every neighbour, never dW
        scale           every B_j A_j is multiplied by its sender's s_j, the result divided by the receiver's s_i; where
                        B = 0, A stays as it is

    The SVD is that of the stacked factors (thin QR and a small core), not of a dense matrix. A component without a singular
    value keeps a live row of A: with the square root on both sides it would be zero twice and never train again.

    The truncation does not keep the mean of the products; what is beyond rank r is lost in every round. At unequal ranks, which
    are ours, directions that low-rank nodes cannot hold fade with each round.

    Args:
        align: "procrustes" turns the new factors towards the node's old A, by an orthogonal matrix that leaves dW as it is:
            signs and the order of components then do not jump. Ours; "none" is the plain SVD.

    Source: Saadati et al., "DeCAF: Decentralized Consensus-And-Factorization for Low-Rank Adaptation of Foundation Models",
    arXiv 2505.21382 (Neural Networks 2026). The full text was not available: this follows its abstract and reviews, and the
    square-root split is our decision.
    """

    align: Literal["none", "procrustes"] = "none"

    paper = "Saadati et al. 2026, DeCAF, arXiv 2505.21382"
    follows = "others' readings"
    reported = "none available to us: neither the abstract nor the reviews that we read have a table"
    hetero_rank = True
    decentralised = True

    def broadcast(self, t: int, state: State, to: Peer) -> Message:
        def fit(layer: str, x: LoRA) -> LoRA:
            rank = to.rank_of(layer)
            scale = to.scale_of(layer, rank)
            return lr.rescale(x, scale, on="both") if rank == x.rank else lr.truncate(x, rank, scale=scale, sigma_on="both")

        return {"adapter": map_named(fit, state["adapter"])}

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        return {"adapter": merge(self._agree, updates, state["adapter"])}

    def _agree(self, weights: Sequence[float], xs: Sequence[LoRA], old: LoRA) -> LoRA:
        mixed = lr.stack(weights, xs, dtype=torch.float64)
        new = lr.truncate(mixed, old.rank, scale=old.scale, sigma_on="both", fill=old.A)
        return (aligned(new, old) if self.align == "procrustes" else new).to(old.dtype)


def aligned(x: LoRA, like: LoRA) -> LoRA:
    """Returns the same dW with its components turned so that A is nearest to that of `like`, of the same rank (Procrustes).

    With Q = argmin ||Q A - A'||_F over orthogonal Q: B Q^T and Q A.
    """
    A, B = x.A.to(torch.float64), x.B.to(torch.float64)
    U, _, Vh = torch.linalg.svd(like.A.to(torch.float64) @ A.mT)
    Q = U @ Vh
    return LoRA(B @ Q.mT, Q @ A, x.scale).to(x.dtype)
