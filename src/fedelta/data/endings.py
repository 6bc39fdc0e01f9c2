"""Tells a file of rows by the ending of its name, without reading it or importing what would."""

from __future__ import annotations

import os
from pathlib import Path

from fedelta.registry import is_name

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""The endings of files of rows; all but Parquet, too, may have .gz behind them."""


def ending_of(path: Path) -> str | None:
    """Returns the ending by which a file is read, such as `.csv` for `rows.csv.gz`; None if it is none of `ENDINGS`."""
    suffixes = path.suffixes[:-1] if path.suffix == ".gz" else path.suffixes
    return suffixes[-1] if suffixes and suffixes[-1] in ENDINGS else None


def plain_name(path: Path) -> str:
    """Returns a file's name without its ending: `north` for `sites/north.jsonl.gz`."""
    return Path(path.name.removesuffix(".gz")).stem


def is_place(source: str, folder: Path) -> bool:
    """Returns True for a source that is a path: no name of a source, and no data set of the Hub.

    Args:
        source: as it is written in a config.
        folder: from which a relative path counts. What is there is a path, however it is written.
    """
    if is_name("fedelta.data.named", source):
        return False
    return ending_of(Path(source)) is not None or looks_like_path(source) or (folder / source).exists()


def looks_like_path(text: str) -> bool:
    """Returns True for a text that can only be meant as a path: it begins at the root, at home, here or above."""
    return os.path.isabs(text) or text in (".", "..", "~") or text.startswith(("./", "../", "~/", ".\\", "..\\"))
