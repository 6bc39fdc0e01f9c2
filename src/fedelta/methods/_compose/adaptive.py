"""What FedAdagrad, FedAdam and FedYogi share: a step of m / (sqrt(v) + tau), each with a v of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedelta.method import State
from fedelta.methods._compose.composition import ServerOptimizer


@dataclass(frozen=True, kw_only=True)
class Adaptive(ServerOptimizer):
    """A server optimiser with two moments of each number, as Algorithm 2 of Reddi et al., arXiv 2003.00295.

    Args:
        learning_rate: of the server.
        lr_ratio: learning rate of the factors A over that of B and of the head.
        beta1: decay of the first moment.
        tau: added to the root of the second moment, which starts at tau^2.
    """

    learning_rate: float = 0.01
    beta1: float = 0.9
    tau: float = 1e-3

    exempt: ClassVar[Mapping[str, str]] = {
        "one client": "the server moves by about learning_rate, whatever the size of what was sent",
        "scale": "the server moves by about learning_rate, whatever the size of what was sent",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta1 < 1 or not self.tau > 0:
            raise ValueError(f"{self.name} needs 0 <= beta1 < 1 and tau > 0, got {self.beta1} and {self.tau}")

    @abstractmethod
    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        """The next v, from the square of the displacement."""

    def corrections(self, steps: int) -> tuple[float, float]:
        """What m and v are divided by after so many steps; ones without a correction of the bias."""
        return 1.0, 1.0

    def start(self, like: Tensor) -> State:
        return {"m": torch.zeros_like(like), "v": torch.full_like(like, self.tau**2), "steps": 0}

    def step(self, memory: State, displacement: Tensor) -> tuple[Tensor, State]:
        m = self.beta1 * memory["m"] + (1 - self.beta1) * displacement
        v = self.second_moment(memory["v"], displacement.square())
        steps = memory["steps"] + 1
        first, second = self.corrections(steps)
        return m / first / ((v / second).sqrt() + self.tau), {"m": m, "v": v, "steps": steps}


@dataclass(frozen=True, kw_only=True)
class Decaying(Adaptive):
    """One whose second moment forgets.

    Args:
        beta2: decay of the second moment.
        bias_correction: divides m and v by 1 - beta^steps, as some published codes do and the paper does not.
    """

    beta2: float = 0.99
    bias_correction: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"{self.name} needs 0 <= beta2 < 1, got {self.beta2}")

    def corrections(self, steps: int) -> tuple[float, float]:
        return (1 - self.beta1**steps, 1 - self.beta2**steps) if self.bias_correction else (1.0, 1.0)
