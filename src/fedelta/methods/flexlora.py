"""FlexLoRA: the mean of the deltas, redistributed by truncated SVD."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedelta import lowrank as lr
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate, merge
from fedelta.method import Method, State
from fedelta.peers import Peer, largest, slice_for, truncate_for
from fedelta.tree import Adapter, Message


@dataclass(frozen=True, kw_only=True)
class FlexLoRA(Method):
    """Exact mean of the deltas; each client gets the best approximation that its rank allows.

    Algorithm:
        init            A random and common to all, B = 0
        client k        trains A and B at its rank r_k from what it got
        server          dW = sum_k p_k s_k B_k A_k;   U S V^T = SVD(dW)
        redistribution  to rank r:  B = U_r S_r / s_r,  A = V_r^T
        travels         A, B and head at the client's own rank, up and down
        scale           every B_k A_k is multiplied by its client's s_k before the mean, every B divided by its receiver's s_r

    Args:
        sigma_on: the factor that carries the singular values: "B" as in the authors' code, "A", or "both" for square roots.
            The deltas are the same; gradients, weight decay and Adam's steps are not.
        svd: "exact", "randomised", or "auto", which differs from exact for large cohorts only (`lowrank.SvdKind`).

    The SVD is that of the stacked factors (thin QR and a small core, in float64), not of a dense matrix; it is made once at
    the largest configured rank, and smaller ranks are its leading components. What is beyond that rank is lost, as in the
    paper. A round in which nothing was learned keeps the common A: an SVD of zero would say nothing.

    `hlora` is another name: HLoRA (Liu et al., arXiv 2503.00813, known to us from notes by others only) redistributes the same
    deltas with the singular values on A; say sigma_on="A" for its factors.

    Source: Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources",
    arXiv 2402.11505 (NeurIPS 2024). The full text was not available: this follows the authors' published code.
    """

    sigma_on: lr.SigmaOn = "B"
    svd: lr.SvdKind = "auto"

    paper = "Bai et al. 2024, FlexLoRA, arXiv 2402.11505"
    follows = "the authors' code"
    reported = (
        "up to about +3.1 % over rank 8 for all clients; second-hand or from the abstract, the table was not found. As "
        "HLoRA, MRPC with RoBERTa-large, 100 clients: 87.1 against naive averaging 84.0; second-hand, unverified"
    )
    hetero_rank = True
    decentralised = True
    aliases = ("hlora",)

    def init(self, template: Adapter, peers: Sequence[Peer], *, seed: int = 0) -> State:
        # Slicing is the best approximation only of what is in SVD form, which a trained template is not.
        return {"adapter": truncate_for(template, largest(template, peers), sigma_on=self.sigma_on)}

    def broadcast(self, t: int, state: State, to: Peer) -> Message:
        return {"adapter": slice_for(state["adapter"], to, on=self.sigma_on)}

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        def best(weights: Sequence[float], xs: Sequence[LoRA], old: LoRA) -> LoRA:
            exact = lr.stack(weights, xs, dtype=torch.float64)
            return lr.truncate(
                exact, old.rank, scale=old.scale, sigma_on=self.sigma_on, dtype=old.dtype, fill=old.A, svd=self.svd
            )

        return {"adapter": merge(best, updates, state["adapter"])}
