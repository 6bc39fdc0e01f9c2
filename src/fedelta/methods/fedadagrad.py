"""FedAdagrad: Adagrad at the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from fedelta.method import State
from fedelta.methods._compose.optimisers import MOVES_BY_ITS_RATE, ServerOptimizer, check_moments


class Moments(TypedDict):
    """The memory of one tensor.

    Attributes:
        m: first moment.
        v: second moment.
    """

    m: Tensor
    v: Tensor


@dataclass(frozen=True, kw_only=True)
class FedAdagrad(ServerOptimizer):
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
        learning_rate: the server's, about the size of one round's step in each number.
        lr_ratio: learning rate of the factors A over that of B and of the head.
        beta1: decay of the first moment; 0 is Adagrad without momentum.
        tau: added to the root of v; the smaller, the more alike the steps of all numbers.

    Source: Reddi et al., "Adaptive Federated Optimization", arXiv 2003.00295 (ICLR 2021), after published code.
    """

    learning_rate: float = 0.01
    beta1: float = 0.0
    tau: float = 1e-3

    paper = "Reddi et al. 2021, FedAdagrad, arXiv 2003.00295"
    follows = "published code"
    reported = "none collected by us"
    exempt = MOVES_BY_ITS_RATE

    def __post_init__(self) -> None:
        super().__post_init__()
        check_moments(self, self.beta1, self.tau)

    def start(self, like: Tensor) -> State:
        return Moments(m=torch.zeros_like(like), v=torch.full_like(like, self.tau**2))

    def step(self, memory: State, displacement: Tensor) -> tuple[Tensor, State]:
        D = displacement
        m = self.beta1 * memory["m"] + (1 - self.beta1) * D
        v = memory["v"] + D.square()
        return m / (v.sqrt() + self.tau), Moments(m=m, v=v)
