"""FedProx: clients are pulled towards what the server sent."""

from __future__ import annotations

from dataclasses import dataclass

from fedelta import tree
from fedelta.method import ClientState, GradientHook
from fedelta.methods._compose.rules import LocalRule, Pull
from fedelta.tree import Adapter, Message


@dataclass(frozen=True)
class FedProx(LocalRule):
    """A proximal term that holds local iterates near their start.

    Algorithm:
        init            as the method that it is combined with, `fedavg` by itself
        client k        w_t is what it starts from;  g <- g + mu (x - w_t)  in every local step, for A, B and head
        server          as that method
        travels         nothing more
        scale           not part of it: the factors are pulled, not their product

    It combines with every method, those that factorise the product anew too: the anchor lives for one round.

    Args:
        mu: strength; 0 is, to the bit, the method without it.

    Source: Li et al., "Federated Optimization in Heterogeneous Networks", arXiv 1812.06127 (MLSys 2020), after published code.
    """

    mu: float = 0.01

    paper = "Li et al. 2020, FedProx, arXiv 1812.06127"
    follows = "published code"
    asks = frozenset({"gradient"})
    reported = "none collected by us"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.mu >= 0:
            raise ValueError(f"FedProx needs mu of at least 0, got {self.mu}")

    def hook(self, sent: Message, own: ClientState, start: Adapter) -> GradientHook | None:
        return Pull(self.mu, tree.parameters(start)) if self.mu else None
