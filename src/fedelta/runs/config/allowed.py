"""Keeps track of the Python files that may run though a config names them: a config alone makes no file's code run.

A file may run if a person names it again, on the command line or in their program, or if its digest is in the user's own list.
The list has one line for each file, as `sha256sum` writes them: the digest, two spaces, and the path at that time.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias, cast

from fedelta.code_files import CodeFile, read_code
from fedelta.exchange import files
from fedelta.registry import is_code

Allowed: TypeAlias = frozenset[str]
"""The digests (sha256, hexadecimal) of files that may run."""

DIGEST = re.compile(r"[0-9a-f]{64}")

CHOICES = ("method", "task")
"""The keys of a config that may name a Python file."""


def allowed(allow_files: Collection[str | PathLike[str]] = ()) -> Allowed:
    """Returns the digests of some files and of those in the user's list.

    Args:
        allow_files: paths, each of which is read now, or digests.

    Raises:
        TypeError: for a single path.
        FileNotFoundError, ValueError: for a path to no Python file.
    """
    if isinstance(allow_files, str | PathLike):
        raise TypeError(f"allow_files takes a list of files, got {allow_files!r}: put it in a list")
    given = [str(file) for file in allow_files]
    named = {file if DIGEST.fullmatch(file) else read_code(file).digest for file in given}
    return frozenset({*named, *remembered()})


TRAINER = "training.trainer"
"""The key that names a function in a Python file, which makes a client's Trainer."""


def code_paths(raw: Mapping[str, Any]) -> dict[str, str]:
    """Returns, by key, the path of each Python file that a config names, as it was read or as it is resolved."""
    found = {key: path for key in CHOICES if (path := _path_in(raw.get(key))) is not None}
    training = raw.get("training")
    trainer = cast("Mapping[str, Any]", training).get("trainer") if isinstance(training, Mapping) else None
    return {**found, TRAINER: function_in(trainer)[0]} if isinstance(trainer, str) else found


def function_in(place: str) -> tuple[str, str]:
    """Returns the path and the name of a function that is written as `./site.py:make_trainer`."""
    path, _, name = place.rpartition(":")
    return path, name


def _path_in(choice: Any) -> str | None:
    if isinstance(choice, Mapping):
        inner = cast("Mapping[str, Any]", choice)
        choice = inner.get("path") or inner.get("name")
    return str(choice) if is_code(choice) else None


def demand_allowed(code: CodeFile, may_run: Allowed, key: str) -> None:
    """Raises ValueError, saying how to allow it, for a file that may not run."""
    if code.digest not in may_run:
        raise ValueError(
            f"{key} is the file {code.path}, and a config alone cannot make its code run: read it; if you trust it, name it "
            f"yourself by --allow-file {code.path} (in Python: allow_files=[...]), or once for all by "
            f"`fedelta allow {code.path}`"
        )


# --- the user's list -------------------------------------------------------------------------------------------------


def allowed_list() -> Path:
    """Returns the file of the user's list."""
    return _config_folder() / "allowed_files"


def remembered() -> Iterator[str]:
    """Yields the digests in the user's list; a line of any other form counts for nothing."""
    for line in _lines():
        digest = line.split(" ", 1)[0]
        if DIGEST.fullmatch(digest):
            yield digest


def remember(path: str | PathLike[str]) -> str:
    """Adds a file to the user's list, and returns its digest.

    Raises:
        FileNotFoundError, ValueError: for a path to no Python file, or one that does not fit on a line.
    """
    code = read_code(path)
    place = str(code.path.absolute())
    if not place.isprintable():  # a line of its own within it would allow another file
        raise ValueError(f"{place!r} has characters that no line of the list can hold: give the file another name")
    with files.appending(allowed_list()) as handle:
        if code.digest not in remembered():
            known = allowed_list().read_bytes()
            start = "\n" if known and not known.endswith(b"\n") else ""  # after a line that somebody typed, or a kill cut off
            os.lseek(handle, 0, os.SEEK_END)
            files.write_to(handle, allowed_list(), f"{start}{code.digest}  {place}\n".encode())
    return code.digest


def _lines() -> list[str]:
    found = allowed_list()
    return found.read_text(encoding="utf-8", errors="replace").splitlines() if found.is_file() else []


def _config_folder() -> Path:
    """Returns the folder for fedelta among the settings of the user's programs."""
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA", Path.home() / "AppData" / "Roaming")) / "fedelta"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "fedelta"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "fedelta"
