"""FedSAM: clients take the gradient at the worst point nearby."""

from __future__ import annotations

from dataclasses import dataclass

from fedelta.method import ClientState, GradientHook
from fedelta.methods._compose.rules import ELSEWHERE, Elsewhere, LocalRule, of_norm
from fedelta.tree import Adapter, Message, Tensors


@dataclass(frozen=True, kw_only=True)
class FedSAM(LocalRule):
    """Sharpness-aware minimisation at the clients.

    Algorithm:
        init            as the method that it is combined with, `fedavg` by itself
        client k        in every local step   g = the gradient at x,   e = rho g / ||g||  over all tensors that train;
                        the step is taken from x with the gradient at x + e, on the same batch
        server          as that method
        travels         nothing more
        scale           not part of it: the factors are displaced, not their product

    It combines with every method, those that factorise the product anew too: nothing is kept from step to step. It costs a
    second pass and backward pass in every step. What another rule adds, such as a pull, is taken at x; a penalty of the method
    in the middle is part of the loss, and counts at x + e.

    The norm is that of the factors, so that the region depends on how dW is factorised.

    Args:
        rho: the length of e; 0 is, to the bit, the method without it.

    Source: Qu et al., "Generalized Federated Learning via Sharpness Aware Minimization", arXiv 2206.02618 (ICML 2022), after
    published code.
    """

    rho: float = 0.05

    paper = "Qu et al. 2022, FedSAM, arXiv 2206.02618"
    follows = "published code"
    asks = frozenset({"gradient"})
    reported = "none collected by us"
    sole = ELSEWHERE
    order = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rho >= 0:
            raise ValueError(f"FedSAM needs rho of at least 0, got {self.rho}")

    def hook(self, sent: Message, own: ClientState, start: Adapter) -> GradientHook | None:
        return _Ascent(self.rho) if self.rho else None


class _Ascent(Elsewhere):
    """A hook that takes gradients at x + rho g / ||g||."""

    def __init__(self, rho: float) -> None:
        self.rho = rho

    def displacement(self, gradients: Tensors, parameters: Tensors, step: int) -> Tensors | None:
        return of_norm(gradients, self.rho)

    def changed(self, gradients: Tensors, parameters: Tensors, step: int) -> Tensors:
        return gradients
