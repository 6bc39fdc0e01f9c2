"""Keeps updates on disk that memory should not hold, and maps them back one layer at a time.

Bare tensors are written and no messages, each at a multiple of 64 bytes. A product of matrices may round in another way if its
data are not aligned, and a round must not change by a bit because its updates were spooled.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import IO, Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fedelta import tree
from fedelta.exchange import wire
from fedelta.merging import ClientUpdate
from fedelta.tree import Adapter

logger = logging.getLogger("fedelta.engines")

Spooling: TypeAlias = bool | Literal["auto"]
"""Whether updates go to disk: all, none, or those beyond the first `IN_MEMORY` bytes of a round."""

IN_MEMORY = 2**30
"""Bytes of a round's updates that "auto" keeps in memory."""

SMALL = 1 << 16 if hasattr(os, "preadv") else 0
"""Bytes of a tensor below which it is read rather than mapped: a map takes one of the process's handles, of which it may have
no more than a thousand, while a layer is looked at for all clients together."""

ALIGNMENT = 64
"""Bytes; what torch aligns its own tensors to."""


TOO_MANY = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""The system's errors for a process that has as many handles, or maps, as it may have."""


def held(when: Spooling, size: int) -> int:
    """Returns how many of `size` bytes of updates stay in memory."""
    return min(size, {True: 0, "auto": IN_MEMORY}.get(when, size))


class _Place(NamedTuple):
    """The place of a tensor, from the beginning of its update, and what it was."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    device: torch.device


@dataclass(frozen=True)
class _Layout:
    """The structure of an update without its numbers; clients of equal ranks have the same."""

    structure: Any
    places: Mapping[str, _Place]
    size: int


@dataclass(eq=False)
class Spool:
    """Takes in the updates of one round after the other.

    The file has no name, so that the system frees it with the last update that lies in it, or when the process ends, even by a
    kill.

    Args:
        when: which updates go to disk. They go to the system's temporary folder, which the variable TMPDIR names.

    Raises:
        ValueError: for another `when`.
    """

    when: Spooling = "auto"
    _held: int = 0
    _file: IO[bytes] | None = None
    _layouts: list[_Layout] = field(default_factory=list[_Layout])

    def __post_init__(self) -> None:
        if self.when not in (True, False, "auto"):
            raise ValueError(f"spool must be true, false or 'auto', got {self.when!r}")

    def begin(self) -> None:
        """Starts a round: the updates of the last one stay readable for whoever still has them."""
        # A new file for each round: the mapped updates of the old one keep it open as long as they are needed.
        self._held, self._file, self._layouts = 0, None, []

    def keep(self, update: ClientUpdate) -> ClientUpdate:
        """Returns the update itself, or one with the same content that is read from disk, item by item, when it is asked for.

        Args:
            update: already checked, since its content comes back as `tree.Checked` and is not checked again.

        Raises:
            OSError: for a disk that is full or cannot be written.
        """
        self._held += sum(x.nbytes for _, x in tree.named_tensors(update.content))
        if held(self.when, self._held) == self._held:
            return update
        try:
            return replace(update, content=self._write(update.content))
        except OSError as error:
            raise OSError(
                f"the update of client {update.sender.id} cannot be written to {tempfile.gettempdir()}: {error}; set TMPDIR to "
                "a folder with more room, or spool to false"
            ) from error

    def _write(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="fedelta-")  # noqa: SIM115 - closed with the last update in it
            logger.info("updates are spooled to %s", tempfile.gettempdir())
        tensors, structure = tree.flatten(content)
        layout = self._known(_laid_out(tensors, structure))
        start = self._file.seek(0, 2)
        for name, place in layout.places.items():
            self._file.seek(start + place.offset)
            self._file.write(wire.raw(tensors[name]))
        self._file.truncate(start + layout.size)
        self._file.flush()
        return _Stored(self._file, start, layout).build(structure)

    def _known(self, layout: _Layout) -> _Layout:
        """Returns the equal layout that is kept, if there is one: a thousand copies would fill memory, too."""
        for known in self._layouts:
            if known == layout:
                return known
        self._layouts.append(layout)
        return layout


def _laid_out(tensors: Mapping[str, Tensor], structure: Any) -> _Layout:
    places, offset = dict[str, _Place](), 0
    for name, x in tensors.items():
        places[name] = _Place(offset, x.dtype, tuple(x.shape), x.device)
        offset = _rounded(offset + x.nbytes, ALIGNMENT)
    return _Layout(structure, places, _rounded(offset, mmap.ALLOCATIONGRANULARITY))  # a map begins at such a place


def _rounded(size: int, unit: int) -> int:
    return -(-size // unit) * unit


@dataclass(frozen=True, eq=False)
class _Stored(Mapping[str, Tensor]):
    """The tensors of one update, by the names that `tree.flatten` gave them."""

    file: IO[bytes]
    start: int
    layout: _Layout

    def __getitem__(self, name: str) -> Tensor:
        place = self.layout.places[name]
        count = torch.Size(place.shape).numel()
        if not count:
            return torch.empty(place.shape, dtype=place.dtype, device=place.device)
        try:
            found = self._read(place) if count * place.dtype.itemsize < SMALL else self._mapped(place, count)
        except (OSError, ValueError) as error:
            raise OSError(
                f"a spooled update cannot be read back: {error}; its file was cut or closed, run the round again"
            ) from error
        return found.to(place.device)

    def _read(self, place: _Place) -> Tensor:
        found = torch.empty(place.shape, dtype=place.dtype)
        if os.preadv(self.file.fileno(), [wire.raw(found)], self.start + place.offset) < found.nbytes:
            raise ValueError("it ends early")
        return found

    def _mapped(self, place: _Place, count: int) -> Tensor:
        low = place.offset - place.offset % mmap.ALLOCATIONGRANULARITY
        length = place.offset - low + count * place.dtype.itemsize
        try:
            # Private copies of pages: torch wants memory that can be written, and no write may reach the file.
            mapped = mmap.mmap(self.file.fileno(), length, offset=self.start + low, access=mmap.ACCESS_COPY)
        except OSError as error:
            if error.errno in TOO_MANY and SMALL:
                return self._read(place)
            raise
        return torch.frombuffer(mapped, dtype=place.dtype, count=count, offset=place.offset - low).view(place.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.places)

    def __len__(self) -> int:
        return len(self.layout.places)

    def build(self, structure: Any) -> Any:
        """Builds a message as `tree.unflatten` does, with mappings that read an item when it is asked for."""
        match structure:
            case {"m": list(items)}:
                return _Spooled(self, dict(items))
            case {"c": "Adapter", "f": {"m": list(items)}}:
                return Adapter(**{name: self.build(inner) for name, inner in items})
            case _:
                return tree.unflatten(self, structure)


class _Spooled(tree.Checked):
    """A mapping of an update; each item is read anew, and not kept."""

    def __init__(self, stored: _Stored, items: Mapping[str, Any]) -> None:
        self._stored, self._items = stored, items

    def __getitem__(self, key: str) -> Any:
        return self._stored.build(self._items[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)
