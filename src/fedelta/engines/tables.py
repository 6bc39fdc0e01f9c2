"""Tables by client id that never change. A new version costs as much as its changes, however large the table is."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar, overload

V = TypeVar("V")
D = TypeVar("D")

_ABSENT: Any = object()
"""Stands in a list of differences for a client that had no entry."""


class Table(Mapping[int, V]):
    """An immutable mapping from client ids, from which another version that differs in a few entries is made cheaply.

    All versions share one dictionary, which belongs to the newest. An older version keeps the entries in which it differs from
    the next one, and a reference to that. So the newest reads like a dictionary, and a snapshot of a hundred thousand clients
    costs nothing while nobody reads it. A look into an older one takes a step for each version since. A second version that is
    made from an older one gets a copy.
    """

    __slots__ = ("_differences", "_entries", "_newer", "_size")

    def __init__(self, entries: Mapping[int, V] | None = None) -> None:
        self._entries: dict[int, V] = dict(entries or {})
        self._newer: Table[V] | None = None
        self._differences: dict[int, V] = {}
        self._size = len(self._entries)

    def followed(self, new: Mapping[int, V], gone: Collection[int] = ()) -> Table[V]:
        """Returns the version with the entries `new` and without those of `gone`; this one itself if nothing changes."""
        gone = {k for k in gone if k in self and k not in new}
        if not new and not gone:
            return self
        entries = self._entries if self._newer is None else dict(self)
        differences = {k: self._find(k) for k in (*new, *gone)}
        entries |= new
        for k in gone:
            del entries[k]
        # The shared dictionary was changed in place: the newer version takes it over, this one keeps the differences.
        newer: Table[V] = Table()
        newer._entries, newer._size = entries, len(entries)
        if self._newer is None:  # else the entries are a copy, and this version stays where it is
            self._newer, self._differences, self._entries = newer, differences, {}
        return newer

    @overload
    def get(self, key: int, /) -> V | None: ...
    @overload
    def get(self, key: int, /, default: V | D) -> V | D: ...
    def get(self, key: int, /, default: Any = None) -> Any:
        found = self._find(key)
        return default if found is _ABSENT else found

    def __getitem__(self, k: int) -> V:
        found = self._find(k)
        if found is _ABSENT:
            raise KeyError(k)
        return found

    def __contains__(self, k: object) -> bool:
        return self._find(k) is not _ABSENT

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        return iter(self._entries if self._newer is None else self._copy())

    def __repr__(self) -> str:
        return f"Table({dict(self)})"

    def _find(self, k: Any) -> Any:
        """Returns a client's entry, or `_ABSENT`: the one that the first later change replaced, else the newest version's."""
        at = self
        while at._newer is not None:
            if k in at._differences:
                return at._differences[k]
            at = at._newer
        return at._entries.get(k, _ABSENT)

    def _copy(self) -> dict[int, V]:
        """Returns the entries of a version that is not the newest."""
        later: list[Table[V]] = [self]
        while (newer := later[-1]._newer) is not None:
            later.append(newer)
        entries = dict(later[-1]._entries)
        # From the newest back to this one, since each version's differences undo what the next one changed.
        for version in reversed(later[:-1]):
            entries |= version._differences
        return {k: value for k, value in entries.items() if value is not _ABSENT}
