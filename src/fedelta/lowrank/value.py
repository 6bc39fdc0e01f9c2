"""One layer's delta as a value: `LoRA`, an operator that is never formed as a matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

SigmaOn: TypeAlias = Literal["A", "B", "both"]
"""Which factor carries the singular values after a truncation."""


Weight: TypeAlias = float | Tensor
"""A client's weight, or one weight for each of its components, shape (r,)."""


@dataclass(frozen=True, eq=False)
class LoRA:
    """The delta of one layer as an operator: dW = scale * B @ A.

    Attributes:
        B: shape (o, r).
        A: shape (r, i).
        scale: lora_alpha / r, lora_alpha / sqrt(r) (rsLoRA) or any constant. It is part of the value.

    Raises:
        ValueError: if the factors are not matrices that multiply, or the scale is NaN or Inf.
    """

    B: Tensor
    A: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.B.ndim != 2 or self.A.ndim != 2 or self.B.shape[1] != self.A.shape[0]:
            raise ValueError(
                f"B (o, r) and A (r, i) must share the rank r; got B {tuple(self.B.shape)} and A {tuple(self.A.shape)}"
            )
        if not math.isfinite(self.scale):
            raise ValueError(f"the scale of a delta must be a finite number, got {self.scale}; check lora_alpha")

    def __repr__(self) -> str:
        dtype = str(self.B.dtype).removeprefix("torch.")
        return f"LoRA({self.B.shape[0]} x {self.A.shape[1]}, rank {self.rank}, scale {self.scale:g}, {dtype})"

    @property
    def rank(self) -> int:
        """The number of components, r."""
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i), the shape of dW."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.B.dtype

    def to(self, *args: Any) -> LoRA:
        """Both factors moved or cast, as `Tensor.to`."""
        return LoRA(self.B.to(*args), self.A.to(*args), self.scale)

    def dense(self) -> Tensor:
        """dW itself, (o, i): for tests and for what is written into a weight, never inside an aggregation."""
        return self.scale * (self.B @ self.A)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over clients are formed: float32, or wider if the input is."""
    return torch.promote_types(dtype, torch.float32)


def is_finite(x: Tensor) -> bool:
    """Returns whether no entry is NaN or Inf. The extremes say it in one pass, where `isfinite` writes out a mask."""
    return not x.numel() or all(math.isfinite(v) for v in torch.stack(torch.aminmax(x)).tolist())


def with_factor(x: LoRA, which: Literal["A", "B"], value: Tensor) -> LoRA:
    """x with one factor replaced."""
    return replace(x, B=value) if which == "B" else replace(x, A=value)
