"""Reads an image out of a row, in whatever form it is there, as 8 bits a channel.

A field may hold a path, the bytes of a file, an array or nested lists, an image of Pillow, or what a data set of the Hub has
for an image, `{bytes: ..., path: ...}`. Only arrays are read without Pillow.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from fedelta.data.rows import Row, value_of

IMAGES_EXTRA = "pip install 'fedelta[images]'"

Levels: TypeAlias = NDArray[np.uint8]
"""The pixels of an image, (channels, height, width), with one channel (grey) or three (red, green, blue), 0 is dark."""

CHANNELS = (1, 3, 4)
"""The numbers of channels that an array may have; the fourth says how opaque a pixel is, and is left out."""

OF_16_BITS = 65535
"""The brightest level of 16 bits; an image of these is brought to 8 bits by division, and not cut at 255."""


def image_of(row: Row, index: int, field: str) -> Levels:
    """Returns the image in a field.

    Args:
        row: with the image.
        index: of the row, for messages.
        field: the name of its field.

    Raises:
        ValueError: there is no such field, or what it holds is no image: a file that is missing or damaged, an array of another
            shape, or numbers out of range; the message names row, field and remedy.
        ImportError: the image is to be decoded, and Pillow is not installed.
    """
    value = value_of(row, index, field)
    try:
        return levels_of(value)
    except ValueError as error:
        raise ValueError(f"row {index}: field {field!r} holds {error}") from error


def levels_of(value: Any) -> Levels:
    """Returns the pixels of an image in any of the forms that a row may have; raises as `image_of`."""
    if isinstance(value, Mapping) and value.keys() & {"bytes", "path"}:
        stored = cast("Mapping[str, Any]", value)
        value = stored.get("path") if stored.get("bytes") is None else stored["bytes"]
    if isinstance(value, str | PathLike):
        return _from_file(Path(value))
    if isinstance(value, bytes | bytearray):
        return _decoded(io.BytesIO(value), f"{len(value):,} bytes")
    if hasattr(value, "getbands"):  # an image of Pillow, which need not be imported to tell
        return _from_pillow(value)
    return _from_array(value)


# --- files ------------------------------------------------------------------------------------------------------------


def _from_file(path: Path) -> Levels:
    if not path.is_file():
        what = "which is a folder" if path.is_dir() else f"where there is no file (looked in {path.absolute().parent})"
        raise ValueError(f"the path {str(path)!r}, {what}: give the path of an image")
    return _decoded(path, f"the path {str(path)!r}")


def _decoded(source: Path | io.BytesIO, what: str) -> Levels:
    """Returns the image that Pillow finds in a file, turned as its camera says."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError(f"images in files are decoded by Pillow: {IMAGES_EXTRA}") from error
    try:
        with Image.open(source) as image:
            image.load()
            return _from_pillow(ImageOps.exif_transpose(image))
    except _Unfit as error:
        raise ValueError(f"{what}: {error}") from error
    except Exception as error:  # decoders raise errors of many kinds on a damaged file, and on one that would not fit memory
        raise ValueError(
            f"{what}, which cannot be read as an image ({error}): fetch the file again, or leave it out"
        ) from error


class _Unfit(ValueError):
    """Says what is wrong with the pixels of an image that could be decoded."""


def _from_pillow(image: Any) -> Levels:
    mode = str(image.mode)
    if mode.startswith("I"):  # of 16 bits, which a plain conversion would cut at 255
        return _from_array(_in_16_bits(np.asarray(image)))
    if mode == "F":
        return _from_array(np.asarray(image))
    if mode in ("1", "L", "LA", "La"):
        return _from_array(np.asarray(image.convert("L")))
    if mode == "P":  # whose colours may be transparent, one by one
        image = image.convert("RGBA")
    return _from_array(np.asarray(image.convert("RGB")))


def _in_16_bits(array: NDArray[Any]) -> NDArray[np.uint16]:
    if array.min() < 0 or array.max() > OF_16_BITS:
        raise _Unfit(f"its levels go from {array.min()} to {array.max()}, which are not 16 bits: save it with 8 or 16")
    return array.astype(np.uint16)


# --- arrays -----------------------------------------------------------------------------------------------------------


def _from_array(value: Any) -> Levels:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise _Unfit(f"a {type(value).__name__} that is no array of numbers ({error}): give rows of equal length") from error
    if array.dtype.kind not in "buif":
        raise _Unfit(f"a {type(value).__name__}, but an image is a path, an array or an image of Pillow")
    return np.ascontiguousarray(_eight_bits(_channels_first(array)))


def _channels_first(array: NDArray[Any]) -> NDArray[Any]:
    if 0 in array.shape:
        raise _Unfit(f"an array of shape {array.shape}, without a pixel: leave the row out")
    if array.ndim == 2:
        return array[None]
    if array.ndim == 3 and array.shape[2] in CHANNELS:
        array = array.transpose(2, 0, 1)
    elif array.ndim != 3 or array.shape[0] not in CHANNELS:
        raise _Unfit(
            f"an array of shape {array.shape}, but an image has the shape (height, width), or 1, 3 or 4 channels as its last "
            "or first size: choose three of its channels"
        )
    return array[:3]


def _eight_bits(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Returns levels from 0 to 255: those of 16 bits and of fractions are brought there, others must be there."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    low, high = float(array.min()), float(array.max())
    top = 1 if array.dtype.kind in "bf" else 255
    if not (low >= 0 and high <= top):  # not a number is neither
        kind = "fractions" if top == 1 else "whole numbers"
        raise _Unfit(
            f"an array of {kind} from {low:g} to {high:g}, where levels go from 0 to {top}: bring them there, or give whole "
            "numbers from 0 to 255 (of the type uint16 up to 65535)"
        )
    return np.round(array.astype(np.float32) * (255 / top)).astype(np.uint8)
