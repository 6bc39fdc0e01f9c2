"""Reads files of the format GGUF, version 3, and dequantises their tensors: float32, Q4_1 and Q8_0.

The layout of the blocks is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and its ggml-quants.c.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAGIC = b"GGUF"
VERSION = 3

NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""By the number of a type in the file, the format of `struct`."""

TEXT, ARRAY = 8, 9
"""The types of the file that hold several bytes or values."""


@dataclass(frozen=True)
class Kind:
    """Describes how a type of tensor is stored: in blocks of so many values, each of so many bytes."""

    name: str
    values: int
    bytes: int


KINDS: Mapping[int, Kind] = {0: Kind("F32", 1, 4), 3: Kind("Q4_1", 32, 20), 8: Kind("Q8_0", 32, 34)}
"""By the number of a type of tensor in the file."""


@dataclass(frozen=True)
class Stored:
    """Says where a tensor lies.

    Attributes:
        shape: with the outermost axis first, as numpy has it.
        kind: how it is stored.
        start: its first byte in the file.
    """

    shape: tuple[int, ...]
    kind: Kind
    start: int


class Gguf:
    """The facts of a file, and its tensors by name."""

    def __init__(self, file: Path) -> None:
        """Reads all but the tensors.

        Raises:
            ValueError: for a file of another format or version, or a tensor that is stored in a way that is not read here.
        """
        content = file.read_bytes()
        self._bytes = np.frombuffer(content, dtype=np.uint8)
        reader = _Reader(memoryview(content))
        if bytes(reader.take(4)) != MAGIC or reader.number(4) != VERSION:
            raise ValueError(f"{file} is not a GGUF file of version {VERSION}")
        tensors, facts = reader.number(10), reader.number(10)
        self.facts: dict[str, Any] = dict(reader.fact() for _ in range(facts))
        found = [reader.tensor() for _ in range(tensors)]
        align = self.facts.get("general.alignment", 32)
        first = -(-reader.place // align) * align
        self.stored = {name: _stored(file, name, shape, kind, first + start) for name, shape, kind, start in found}

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Returns a tensor in float32."""
        it = self.stored[name]
        blocks = math.prod(it.shape) // it.kind.values
        raw = self._bytes[it.start : it.start + blocks * it.kind.bytes].reshape(blocks, it.kind.bytes)
        return READERS[it.kind.name](np.asarray(raw)).reshape(it.shape)


def _stored(file: Path, name: str, shape: tuple[int, ...], kind: int, start: int) -> Stored:
    if kind not in KINDS:
        raise ValueError(
            f"{file}: tensor {name!r} is of type {kind}, and only {', '.join(k.name for k in KINDS.values())} are read"
        )
    return Stored(shape, KINDS[kind], start)


class _Reader:
    """Takes values off the beginning of a file, one after the other."""

    def __init__(self, content: memoryview) -> None:
        self.content, self.place = content, 0

    def take(self, count: int) -> memoryview:
        self.place += count
        return self.content[self.place - count : self.place]

    def number(self, kind: int) -> Any:
        form = NUMBERS[kind]
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        return bytes(self.take(self.number(10))).decode()

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        if kind == ARRAY:
            inner = self.number(4)
            return [self.value(inner) for _ in range(self.number(10))]
        return self.number(kind)

    def fact(self) -> tuple[str, Any]:
        name = self.text()
        return name, self.value(self.number(4))

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Returns a tensor's name, shape, type, and its first byte behind all that is said of tensors."""
        name = self.text()
        sizes = [self.number(10) for _ in range(self.number(4))]
        return name, tuple(reversed(sizes)), self.number(4), self.number(10)


# --- blocks: each takes (n, bytes of a block) and returns (n, values of a block) in float32 ------------------------------


def _halves(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns what pairs of bytes hold as float16, one column each."""
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def read_f32(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns plain values."""
    return np.ascontiguousarray(raw).view("<f4").astype(np.float32)


def read_q4_1(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns d q + m, with d and m of each block in float16 and q in 0..15: low halves of the bytes first, then high ones."""
    step, least = _halves(raw[:, :2]), _halves(raw[:, 2:4])
    whole = np.concatenate([raw[:, 4:] & 15, raw[:, 4:] >> 4], axis=1)
    return step * whole.astype(np.float32) + least


def read_q8_0(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns d q, with d of each block in float16 and q in -128..127."""
    return _halves(raw[:, :2]) * raw[:, 2:].view(np.int8).astype(np.float32)


READERS = {"F32": read_f32, "Q4_1": read_q4_1, "Q8_0": read_q8_0}
"""By the name of a kind."""
