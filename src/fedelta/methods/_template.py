"""A method to copy: here stands one line that says what it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedelta import lowrank as lr
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate, merge
from fedelta.method import Method, State


@dataclass(frozen=True, kw_only=True)
class DampedMean(Method):
    """The server's factors go a part of the way to the mean of the clients' (an example, of no paper).

    Algorithm:
        init            A random and common to all, B = 0
        client k        trains A and B from what it got
        server          B <- B + rate (sum_k p_k B_k - B),  A likewise;   head <- sum_k p_k head_k
        travels         A, B and head, up and down
        scale           one for all

    Args:
        rate: the server's share of the way; 1 is `fedavg`.

    Source: authors, title, where; what of it could not be read; where this departs from it.
    """

    rate: float = 0.5

    paper = "an example to copy"
    follows = "no paper of its own"
    coordinates = "factors"

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        def rule(weights: Sequence[float], xs: Sequence[LoRA], old: LoRA) -> LoRA:
            mean = lr.mean_factors(weights, [lr.rescale(x, old.scale) for x in xs])
            return lr.mean_factors([1 - self.rate, self.rate], [old, mean])

        return {"adapter": merge(rule, updates, state["adapter"])}
