"""The largest numbers of each matrix, with their places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Size, Tensor

from fedelta.exchange.codecs._codec import check_setting, demand
from fedelta.exchange.codecs._difference import DifferenceCodec, Part
from fedelta.tree import Tensors

MOST = 2**31 - 1
"""The numbers that int32 can tell apart, in all coded tensors of a message."""


@dataclass(frozen=True, kw_only=True)
class TopK(DifferenceCodec):
    """Sends a share of the numbers of each matrix, those that changed most, and their places; the others stay as sent down.

    Eight bytes a number that is sent. Only differences: a matrix without a counterpart in what was sent down travels whole,
    for a value that is not sent would be taken for zero.

    Args:
        share: of the numbers of each matrix; one at least.
        feedback: whether changes that were not sent are added to the next round's difference.
    """

    last: ClassVar[bool] = False
    own: ClassVar[tuple[str, ...]] = ("values", "indices")

    share: float = 0.1
    feedback: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting(self, "share", (int, float), lambda x: 0 < x <= 1, "a number above 0 and at most 1")

    def takes(self, part: Part) -> bool:
        return part.reference is not None

    def place_of(self, path: str, shape: Size) -> Size:
        """Returns the shape without numbers that tells which tensor was taken out; the factors of a layer still match."""
        return Size((*shape[:-1], 0) if path.endswith("/A") else (0, *shape[1:]))

    def error(self, x: Tensor) -> Tensor:
        """Returns for each number the magnitude of the smallest that is sent, which bounds all that are not.

        Those that are sent are exact, but for the rounding of float64 to float32.
        """
        smallest = x.abs().flatten().topk(self._count(x)).values[-1]
        return torch.maximum(smallest, x.abs() * 2.0**-24)

    def pack(self, parts: Sequence[Part], values: Sequence[Tensor]) -> tuple[list[Tensor], Tensors]:
        total = sum(x.numel() for x in values)
        if total > MOST:
            raise ValueError(f"the codec top_k tells {MOST} numbers apart, and the upload has {total}: take int8")
        chosen = [_largest(x.flatten().abs(), self._count(x)) for x in values]
        offsets = accumulate((x.numel() for x in values), initial=0)
        own = {
            "values": _joined([x.flatten()[at].float() for x, at in zip(values, chosen, strict=True)], torch.float32),
            "indices": _joined([(at + n).int() for at, n in zip(chosen, offsets, strict=False)], torch.int32),
        }
        holes = (self.place_of(part.path, x.shape) for part, x in zip(parts, values, strict=True))
        return [torch.empty(shape, dtype=torch.uint8) for shape in holes], own

    def unpack(self, parts: Sequence[Part], own: Tensors) -> list[Tensor]:
        shapes: list[Size] = []
        for part in parts:
            demand(self, part.path, part.tensor.numel() == 0, "holds numbers in the place of a tensor that was taken out")
            demand(self, part.path, part.reference is not None, "is no tensor that was sent down")
            shapes += [] if part.reference is None else [part.reference.shape]
        counts = [shape.numel() for shape in shapes]
        values, indices = self._checked(own, sum(counts))
        flat = torch.zeros(sum(counts), dtype=values.dtype, device=values.device)
        flat[indices.long()] = values
        return [x.view(shape) for x, shape in zip(flat.split(counts), shapes, strict=True)]

    def _checked(self, own: Tensors, total: int) -> tuple[Tensor, Tensor]:
        """Returns values and indices; raises ValueError unless they are such, of `total` numbers."""
        values, indices = own["values"], own["indices"]
        demand(self, "values", values.ndim == 1 and values.dtype == torch.float32, "is not a row of float32 numbers")
        demand(self, "values", bool(torch.isfinite(values).all()), "holds NaN or Inf")
        form = indices.dtype == torch.int32 and indices.shape == values.shape
        demand(self, "indices", form, f"needs {values.numel()} int32 numbers, one for each value")
        inside = not indices.numel() or (int(indices[0]) >= 0 and int(indices[-1]) < total)
        rising = bool((indices[1:] > indices[:-1]).all())
        demand(self, "indices", inside and rising, f"do not rise from 0 or more to below {total}")
        return values, indices

    def _count(self, x: Tensor) -> int:
        return max(1, round(self.share * x.numel()))


def _largest(magnitudes: Tensor, count: int) -> Tensor:
    """Returns the places of the largest numbers, ascending; of equal ones the first, which `topk` leaves open."""
    smallest = magnitudes.topk(count).values[-1]
    above = (magnitudes > smallest).nonzero().flatten()
    level = (magnitudes == smallest).nonzero().flatten()[: count - len(above)]
    return torch.cat([above, level]).sort().values


def _joined(rows: list[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat(rows) if rows else torch.zeros(0, dtype=dtype)
