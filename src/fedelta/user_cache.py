"""The user's cache folder: what a machine found out once and would else find out again.

Nothing depends on it. A file that is missing or damaged is made again; one that cannot be written is done without.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """Returns `$FEDELTA_CACHE`, or the folder for fedelta among the user's caches."""
    if chosen := os.environ.get("FEDELTA_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "fedelta"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "fedelta"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedelta"


def write_whole(file: Path, content: bytes) -> None:
    """Writes beside and renames, so that another process finds all of the file or nothing, whoever else writes it.

    Several processes may write one file at a time, each under a name of its own; nothing is forced onto the disk, since a
    cache can be made again. `fedelta.exchange.files.commit` is the other way round, for what must not be lost.

    Raises:
        OSError: if it cannot be written; nothing is left beside it.
    """
    with _written_beside(file, content) as part:
        part.replace(file)


def write_first(file: Path, content: bytes) -> None:
    """Writes a file that is not there yet, whole; of several processes the first one's stands, and it is left as it is.

    Raises:
        OSError: if it cannot be written; nothing is left beside it.
    """
    with _written_beside(file, content) as part:
        try:
            os.link(part, file)
        except FileExistsError:
            return
        except OSError:  # a file system without links: better the last one's than none
            part.replace(file)


@contextmanager
def _written_beside(file: Path, content: bytes) -> Generator[Path]:
    """Gives another file in the same folder that holds the content, for as long as the block runs."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as stream:
        part = Path(stream.name)
        try:
            stream.write(content)
            stream.close()
            yield part
        finally:
            part.unlink(missing_ok=True)
