"""Brain floats: the range of float32 in half of its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedelta.exchange.codecs._cast import Cast


@dataclass(frozen=True, kw_only=True)
class BFloat16(Cast):
    """Rounds numbers to bfloat16: half the bytes of float32, a relative error of at most 2^-8 (0.4 %)."""

    dtype: ClassVar[torch.dtype] = torch.bfloat16
