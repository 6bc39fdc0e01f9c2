"""FedNova: displacements count per local step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from fedelta import tree
from fedelta.merging import ClientUpdate
from fedelta.method import State
from fedelta.methods._compose.rules import LocalRule
from fedelta.tree import Tensors


@dataclass(frozen=True, kw_only=True)
class FedNova(LocalRule):
    """Normalised averaging, for clients that take unequal numbers of local steps.

    Algorithm:
        init            as the method that it is combined with, `fedavg` by itself
        client k        as that method; a_k is the number of its steps, or with local momentum rho
                        a_k = (tau_k - rho (1 - rho^tau_k) / (1 - rho)) / (1 - rho)
        server          w <- w + a sum_k p_k (w_k - w) / a_k,   a = sum_k p_k a_k:  computed as that method's mean with the
                        weights q_k = (p_k / a_k) / b, b = sum_k p_k / a_k, whose displacement is then multiplied by a b
        travels         nothing more; the number of steps is reported in any case
        scale           one rank for all: where each component has owners of its own, one factor a b would be wrong

    Equal numbers of steps change nothing, to the bit. The server must go by the weights that it is given: `hetlora` and
    uniform weights of `zeropad` do not.

    Args:
        momentum: rho of the clients' SGD.

    Source: Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization", arXiv
    2007.07481 (NeurIPS 2020), after published code.
    """

    momentum: float = 0.0

    paper = "Wang et al. 2020, FedNova, arXiv 2007.07481"
    follows = "published code"
    reported = "none collected by us"
    stable = True
    needs_updates = True
    sums = None
    equal_ranks = True
    exempt: ClassVar[Mapping[str, str]] = {"scale": "an upload counts by the steps of its training"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise ValueError(f"FedNova needs 0 <= momentum < 1, got {self.momentum}")

    def effort(self, update: ClientUpdate) -> float:
        """Returns a_k of an update; 0 if it does not say how many steps it took."""
        steps, rho = update.metrics.get("num_steps", 0.0), self.momentum
        return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)

    def reweigh(self, updates: Sequence[ClientUpdate]) -> Sequence[ClientUpdate]:
        tree.check_weights([u.weight for u in updates], len(updates))
        efforts = [self.effort(u) for u in updates]
        if len(set(efforts)) == 1 or not all(efforts):  # `check_sent` refuses a 0, once it is known that the uploads fit
            return updates
        shares = [u.weight / a for u, a in zip(updates, efforts, strict=True)]
        total = math.fsum(shares)
        return [replace(u, weight=q / total) for u, q in zip(updates, shares, strict=True)]

    def check_sent(self, updates: Sequence[ClientUpdate], like: Tensors) -> None:
        for u in updates:
            if not self.effort(u) > 0:
                raise ValueError(f"client {u.sender.id} reports no steps: FedNova divides by them; train with client.train")

    def displace(self, state: State, step: Tensors, updates: Sequence[ClientUpdate]) -> tuple[Tensors, State]:
        efforts = [self.effort(u) for u in updates]
        if len(set(efforts)) == 1:  # a b is 1 but for rounding
            return step, state
        pairs = [(u.weight, a) for u, a in zip(updates, efforts, strict=True)]
        gain = math.fsum(p * a for p, a in pairs) * math.fsum(p / a for p, a in pairs)
        return {n: gain * x for n, x in step.items()}, state
