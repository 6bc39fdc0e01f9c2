"""raFLoRA: the mean of the deltas, each component over the clients that have it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from fedelta import lowrank as lr
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate, merge
from fedelta.method import Method, State
from fedelta.peers import Peer, largest, slice_for, truncate_for
from fedelta.tree import Adapter, Message


@dataclass(frozen=True, kw_only=True)
class RaFLoRA(Method):
    """Mean of the deltas in partitions of the ranks, each weighted by the examples of those who own it.

    Algorithm:
        init            A random and common to all, B = 0
        client k        trains A and B at its rank r_k from what it got
        server          with r_(1) < ... < r_(M) the ranks of the cohort, partition m = components r_(m-1), ..., r_(m) - 1, and
                        C_m the clients with r_k >= r_(m):
                        dW = sum_m sum_{k in C_m} (n_k / sum_{j in C_m} n_j) s_k B_k[:, m] A_k[m, :];   U S V^T = SVD(dW);
                        head <- sum_k p_k head_k
        redistribution  to rank r:  B = U_r S_r^1/2 / s_r^1/2,  A = S_r^1/2 V_r^T / s_r^1/2
        travels         A, B and head at the client's own rank, up and down
        scale           every product is multiplied by its client's s_k, both factors are divided by the receiver's root, but
                        where B = 0: there A stays as it is, common to all

    Where FlexLoRA multiplies a component in every round by the share of examples behind it, and so lets the higher ranks
    fade (rank collapse), here each keeps its full weight. That is not always better: where clients disagree strongly and few
    hold the higher ranks, these pass on undamped what only those few want, and the loss can end above FlexLoRA's although the
    energy in the higher ranks looks healthy. With one owner of the ranks above 16 it ended 20 points of accuracy below
    (`experiments/raflora`). Compare both, or choose `shrink` on validation data.

    A change of gauge that mixes components of different partitions at a client changes the result. So the components of a
    cohort must come from one SVD: nodes without a server each have their own, and under unequal ranks may drift apart.

    Args:
        empty_partition: the value of components that nobody in the cohort owns: "keep" the server's last ones, or "zero".
        shrink: eta in [0, 1], ours: the weights are n_k / (owners' examples^eta * all examples^(1 - eta)). 1 is raFLoRA, 0 is
            FlexLoRA but for what `empty_partition` keeps.
        sigma_on: the factor that carries the singular values; the deltas are the same.
        svd: "exact", "randomised", or "auto", which differs from exact for large cohorts only (`lowrank.SvdKind`).

    `rb_lora` is another name: RB-LoRA (Findings of EACL 2026) balances rank-one terms by coverage, with the same weights, and
    puts the singular values on B; say sigma_on="B" for its factors. Its published code does not use these weights.

    Source: Wu et al., "Preventing Rank Collapse in Federated Low-Rank Adaptation with Client Heterogeneity", arXiv 2602.13486.
    The full text was not available and no official code was found: this follows the abstracts, a re-implementation by others
    and notes. Ours are s_k, the split with scales, and `empty_partition` (the re-implementation has "zero").
    """

    empty_partition: Literal["keep", "zero"] = "keep"
    shrink: float = 1.0
    sigma_on: lr.SigmaOn = "both"
    svd: lr.SvdKind = "auto"

    paper = "Wu et al. 2026, raFLoRA, arXiv 2602.13486"
    follows = "others' readings"
    reported = (
        "one figure found, BoolQ 65.35, on a public listing without its baselines (unverified). As RB-LoRA "
        "(Llama-3.1-8B, 10 clients, MMLU after Dolly, 1 round): .57 against weighted zero padding .54; from its project "
        "page or code, which disagree about the rule"
    )
    hetero_rank = True
    aliases = ("rb_lora",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.shrink <= 1:
            raise ValueError(f"shrink must lie between 0 (FlexLoRA) and 1 (raFLoRA), got {self.shrink}")

    def init(self, template: Adapter, peers: Sequence[Peer], *, seed: int = 0) -> State:
        return {"adapter": truncate_for(template, largest(template, peers), sigma_on=self.sigma_on)}

    def broadcast(self, t: int, state: State, to: Peer) -> Message:
        return {"adapter": slice_for(state["adapter"], to, on=self.sigma_on)}

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        def best(weights: Sequence[float], xs: Sequence[LoRA], old: LoRA) -> LoRA:
            shares = component_weights(weights, [x.rank for x in xs], self.shrink)
            exact = lr.stack([*shares, 1.0], [*xs, self._kept(weights, xs, old)], dtype=torch.float64)
            return lr.truncate(
                exact, old.rank, scale=old.scale, sigma_on=self.sigma_on, dtype=old.dtype, fill=old.A, svd=self.svd
            )

        return {"adapter": merge(best, updates, state["adapter"])}

    def _kept(self, weights: Sequence[float], xs: Sequence[LoRA], old: LoRA) -> LoRA:
        owned = max(x.rank for w, x in zip(weights, xs, strict=True) if w > 0)
        return lr.components(old, owned if self.empty_partition == "keep" else old.rank, old.rank)


def component_weights(weights: Sequence[float], ranks: Sequence[int], shrink: float = 1.0) -> list[Tensor]:
    """Returns the weight of every component of every client, one vector (r_k,) each, in float64.

    With `shrink` 1 the weights of a component sum to one over its owners. Equal ranks leave `weights` as they are, to the bit.
    """
    levels = sorted(set(ranks))

    def share_of_owners(level: int) -> float:
        return math.fsum(w for w, r in zip(weights, ranks, strict=True) if r >= level)

    shares = [share_of_owners(level) for level in levels]
    gain = torch.tensor([(shares[0] / share) ** shrink if share > 0 else 0.0 for share in shares], dtype=torch.float64)
    width = torch.tensor([high - low for low, high in pairwise([0, *levels])])
    by_component = gain.repeat_interleave(width)
    return [w * by_component[:r] for w, r in zip(weights, ranks, strict=True)]
