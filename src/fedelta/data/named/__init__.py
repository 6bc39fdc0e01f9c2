"""Sources of rows with a name of their own, one file each, found by the file's name.

A new file in this folder with one subclass of `NamedSource` in it is a new source, as `data: {source: its_name}`: nothing else
is to be edited. A file whose name starts with an underscore is no source; `_template.py` is one to copy. A name goes before a
file or a data set of the Hub that is called the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedelta.data.rows import Row
from fedelta.registry import class_in, find_name, is_name, names_in

__all__ = ["NamedSource", "get_source", "is_named", "list_sources"]


class NamedSource(ABC):
    """Makes rows, by split."""

    @abstractmethod
    def load(self) -> Mapping[str, Sequence[Row]]:
        """Returns the rows of each split, the same at every call.

        `train` is needed; `validation` and `test` are carved from it where they are not there. Other splits may be named in
        `data.test` and `data.validation`.
        """

    def at(self, folder: Path) -> NamedSource:
        """Returns this source with its files in another folder than the usual one.

        Raises:
            ValueError: for a source that reads no files of its own.
        """
        raise ValueError(f"{type(self).__name__} reads no files of its own that could lie in {folder}: leave data.path out")


def list_sources() -> list[str]:
    """Returns the names that `get_source` knows, in alphabetical order."""
    return list(names_in(__name__))


def is_named(source: str | Path) -> bool:
    """Returns True for the name of a source, spelled as its file is, or with hyphens."""
    return isinstance(source, str) and is_name(__name__, source)


def source_class(name: str) -> type[NamedSource]:
    """Returns a source's class by its name; raises ValueError as `get_source` does."""
    return class_in(__name__, find_name("source", __name__, name), NamedSource)


def get_source(name: str, folder: str | Path | None = None) -> NamedSource:
    """Returns a source by its name.

    Args:
        name: spelled in any way.
        folder: where its files lie, if not in their usual place.

    Raises:
        ValueError: for an unknown name, with the nearest known one, or a folder for a source without files.
    """
    found = source_class(name)()
    return found if folder is None else found.at(Path(folder))
