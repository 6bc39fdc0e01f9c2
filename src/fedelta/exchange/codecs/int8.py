"""Whole numbers of one byte, in blocks with a scale of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedelta.exchange.codecs._codec import check_setting, demand
from fedelta.exchange.codecs._difference import DifferenceCodec, Part
from fedelta.tree import Tensors

LARGEST = 127

SMALLEST = torch.finfo(torch.float32).tiny
"""The smallest scale whose own rounding is as fine as that of any other; a block with a smaller one loses more of itself."""


@dataclass(frozen=True, kw_only=True)
class Int8(DifferenceCodec):
    """Rounds a matrix, row after row in blocks, to 255 steps between the block's largest magnitude and its negative.

    A block costs a byte for each number and four for its scale; the error is at most 1/254 of its largest magnitude.

    Args:
        block: numbers that share a scale. A smaller block costs more bytes and loses less.
        feedback: whether what was rounded away is added to the next round's difference.
    """

    own: ClassVar[tuple[str, ...]] = ("scales",)

    block: int = 64
    feedback: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting(self, "block", (int,), lambda n: n >= 1, "a whole number of at least 1")

    def takes(self, part: Part) -> bool:
        return True

    def error(self, x: Tensor) -> Tensor:
        """Returns half a step of each number's block; all that a block can hold of which the scale is a denormal number."""
        scales = self._scales(x)
        bounds = torch.where(scales < SMALLEST, LARGEST * SMALLEST, scales / 2 * (1 + 2.0**-16))
        return bounds.repeat_interleave(self._width(x))[: x.numel()].reshape(x.shape).to(x.dtype)

    def pack(self, parts: Sequence[Part], values: Sequence[Tensor]) -> tuple[list[Tensor], Tensors]:
        scales = [self._scales(x) for x in values]
        steps = [self._steps(x, scale) for x, scale in zip(values, scales, strict=True)]
        return steps, {"scales": torch.cat(scales) if scales else torch.zeros(0)}

    def unpack(self, parts: Sequence[Part], own: Tensors) -> list[Tensor]:
        scales, counts = own["scales"], [-(-part.tensor.numel() // self.block) for part in parts]
        form = scales.dtype == torch.float32 and scales.shape == (sum(counts),)
        demand(self, "scales", form, f"needs {sum(counts)} float32 numbers, one for each block of {self.block}")
        demand(self, "scales", bool((torch.isfinite(scales) & (scales >= 0)).all()), "holds NaN, Inf or a negative number")
        for part in parts:
            demand(self, part.path, part.tensor.dtype == torch.int8, f"holds {part.tensor.dtype}, not int8")
        pairs = zip(parts, scales.split(counts), strict=True)
        return [self._read(part.tensor, scale) for part, scale in pairs]

    def _scales(self, x: Tensor) -> Tensor:
        """Returns the step of each block, in float32."""
        return (self._blocks(x).abs().amax(1) / LARGEST).float()

    def _steps(self, x: Tensor, scales: Tensor) -> Tensor:
        """Returns each number in steps of its block, of the shape of x."""
        divisor = torch.where(scales > 0, scales, 1).to(x.dtype)
        steps = (self._blocks(x) / divisor[:, None]).round().clamp(-LARGEST, LARGEST)
        return steps.to(torch.int8).flatten()[: x.numel()].reshape(x.shape)

    def _read(self, steps: Tensor, scales: Tensor) -> Tensor:
        values = self._blocks(steps).float() * scales[:, None]
        return values.flatten()[: steps.numel()].reshape(steps.shape)

    def _blocks(self, x: Tensor) -> Tensor:
        """Returns the numbers of a tensor in rows of a block each, the last one filled up with zeros."""
        flat, width = x.flatten(), self._width(x)
        return pad(flat, (0, -flat.numel() % width)).view(-1, width)

    def _width(self, x: Tensor) -> int:
        """Returns the length of a row of `_blocks`: a tensor shorter than a block takes no more memory than it has numbers."""
        return min(self.block, max(1, x.numel()))
