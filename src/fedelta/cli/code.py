"""`fedelta allow`: the user's list of Python files that may run where a config names them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedelta.cli.output import note


def allow(
    files: Annotated[list[Path] | None, typer.Argument(metavar="FILE...", help="Python files that you have read.")] = None,
) -> None:
    """Let Python files run wherever a config names them, as they are now: their digests go into a list of yours.

    Without FILE, show where the list is; to take a file back, remove its line.
    """
    from fedelta.runs.config.allowed import allowed_list, remember

    for file in files or []:
        note(f"{file} may run from now on, as it is (sha256 {remember(file)})")
    note(f"the list is {allowed_list()}")
