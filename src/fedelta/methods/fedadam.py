"""FedAdam: Adam at the server."""

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
        steps: taken so far, for the correction of the bias.
    """

    m: Tensor
    v: Tensor
    steps: int


@dataclass(frozen=True, kw_only=True)
class FedAdam(ServerOptimizer):
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
        learning_rate: the server's, about the size of one round's step in each number.
        lr_ratio: learning rate of the factors A over that of B and of the head.
        beta1: decay of the first moment.
        tau: added to the root of v; the smaller, the more alike the steps of all numbers.
        beta2: decay of the second moment.
        bias_correction: divides m and v by 1 - beta^steps, as some published codes do and the paper does not.

    Source: Reddi et al., "Adaptive Federated Optimization", arXiv 2003.00295 (ICLR 2021), after published code.
    """

    learning_rate: float = 0.01
    beta1: float = 0.9
    tau: float = 1e-3
    beta2: float = 0.99
    bias_correction: bool = False

    paper = "Reddi et al. 2021, FedAdam, arXiv 2003.00295"
    follows = "published code"
    reported = "none collected by us"
    exempt = MOVES_BY_ITS_RATE

    def __post_init__(self) -> None:
        super().__post_init__()
        check_moments(self, self.beta1, self.tau, self.beta2)

    def start(self, like: Tensor) -> State:
        return Moments(m=torch.zeros_like(like), v=torch.full_like(like, self.tau**2), steps=0)

    def step(self, memory: State, displacement: Tensor) -> tuple[Tensor, State]:
        D, v, steps = displacement, memory["v"], memory["steps"] + 1
        m = self.beta1 * memory["m"] + (1 - self.beta1) * D
        v = self.beta2 * v + (1 - self.beta2) * D.square()
        m_bias, v_bias = (1 - self.beta1**steps, 1 - self.beta2**steps) if self.bias_correction else (1.0, 1.0)
        return m / m_bias / ((v / v_bias).sqrt() + self.tau), Moments(m=m, v=v, steps=steps)
