"""Brings images to what a model reads: one size, three channels, and numbers of the spread that it was trained with.

It is told by numbers alone, which lie beside a model's weights (preprocessor_config.json), so that no processor is downloaded.
An image is kept at 8 bits a channel, and becomes float32 when a batch is made of it: a quarter of the memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fedelta.data.images import Levels
from fedelta.demands import number, whole

Filter: TypeAlias = Literal["bilinear", "bicubic"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's training images, on a scale from 0 to 1: what most vision models are trained with."""

SIDE = 224
"""Pixels of a side, where neither the task nor the model says how many."""

LARGEST = 4096
"""Pixels of a side beyond which no model goes, and memory would not do."""

FILTERS: Mapping[int, Filter] = {2: "bilinear", 3: "bicubic"}
"""By the number that Pillow, and so preprocessor_config.json, gives to a filter."""


@dataclass(frozen=True, kw_only=True)
class ImageProcessor:
    """Prepares images as a model was trained with.

    The whole image is brought to the size, so that one that is not square is squeezed, and nothing is cut off.

    Args:
        size: pixels of height and width.
        mean: of each channel, on a scale from 0 to 1; taken from the levels.
        std: of each channel; what is left is divided by it.
        resample: how pixels between pixels are found.
    """

    size: tuple[int, int] = (SIDE, SIDE)
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    resample: Filter = "bicubic"

    def __post_init__(self) -> None:
        for side in self.size:
            whole(least=1, most=LARGEST)("size", side)
        for name, numbers, check in (("mean", self.mean, number()), ("std", self.std, number(above=0))):
            if len(numbers) != 3:
                raise ValueError(f"{name} has one number for each of 3 channels, got {numbers}")
            for value in numbers:
                check(name, value)

    def resized(self, image: Levels) -> Levels:
        """Returns an image of this size, with as many channels as it has: it is smoothed where it shrinks."""
        if image.shape[1:] == self.size:
            return image
        levels = torch.tensor(image, dtype=torch.float32)[None]  # a copy, since an image may be read-only
        found = F.interpolate(levels, self.size, mode=self.resample, align_corners=False, antialias=True)
        return found[0].round().clamp(0, 255).to(torch.uint8).numpy()

    def pixel_values(self, image: Levels) -> Tensor:
        """Returns what the model reads of an image of this size, with three channels: (3, height, width) in float32."""
        mean, std = (torch.tensor(numbers, dtype=torch.float32)[:, None, None] for numbers in (self.mean, self.std))
        return (torch.tensor(image, dtype=torch.float32) / 255 - mean) / std

    def as_json(self) -> dict[str, Any]:
        """Returns the content of a preprocessor_config.json by which transformers prepares images in the same way."""
        return {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": self.size[0], "width": self.size[1]},
            "resample": next(code for code, name in FILTERS.items() if name == self.resample),
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "do_convert_rgb": True,
        }


@dataclass(frozen=True)
class Picture:
    """An image of the model's size, as an example holds it.

    Args:
        levels: (1 or 3, height, width).
        processor: makes what the model reads of it.
    """

    levels: Levels
    processor: ImageProcessor

    def pixel_values(self) -> Tensor:
        """Returns what the model reads: (3, height, width) in float32."""
        return self.processor.pixel_values(self.levels)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.float32]:
        """Returns the same as an array, for whoever compares examples."""
        return self.pixel_values().numpy().astype(dtype or np.float32)


def processor_from(settings: Mapping[str, Any], side: int | None = None) -> ImageProcessor:
    """Returns the processor that a preprocessor_config.json describes; what it does not say is ImageNet's.

    Args:
        settings: the file's content. A cut that it describes is left out, since it loses the edges: the whole image is brought
            to the size that would be cut.
        side: pixels of a side where the settings name no size.

    Raises:
        ValueError: for sizes or numbers that no image has, or channels in another order than red, green, blue.
    """
    if settings.get("do_flip_channel_order"):
        raise ValueError("it wants blue before green and red (do_flip_channel_order), not done here: take another model")
    mean, std = _spread(settings)
    return ImageProcessor(
        size=_size(settings, side or SIDE),
        mean=mean,
        std=std,
        resample=FILTERS.get(settings.get("resample", 3), "bicubic"),
    )


def _spread(settings: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and spread of levels from 0 to 1, of settings that may bring them to another range before.

    A level x from 0 to 255 becomes (f x - offset - mean) / std with f the rescale factor, as a rule 1 / 255; here it is
    (x / 255 - m) / s.
    """
    normalised = settings.get("do_normalize", True)
    mean = _three(settings.get("image_mean"), MEAN) if normalised else (0.0,) * 3
    std = _three(settings.get("image_std"), STD) if normalised else (1.0,) * 3
    rescaled = settings.get("do_rescale", True)
    top = 255 * float(settings.get("rescale_factor", 1 / 255) if rescaled else 1)
    offset = 1.0 if rescaled and settings.get("rescale_offset") else 0.0
    if not offset and math.isclose(top, 1, rel_tol=1e-6):
        return mean, std
    if not top > 0:
        raise ValueError(f"rescale_factor must be above 0, got {settings.get('rescale_factor')!r}")
    return tuple((m + offset) / top for m in mean), tuple(s / top for s in std)


def _size(settings: Mapping[str, Any], side: int) -> tuple[int, int]:
    """Returns height and width: those of the cut, which the model was trained with, before those of the image around it."""
    cut = settings.get("crop_size") if settings.get("do_center_crop") else None
    size = cut or settings.get("size")
    if isinstance(size, Mapping):
        sizes = cast("Mapping[str, int]", size)
        shortest = sizes.get("shortest_edge", side)
        size = sizes.get("height", shortest), sizes.get("width", shortest)
    if isinstance(size, int):
        size = size, size
    pair: Sequence[int] = tuple(size) if isinstance(size, list | tuple) else (side, side)
    return int(pair[0]), int(pair[-1])


def _three(numbers: Any, otherwise: tuple[float, ...]) -> tuple[float, ...]:
    """Returns a number for each of three channels; one number counts for all."""
    if isinstance(numbers, int | float):
        return (float(numbers),) * 3
    found = tuple(map(float, numbers)) if isinstance(numbers, list | tuple) else otherwise
    return found * 3 if len(found) == 1 else found


def as_processor(given: Any) -> ImageProcessor:
    """Returns the processor that a model brought, or that one of transformers describes; ImageNet's for anything else."""
    if isinstance(given, ImageProcessor):
        return given
    if hasattr(given, "image_mean") and hasattr(given, "to_dict"):  # an image processor of transformers
        return processor_from(given.to_dict())
    return ImageProcessor()
