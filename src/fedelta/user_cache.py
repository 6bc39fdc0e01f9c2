"""The user's cache folder: what a machine found out once and would else find out again.

Nothing depends on it. A file that is missing or damaged is made again; one that cannot be written is done without.
"""

from __future__ import annotations

import os
import sys
import tempfile
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

    Raises:
        OSError: if it cannot be written; nothing is left beside it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as stream:
        part = Path(stream.name)
        try:
            stream.write(content)
            stream.close()
            part.replace(file)
        except OSError:
            part.unlink(missing_ok=True)
            raise
