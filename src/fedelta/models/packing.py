"""Packs the real tokens of a padded batch, for layers that see nothing else.

Hidden states of a batch (B, L, d) may come to a layer as its N real tokens (1, N, d). Whoever draws by place (dropout) or
counts rows (a joint pass) asks `packing_of`; it answers None in passes that keep their padding.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

WORTHWHILE = 0.9
"""The share of real tokens below which leaving out the others pays for moving the rest about."""

current: ContextVar[Packing | None] = ContextVar("packing", default=None)
"""Of the pass that runs in this thread."""


@dataclass(frozen=True, eq=False)
class Packing:
    """The real tokens of one batch.

    Args:
        mask: (B, L), true at real tokens.
        index: (N,), their places in the flattened grid.
    """

    mask: Tensor
    index: Tensor
    _counts: dict[tuple[int, ...], tuple[int, ...]] = field(default_factory=dict[tuple[int, ...], tuple[int, ...]])

    @classmethod
    def of(cls, mask: Any) -> Packing | None:
        """Finds the real tokens; returns None where no padding is worth leaving out, or where a sequence begins with it."""
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            return None
        mask = mask.bool()
        index = mask.flatten().nonzero().squeeze(1)
        if len(index) > WORTHWHILE * mask.numel() or not bool(mask[:, 0].all()):
            return None
        return cls(mask, index)

    @property
    def total(self) -> int:
        """N."""
        return len(self.index)

    def holds(self, x: Tensor) -> bool:
        """Says if x is (1, N, ...), or (N, d) as a layer may have it that flattens its sequences."""
        return x.shape[:2] == (1, self.total) or (x.ndim == 2 and len(x) == self.total)

    def counts(self, sequences: tuple[int, ...]) -> tuple[int, ...]:
        """Counts the real tokens of each part of the batch, given the sequences of each."""
        if sequences not in self._counts:
            parts = self.mask.sum(1).split(list(sequences))
            self._counts[sequences] = tuple(torch.stack([part.sum() for part in parts]).tolist())
        return self._counts[sequences]

    def pack(self, x: Tensor) -> Tensor:
        """Drops the padding: (B, L, ...) -> (1, N, ...)."""
        rows: Any = _Pack.apply(x.reshape(self.mask.numel(), -1), self.index)
        return rows.view(1, self.total, *x.shape[2:])

    def unpack(self, x: Tensor) -> Tensor:
        """Puts the tokens back into the grid, zero at the padding: (1, N, ...) -> (B, L, ...)."""
        grid: Any = _Unpack.apply(x.reshape(self.total, -1), self.index, self.mask.numel())
        return grid.view(*self.mask.shape, *x.shape[2:])

    def first(self, x: Tensor) -> Tensor:
        """Picks the first token of each sequence: (1, N, d) -> (B, 1, d)."""
        lengths = self.mask.sum(1)
        return x[0].index_select(0, lengths.cumsum(0) - lengths)[:, None]

    def packed(self, value: Any) -> Any:
        """Packs a layer's argument that is given for each token of the grid, or for those of any sequence; leaves others."""
        if isinstance(value, tuple):
            return tuple(map(self.packed, value))
        if not isinstance(value, Tensor) or value.ndim not in (2, 3):
            return value
        if value.shape[:2] == self.mask.shape:
            return self.pack(value)
        one = len(self.mask) > 1 and value.shape[:2] == (1, self.mask.shape[1])
        return self.pack(value.expand(len(self.mask), *value.shape[1:])) if one else value


def packing_of(x: Tensor) -> Packing | None:
    """Returns the packing of the pass that runs, if x holds its packed tokens."""
    packing = current.get()
    return packing if packing is not None and packing.holds(x) else None


class _Pack(torch.autograd.Function):
    """Takes rows of (M, w) at distinct places (N,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.total = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        return scattered(grads[0], index, ctx.total), None


class _Unpack(torch.autograd.Function):
    """Puts rows (N, w) at distinct places of (M, w), which is zero elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, total: int) -> Tensor:
        ctx.save_for_backward(index)
        return scattered(x, index, total)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0].index_select(0, *ctx.saved_tensors), None, None


def scattered(x: Tensor, index: Tensor, total: int) -> Tensor:
    """Puts rows (N, w) at distinct places of (total, w), which is zero elsewhere."""
    return x.new_zeros(total, x.shape[1]).index_copy_(0, index, x)
