"""Codecs that round every number to a floating-point type of half the size."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedelta import tree
from fedelta.exchange.channel import Memory
from fedelta.exchange.codecs._codec import LETTERS, Codec, demand, opened, replaced, seal
from fedelta.peers import Peer
from fedelta.tree import Message


class Cast(Codec):
    """Sends the floating-point tensors of an upload, single numbers aside, rounded to 16 bits.

    Values, not differences: a neighbour on a graph can read them, who does not know what their sender began from. They go up
    only. Down, they would move the base that clients hold away from the server's, and frozen factors with it.

    Class attributes:
        dtype: the type that numbers are rounded to.
    """

    dtype: ClassVar[torch.dtype]

    def encode(self, t: int, peer: Peer, down: Message, content: Message, memory: Memory) -> tuple[Message, Memory]:
        places = {
            k: (LETTERS[x.dtype], self._rounded(path, x))
            for k, (path, x) in enumerate(tree.named_tensors(content))
            if x.dtype in (torch.float32, torch.float64) and x.ndim
        }
        return seal(self, content, places), memory

    def decode(self, t: int, peer: Peer, down: Message, content: Message) -> Message:
        inner, dtypes = opened(self, content)
        parts = list(tree.named_tensors(inner))
        for k in dtypes:
            path, x = parts[k]
            demand(self, path, x.dtype == self.dtype, f"holds {x.dtype}, not {self.dtype}")
        return replaced(inner, {k: parts[k][1].to(dtype) for k, dtype in dtypes.items()})

    def error(self, x: Tensor) -> Tensor:
        """Returns half the distance of two numbers of the smaller type, at each number."""
        limits = torch.finfo(self.dtype)
        # wider numbers may be rounded on the way, to float32, which adds as little as the second factor
        relative = limits.eps / 2 * (1 + 2.0**-12)
        return torch.clamp(x.abs() * relative, min=limits.smallest_normal * limits.eps / 2)

    def _rounded(self, path: str, x: Tensor) -> Tensor:
        rounded = x.to(self.dtype)
        if not torch.equal(torch.isfinite(rounded), torch.isfinite(x)):
            raise ValueError(
                f"{path} holds numbers beyond {torch.finfo(self.dtype).max:g}, the largest of {self.name}: take bf16, or none"
            )
        return rounded
