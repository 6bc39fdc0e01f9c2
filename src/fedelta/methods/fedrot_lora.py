"""FedRot-LoRA: turn each client's factors towards the server's, then average them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate, merge
from fedelta.method import Method, State
from fedelta.methods._shared.sums import added, summand_of
from fedelta.peers import Peer
from fedelta.tree import Adapter, Factor, Message, Tensors


@dataclass(frozen=True, kw_only=True)
class FedRotLoRA(Method):
    """The mean of factors that were turned towards those which the round began with; a turn leaves each product as it is.

    Algorithm:
        init            A random and common to all, B = 0, one rank r
        client k        trains A and B from what it got
        server          Q_k = argmin ||Q^T A_k - A||_F over orthogonal Q, A being the server's; in odd rounds
                        argmin ||B_k Q - B||_F;      B <- sum_k p_k B_k Q_k,   A <- sum_k p_k Q_k^T A_k,
                        head <- sum_k p_k head_k
        travels         A, B and head, up and down
        scale           as in `fedavg`

    (B_k Q) (Q^T A_k) = B_k A_k: clients that learned one delta in two gauges average to noise in `fedavg`, and to that delta
    here. A client whose factor is the server's is not turned by a bit. Where the two factors leave a part of Q open, as all of
    it while B = 0, that part is the identity.

    The next round's reference is the mean, so that factors keep their meaning from round to round: control variates and server
    optimisers are lawful over it. Local SGD does not see a turn; Adam does, since its moments are entry by entry.

    Left out, since it would be a guess: the paper softens its rotations by a weight of 0.5, and what we read does not say how.
    That the rounds alternate is read, that A comes first is ours: in round 0 B is zero and says nothing.

    Args:
        on: the factor that is brought near that of the server: "alternate" as above, or one of them in every round.

    Unequal ranks are refused: a turn mixes components, so that the leading ones would no longer be those that a smaller rank
    holds. Without a server each node turns its neighbours towards itself: products mix, but the factors of two nodes need not
    meet, and the engine warns of it.

    Source: Zhang et al., "FedRot-LoRA: Mitigating Rotational Misalignment in Federated LoRA", arXiv 2602.23638 (ICML 2026). The
    full text was not available: this follows the abstract and a re-implementation by others.
    """

    on: Literal["alternate", "A", "B"] = "alternate"

    paper = "Zhang et al. 2026, FedRot-LoRA, arXiv 2602.23638"
    follows = "others' readings"
    reported = "none available to us: the abstract has no figure, and no table could be read"
    coordinates = "factors"
    sums = "exact"

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        which = self._factor(t)

        def mean(weights: Sequence[float], xs: Sequence[LoRA], old: LoRA) -> LoRA:
            ranks = [x.rank for x in xs]
            if ranks != [old.rank] * len(xs):
                raise ValueError(
                    f"fedrot_lora needs rank {old.rank} of all, got {ranks}; "
                    "use a method for unequal ranks: zeropad or flexlora"
                )
            return lr.mean_factors(weights, [turned(lr.rescale(x, old.scale), old, which) for x in xs])

        return {"adapter": merge(mean, updates, state["adapter"])}

    def summand(self, t: int, down: Message, up: Message, peer: Peer, ranks: Mapping[str, int] | None = None) -> Tensors:
        which, sent, start = self._factor(t), up["adapter"], down["adapter"]
        near: Adapter = tree.map(lambda x, old: turned(x, old, which), sent, start)
        return summand_of(down, {**up, "adapter": near}, peer, ranks)

    def from_mean(self, t: int, state: State, mean: Tensors) -> State:
        return {"adapter": added(state["adapter"], mean)}

    def _factor(self, t: int) -> Factor:
        if self.on == "alternate":
            return "B" if t % 2 else "A"
        return self.on


def turned(x: LoRA, like: LoRA, which: Factor) -> LoRA:
    """Returns (B Q, Q^T A), the same dW, with the rotation Q that brings one factor nearest to that of `like` (Procrustes)."""
    mine, other = (x.A, like.A) if which == "A" else (x.B, like.B)
    if torch.equal(mine, other):
        return x  # a product with a rotation that is the identity but for rounding would change the last digits
    Q = _rotation(mine.to(torch.float64), other.to(torch.float64), which)
    return replace(x, B=(x.B.to(Q) @ Q).to(x.B), A=(Q.mT @ x.A.to(Q)).to(x.A))


def _rotation(mine: Tensor, other: Tensor, which: Factor) -> Tensor:
    """Returns the orthogonal Q (r, r) that maximises <Q, M>, where M is A_k A^T or B_k^T B; of several that nearest to I."""
    U, S, Vh = torch.linalg.svd(mine @ other.mT if which == "A" else mine.mT @ other)
    seen = lr.numerical_rank(S, (len(S), len(S)), S.dtype)
    # Where M has no direction, its singular vectors are any: there the same is asked of the identity.
    left, right = U[:, seen:], Vh[seen:]
    X, _, Yh = torch.linalg.svd(left.mT @ right.mT)
    return U[:, :seen] @ Vh[:seen] + left @ X @ Yh @ right
