"""Adapter dropout that draws from a generator of its own, in place of PEFT's, which draws from the global one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedelta.models.packing import packing_of


class SeededDropout(nn.Module):
    """Inverted dropout with an explicit source of randomness.

    Without a generator it is the identity, whatever `train()` says: what is dropped depends on the client and the round
    alone, never on who ran before.

    Args:
        p: the share of entries that are set to zero; the others are divided by 1 - p.

    Raises:
        ValueError: for p outside [0, 1).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"lora_dropout must be in [0, 1), got {p}")
        self.p = p
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.generator is None or self.p == 0:
            return x
        packing = packing_of(x)
        shape = x.shape if packing is None else (*packing.mask.shape, x.shape[-1])  # what is drawn does not depend on packing
        keep = torch.rand(shape, generator=self.generator, device=x.device) >= self.p
        return x * (keep if packing is None else packing.pack(keep)) / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"
