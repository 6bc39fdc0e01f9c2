"""FedAdam: Adam at the server."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedelta.methods._compose.adaptive import Decaying


@dataclass(frozen=True, kw_only=True)
class FedAdam(Decaying):
    """Adam on what a round adds to the factors.

    Algorithm:
        init            m = 0,  v = tau^2
        client k        as the method that it is combined with, `fedavg` by itself
        server          D = that method's A, B and head minus those before;   m <- beta1 m + (1 - beta1) D;
                        v <- beta2 v + (1 - beta2) D^2;
                        A, B, head <- those before + learning_rate m / (sqrt(v) + tau)
        travels         nothing more
        scale           that of the server's copy

    A tensor that the round did not move, such as a frozen factor, keeps its value, its m and its v.

    Args:
        learning_rate: of the server, about the size of one round's step in each number.
        lr_ratio: learning rate of the factors A over that of B and of the head.
        beta1: decay of the first moment.
        tau: added to the root of v; the smaller, the more alike the steps of all numbers.
        beta2: decay of the second moment.
        bias_correction: divides m and v by 1 - beta^steps, as some published codes do and the paper does not.

    Source: Reddi et al., "Adaptive Federated Optimization", arXiv 2003.00295 (ICLR 2021), after published code.
    """

    paper = "Reddi et al. 2021, FedAdam, arXiv 2003.00295"
    follows = "published code"
    reported = "none collected by us"

    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        return self.beta2 * v + (1 - self.beta2) * square
