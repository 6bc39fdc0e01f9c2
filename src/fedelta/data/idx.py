"""Reads arrays in the idx format, in which MNIST and its relatives are kept."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BYTES = 0x08
"""The mark of whole numbers from 0 to 255, the third byte of a file."""


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Returns the array of whole numbers from 0 to 255 in a file, which may end in .gz.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: for a file that is damaged, cut off, or of other numbers.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is a cut-off or damaged gzip file ({error}): fetch it again") from error
    if content[:3] != bytes((0, 0, BYTES)) or len(content) < 4:
        raise ValueError(f"{path} is no idx file of whole numbers from 0 to 255")
    ndim = content[3]
    start = 4 + 4 * ndim
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], dtype=">u4"))
    if len(shape) != ndim or len(content) - start != int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f"{path} does not hold the {' x '.join(map(str, shape))} numbers that it tells of: fetch it again")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)
