"""Says by which code and command a run was begun, for whom wants to make it again; without names of users and machines."""

from __future__ import annotations

import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import fedelta

PACKAGES = ("fedelta", "torch", "transformers", "peft", "numpy")

FOLDERS = re.compile(r"(?<![\w.~-])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\"=,:]+[/\\])+")
"""The folders of an absolute path, in which somebody's name may stand."""

LONGEST_ARGUMENT = 200


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that decide numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a server of real sites does without a model's
            continue
    return found


@cache
def commit() -> str:
    """Returns the commit of fedelta's checkout, with + where its code differs from it; empty for an installed package.

    Other tracked files do not count: a store of results grows beside the code that makes them.
    """
    package = Path(fedelta.__file__).resolve().parent
    root = package.parents[1]
    if not (root / ".git").exists() or package != root / "src" / "fedelta":
        return ""
    head = _git(root, "rev-parse", "--short=12", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "src")
    return "" if head is None or changes is None else head + ("+" if changes else "")


def command(arguments: Sequence[str] | None = None) -> str:
    """Returns the command of this process as a line for a shell; of an absolute path only the last part."""
    given = sys.argv if arguments is None else arguments
    program = re.split(r"[/\\]", given[0])[-1] if given else ""
    shown = [FOLDERS.sub(".../", text)[:LONGEST_ARGUMENT] for text in given[1:]]
    return shlex.join([program or "python", *shown])


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
