"""IEEE half precision: finer than bfloat16, with a small range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedelta.exchange.codecs._cast import Cast


@dataclass(frozen=True, kw_only=True)
class Float16(Cast):
    """Rounds numbers to float16: half the bytes of float32, a relative error of at most 2^-11 (0.05 %) from 6e-5 to 65504.

    Below, the error is at most 3e-8: of second moments, which are smaller still, nothing may be left. An upload with a number
    above is refused at the client.
    """

    dtype: ClassVar[torch.dtype] = torch.float16
