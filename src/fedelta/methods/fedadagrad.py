"""FedAdagrad: Adagrad at the server."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedelta.methods._compose.adaptive import Adaptive


@dataclass(frozen=True, kw_only=True)
class FedAdagrad(Adaptive):
    """Adagrad on what a round adds to the factors.

    Algorithm:
        init            m = 0,  v = tau^2
        client k        as the method that it is combined with, `fedavg` by itself
        server          D = that method's A, B and head minus those before;   m <- beta1 m + (1 - beta1) D;
                        v <- v + D^2;
                        A, B, head <- those before + learning_rate m / (sqrt(v) + tau)
        travels         nothing more
        scale           that of the server's copy

    A tensor that the round did not move, such as a frozen factor, keeps its value, its m and its v.

    Args:
        learning_rate: of the server, about the size of one round's step in each number.
        lr_ratio: learning rate of the factors A over that of B and of the head.
        beta1: decay of the first moment; 0 is Adagrad without momentum.
        tau: added to the root of v; the smaller, the more alike the steps of all numbers.

    Source: Reddi et al., "Adaptive Federated Optimization", arXiv 2003.00295 (ICLR 2021), after published code.
    """

    beta1: float = 0.0

    paper = "Reddi et al. 2021, FedAdagrad, arXiv 2003.00295"
    follows = "published code"
    reported = "none collected by us"

    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        return v + square
