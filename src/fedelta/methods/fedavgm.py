"""FedAvgM: momentum at the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedelta.method import State
from fedelta.methods._compose.optimisers import ServerOptimizer


@dataclass(frozen=True, kw_only=True)
class FedAvgM(ServerOptimizer):
    """Heavy-ball momentum on what a round adds to the factors.

    Algorithm:
        init            v = 0
        client k        as the method that it is combined with, `fedavg` by itself
        server          D = that method's A, B and head minus those before;   v <- momentum v + D;
                        A, B, head <- those before + learning_rate v
        travels         nothing more
        scale           that of the server's copy

    A tensor that the round did not move, such as a frozen factor, keeps its value and its v.

    Args:
        momentum: 0 with a learning_rate of 1 is, to the bit, the method without it.
        learning_rate: the server's.
        lr_ratio: learning rate of the factors A over that of B and of the head.

    Source: Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
    arXiv 1909.06335.
    """

    momentum: float = 0.9

    paper = "Hsu et al. 2019, FedAvgM, arXiv 1909.06335"
    follows = "the paper"
    reported = "none collected by us"
    exempt: ClassVar[Mapping[str, str]] = {"one client": "the server moves by momentum, not by what was sent"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise ValueError(f"FedAvgM needs 0 <= momentum < 1, got {self.momentum}")

    def start(self, like: Tensor) -> State:
        return {"v": torch.zeros_like(like)}

    def step(self, memory: State, displacement: Tensor) -> tuple[Tensor, State]:
        v = self.momentum * memory["v"] + displacement
        return v, {"v": v}
