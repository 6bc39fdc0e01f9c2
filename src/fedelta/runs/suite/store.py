"""Keeps finished cells in one file that can be committed and shared: gzip members of JSON lines, one for each cell.

A cell is appended as a member of its own, under a lock, so that several processes may write to one store. A writer that
is killed leaves at most a last member that breaks off: it does not count, and the next writer cuts it away. The bytes depend
on the cells alone.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fedelta.exchange import files
from fedelta.runs.suite.lines import Line, encoded, parsed

LONGEST_LINE = 256 * 2**20
"""Bytes that a line may have; a cell of a hundred rounds has a few hundred KB."""

PIECE = 1 << 16
"""Bytes that are unpacked at a time: even a bomb makes at most a thousand times as many of them."""

HEADER = b"\x1f\x8b"
"""The first bytes of every gzip member."""


@dataclass
class Store:
    """A store of finished cells.

    Attributes:
        path: of the file; it need not be there yet.
        lines: by digest, what was read so far; of two lines of one digest the first counts.
    """

    path: Path
    lines: dict[str, Line] = field(default_factory=dict[str, Line])
    _read: int = 0
    _count: int = 0

    def refresh(self) -> None:
        """Reads what was added since the last time.

        Raises:
            ValueError: naming the line, for one that is no finished cell; or for a file that is damaged before its end.
        """
        if self.path.is_file() and self.path.stat().st_size > self._read:
            with self.path.open("rb") as file:  # a writer changes no whole member, so that reading needs no lock
                self._take(file.fileno())

    def add(self, line: Line) -> None:
        """Appends a line, which is on the disk when this returns; one that is there already is not repeated."""
        if line["digest"] in self.lines:
            return
        with files.appending(self.path) as handle:
            self._take(handle)
            if line["digest"] in self.lines:
                return
            os.ftruncate(handle, self._read)  # what a killed writer left of its last member
            os.lseek(handle, 0, os.SEEK_END)
            files.write_to(handle, self.path, gzip.compress(encoded(line) + b"\n", mtime=0))
            self._take(handle)

    def _take(self, handle: int) -> None:
        """Reads the whole members after those that were read before."""
        size = os.fstat(handle).st_size
        if size <= self._read:
            return
        os.lseek(handle, self._read, os.SEEK_SET)
        rest = _read_all(handle, size - self._read)
        for text, length in _members(rest, self.path):
            for raw in text:
                self._count += 1
                self._keep(raw)
            self._read += length

    def _keep(self, raw: bytes) -> None:
        try:
            line = parsed(raw)
        except ValueError as error:
            raise ValueError(f"{self.path}, line {self._count}: {error}; take the line out, or give another store") from None
        self.lines.setdefault(line["digest"], line)


def _members(content: bytes, path: Path) -> Iterator[tuple[list[bytes], int]]:
    """Yields the lines and the length of each whole member.

    Raises:
        ValueError: for a damaged member with others after it.
    """
    rest = memoryview(content)
    if not HEADER.startswith(content[: len(HEADER)]):
        raise ValueError(f"{path} is no gzip file where a line should begin: bring it back as it was, or give another store")
    while rest:
        try:
            member = _unpacked(rest, path)
        except zlib.error as error:
            if content.find(HEADER, len(content) - len(rest) + 1) >= 0:
                at = len(content) - len(rest)
                raise ValueError(f"{path} is damaged {at} bytes after its last good line ({error}): bring it back") from None
            return
        if member is None:
            return
        yield member
        rest = rest[member[1] :]


def _unpacked(rest: memoryview, path: Path) -> tuple[list[bytes], int] | None:
    """Returns the lines and the length of the first member; None for one that breaks off."""
    unpacker = zlib.decompressobj(wbits=31)
    lines: list[bytes] = []
    line, taken = bytearray(), 0
    while not unpacker.eof:
        piece = rest[taken : taken + PIECE]
        if not piece:
            return None
        taken += len(piece)
        *whole, last = unpacker.decompress(piece).split(b"\n")
        for part in whole:
            lines.append(bytes(line + part))
            line.clear()
        line += last
        if len(line) > LONGEST_LINE:
            raise ValueError(f"{path}: a line has more than {LONGEST_LINE >> 20} MiB, which no cell has: give another store")
    return [raw for raw in (*lines, bytes(line)) if raw], taken - len(unpacker.unused_data)


def _read_all(handle: int, count: int) -> bytes:
    parts: list[bytes] = []
    while count > 0 and (part := os.read(handle, count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
