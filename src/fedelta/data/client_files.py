"""Names the files of clients: by a pattern, as a list, or each by a name of its own."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from fedelta.data.endings import plain_name

LONGEST_NAME = 100
"""Characters in the name of a client, which stands in tables."""

PATTERN = frozenset("*?[")
"""The characters of a pattern that a path without a pattern does not have."""


def matching(pattern: str, folder: Path) -> list[str]:
    """Returns the files that a pattern means, in the order of their paths.

    Args:
        pattern: a path with `*`, `?` or `[...]` in it; `**` stands for folders at any depth.
        folder: from which a relative path counts.

    Raises:
        ValueError: for a path that is no pattern, or a pattern that means fewer than two files.
    """
    if not PATTERN & set(pattern):
        raise ValueError(
            f"{pattern!r} is one file: give a pattern such as 'sites/*.jsonl', a list, or {{name: file}}; one file with the "
            "rows of all clients is data.source, and `partition` deals it"
        )
    places = glob.iglob(str(Path(glob.escape(str(folder))) / Path(pattern).expanduser()), recursive=True)
    files = sorted({os.path.abspath(place) for place in places if os.path.isfile(place)})
    if not files:
        raise ValueError(
            f"{pattern!r} matches no file, taken from {folder}: mend it, or give each file by name, as {{name: file}}, which "
            "real sites need, since no one of them has the files of all"
        )
    if len(files) == 1:
        raise ValueError(
            f"{pattern!r} matches one file alone, {files[0]}: each client needs a file of its own, so give a pattern for "
            "several; one file with the rows of all clients is data.source"
        )
    return files


def by_name(files: Sequence[str]) -> dict[str, str]:
    """Returns files by a name of each: what tells them apart in the shortest way.

    That is the file's name without its ending; else its folder's name; else both; else its position.
    """
    for names in _candidates(files):
        if len(set(names)) == len(files) and not any(map(unfit_name, names)):
            return dict(zip(names, files, strict=True))
    return {str(k): file for k, file in enumerate(files)}


def _candidates(files: Sequence[str]) -> Iterator[list[str]]:
    stems = [plain_name(Path(file)) for file in files]
    folders = [Path(file).parent.name for file in files]
    yield stems
    yield folders
    yield [f"{folder}-{stem}" for folder, stem in zip(folders, stems, strict=True)]


def unfit_name(name: str) -> str | None:
    """Returns why a text cannot be the name of a client; None if it can."""
    if not name.strip():
        return "is blank"
    if len(name) > LONGEST_NAME:
        return f"has more than {LONGEST_NAME} characters"
    return None if name.isprintable() else "holds characters that cannot be shown"


def demand_different(clients: Mapping[str, str], common: Mapping[str, str | None] = MappingProxyType({})) -> None:
    """Raises ValueError for a file that two have, however its path is spelled.

    Args:
        clients: files by the names of their clients.
        common: files of rows that nobody may train on, by what they are for, such as "test".
    """
    owners: dict[str, str] = {}
    for name, file in clients.items():
        place = os.path.realpath(file)
        if place in owners:
            raise ValueError(f"{file} is given to two clients, {owners[place]!r} and {name!r}: give each a file of its own")
        owners[place] = name
    for part, file in common.items():
        if file is not None and (owner := owners.get(os.path.realpath(file))) is not None:
            raise ValueError(
                f"{file} has the {part} rows, and client {owner!r} would train on them: leave it out of the clients' files, "
                "also where a pattern takes it in"
            )
