"""Server optimisers: a `ServerOptimizer` is a method by itself, over `fedavg`; `compose` puts one over another method."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedelta import tree
from fedelta.merging import ClientUpdate
from fedelta.method import Method, State
from fedelta.methods._compose.composition import Composite
from fedelta.methods._compose.parts import Part, Parts, claims
from fedelta.methods.fedavg import FedAvg
from fedelta.tree import Tensors

MOVES_BY_ITS_RATE: Mapping[str, str] = {
    "one client": "the server moves by about learning_rate, whatever the size of what was sent",
    "scale": "the server moves by about learning_rate, whatever the size of what was sent",
}
"""Laws that an optimiser does not keep which divides by the size of what was sent."""


@dataclass(frozen=True)
class ServerOptimizer(Part, Composite, Method):
    """A rule that takes the aggregated displacement of the server's factors for a gradient.

    It acts on the server's own copy, at the largest ranks and its scales, so unequal ranks are the business of the method in
    the middle. A subclass says what `step` makes of one tensor.

    Args:
        learning_rate: the server's.
        lr_ratio: learning rate of the factors A over that of B and of the dense tensors.
    """

    learning_rate: float = 1.0
    lr_ratio: float = 1.0

    stable: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for claim, value in claims(FedAvg, [], cls).items():
            setattr(cls, claim, value)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.learning_rate > 0 and self.lr_ratio > 0):
            raise ValueError(
                f"{self.name} needs learning_rate and lr_ratio above 0, got {self.learning_rate} and {self.lr_ratio}"
            )

    @property
    def parts(self) -> Parts:
        return Parts([], FedAvg(), self)

    @abstractmethod
    def start(self, like: Tensor) -> State:
        """Returns the memory of one tensor before its first step."""

    @abstractmethod
    def step(self, memory: State, displacement: Tensor) -> tuple[Tensor, State]:
        """Returns the direction in which to move one tensor, and its next memory."""

    def displace(self, state: State, step: Tensors, updates: Sequence[ClientUpdate]) -> tuple[Tensors, State]:
        directions: dict[str, Tensor] = {}
        memories: dict[str, State] = {}
        for n, x in step.items():
            direction, memories[n] = self.step(state[n] if n in state else self.start(x), x)
            directions[n] = self._rate(n) * direction
        # A second moment that overflows would stop its tensor for ever, and in silence: m / sqrt(Inf) is no step at all.
        tree.check_finite(memories, f"{self.name}'s memory")
        return directions, {**state, **memories}

    def _rate(self, name: str) -> float:
        return self.learning_rate * (self.lr_ratio if name.endswith(".lora_A") else 1.0)


def check_moments(optimizer: ServerOptimizer, beta1: float, tau: float, beta2: float = 0.0) -> None:
    """Raises ValueError for settings of two moments that make no sense."""
    if not 0 <= beta1 < 1 or not tau > 0:
        raise ValueError(f"{optimizer.name} needs 0 <= beta1 < 1 and tau > 0, got {beta1} and {tau}")
    if not 0 <= beta2 < 1:
        raise ValueError(f"{optimizer.name} needs 0 <= beta2 < 1, got {beta2}")
