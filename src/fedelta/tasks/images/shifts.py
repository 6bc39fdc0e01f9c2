"""Synthetic shifts between clients: what the same camera's images would be at another site, made by arithmetic.

They stand for a difference in the features at equal labels. Real sites differ in more ways and less plainly, so that docs and
tables call them synthetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch.nn import functional as F

from fedelta.data.images import Levels
from fedelta.registry import check_name

FIELD = "feature_shift"
"""The field of a row that names the shift of its image."""

BLUR = 1 / 28
"""The standard deviation of the blur, as a share of the image's height: one pixel of 28."""

Shift: TypeAlias = Callable[[Levels], Levels]


def rotated(image: Levels) -> Levels:
    """Returns the image turned by a quarter, to the left."""
    return np.ascontiguousarray(np.rot90(image, axes=(1, 2)))


def blurred(image: Levels) -> Levels:
    """Returns the image without its details: a Gaussian mean over neighbours, with the edge repeated beyond it."""
    width = max(BLUR * image.shape[1], 0.1)
    reach = min(int(3 * width + 0.5), min(image.shape[1:]) - 1)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / width) ** 2)
    weights = weights / weights.sum()
    levels = F.pad(torch.tensor(image, dtype=torch.float32)[:, None], (reach,) * 4, mode="replicate")
    levels = F.conv2d(F.conv2d(levels, weights[None, None, :, None]), weights[None, None, None, :])
    return levels[:, 0].round().clamp(0, 255).to(torch.uint8).numpy()


def inverted(image: Levels) -> Levels:
    """Returns the negative of the image: dark for light."""
    return 255 - image


SHIFTS: Mapping[str, Shift] = {
    "none": lambda image: image,
    "rotation": rotated,
    "blur": blurred,
    "inversion": inverted,
}
"""By name, as in a config's `partition.feature_shift`."""


def shift_of(name: str) -> Shift:
    """Returns a shift by its name; raises ValueError, with the nearest known one, for another."""
    check_name("feature shift", name, SHIFTS)
    return SHIFTS[name]
