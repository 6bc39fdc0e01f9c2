"""Finds the part of each data file: rows of a client, all rows to train on, or rows to choose or report by."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedelta.data.client_files import by_name
from fedelta.data.endings import ENDINGS, ending_of, plain_name
from fedelta.data.image_folder import holds_images, part_folders

ROLES = {
    **dict.fromkeys(("test", "testing", "heldout"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}
"""Words in the names of files with rows that nobody trains on."""


@dataclass(frozen=True)
class Layout:
    """The files of a run.

    Attributes:
        train: the files with rows to train on, or folders of images, by the name of the client; one holds the rows of all.
        parts: the files of the parts `validation` and `test`, where there are such.
    """

    train: Mapping[str, Path]
    parts: Mapping[str, Path]

    @property
    def alone(self) -> Path | None:
        """Returns the one file with the rows of all clients; None where each client has its own."""
        return next(iter(self.train.values())) if len(self.train) == 1 else None

    def files(self) -> dict[str, Path]:
        """Returns all files by the name of their client or part."""
        return {**self.train, **self.parts}


def lay_out(places: Sequence[Path]) -> Layout:
    """Returns the part of each file.

    Args:
        places: files, and folders whose files are meant; or folders of images, with a subfolder for each label.

    Raises:
        FileNotFoundError, ValueError: for what is not there, is no file of rows, or is given twice.
    """
    if any(holds_images(place) for place in places):
        return _of_images(places)
    files = [file for place in places for file in _files_in(place)]
    twice = next((file for file in files if sum(os.path.samefile(file, other) for other in files) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is given twice: its rows would be those of two clients")
    parts: dict[str, Path] = {}
    for file in files:
        role = _role(file)
        if role is not None and role in parts:
            raise ValueError(
                f"{parts[role]} and {file} both look like rows of {role}: give one of them another name, or leave it out"
            )
        if role is not None:
            parts[role] = file
    train = [file for file in files if file not in parts.values()]
    if not train:  # rows to test by alone: they are all that there is
        train, parts = files, {}
    return Layout({name: Path(file) for name, file in by_name([str(file) for file in train]).items()}, parts)


def _of_images(places: Sequence[Path]) -> Layout:
    """Returns the part of each folder of images: one may hold the parts, and of several each is a client's."""
    if other := next((place for place in places if not holds_images(place)), None):
        raise ValueError(f"{other} is no folder of images, as others here are: give files of rows, or folders of images")
    if len(places) > 1:
        return Layout({name: Path(folder) for name, folder in by_name([str(place) for place in places]).items()}, {})
    parts = part_folders(places[0])
    parts.pop("train")
    return Layout({places[0].absolute().name: places[0]}, parts)


def _files_in(place: Path) -> list[Path]:
    if place.is_dir():
        found = sorted(file for file in place.iterdir() if file.is_file() and _is_data(file))
        if not found:
            raise FileNotFoundError(f"{place} holds no file ending in {', '.join(ENDINGS)} (or these with .gz)")
        return found
    if not place.exists():
        raise FileNotFoundError(f"no file or folder {place}")
    if not _is_data(place):
        raise ValueError(f"{place} does not end in {', '.join(ENDINGS)} (or these with .gz): call it by what it holds")
    return [place]


def _is_data(file: Path) -> bool:
    return ending_of(file) is not None and not file.name.startswith(".")


def _role(file: Path) -> str | None:
    words = re.split(r"[^a-z]+", plain_name(file).lower())
    return next((ROLES[word] for word in words if word in ROLES), None)
