"""`fedelta report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedelta.cli.output import note


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of runs, or folders that hold them.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option("--title", help="Of the page.")] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", help="To compare by; accuracy, or else what was measured, by default.")
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", metavar="METHOD", help="Judge the others against this method, not against the best mean."),
    ] = None,
) -> None:
    """Write one HTML page on one run, or on several side by side: who wins, by how much, at what cost, why, for whom.

    Runs that differ in their seed only are one method. The page has no script and loads nothing.
    """
    from fedelta.runs.reports import write_report

    note(f"written: {write_report(folders, output, title=title, metric=metric, baseline=baseline)}")
