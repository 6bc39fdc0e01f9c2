"""`fedelta compare`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedelta.cli.options import AsJson, Overrides
from fedelta.cli.output import STOPPED, note

if TYPE_CHECKING:
    from fedelta.report.terminal import Mode
    from fedelta.runs.suite.start import Ready
    from fedelta.runs.suite.work import Options, Work

FAILED = 1
"""The exit code where some cell failed."""


def compare(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="A suite file; or, with --methods, a config.")],
    methods: Annotated[
        str | None, typer.Option("--methods", metavar="A,B,...", help="Of a config: names, or files of your own methods.")
    ] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", metavar="N|A,B,...", help="Of a config: how many, or which.")] = None,
    baseline: Annotated[
        str | None, typer.Option("--baseline", metavar="LABEL", help="Of a config: the method that the others are judged by.")
    ] = None,
    overrides: Overrides = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="KEY=VALUE", help="Run these cells only: setting, method or seed.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="The suite's folder; `runs/<suite>` by default.")
    ] = None,
    store: Annotated[
        str | None, typer.Option("--store", metavar="FILE", help="A .jsonl.gz of finished cells: none of them is run again.")
    ] = None,
    jobs: Annotated[str | None, typer.Option("--jobs", metavar="auto|N", help="Cells at a time, of one thread each.")] = None,
    hours: Annotated[
        float | None, typer.Option("--hours", min=0.0, help="Begin no seed that cannot be finished in this time.")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try cells that failed once more.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove adapters and checkpoints of finished cells.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare methods over seeds: each tuned by itself, run side by side, with a table, a page and a CSV file at the end.

    What is done is not done again: call it once more to go on. Several calls may share one folder. Ctrl-C ends after the round.
    """
    from fedelta.report.terminal import quieten_libraries, show_warnings
    from fedelta.runs.suite.start import Wanted, ready

    mode: Mode = "json" if as_json else "quiet" if quiet else "screen"
    show_warnings(mode)
    quieten_libraries()
    listed = None if methods is None else [name.strip() for name in methods.split(",") if name.strip()]
    wanted = Wanted(overrides or [], listed, _seeds(seeds), baseline, store, output)
    _play(ready(suite, wanted), _options(jobs, only, hours, retry, prune), mode)


def _seeds(text: str | None) -> int | list[int] | None:
    """Returns a number of seeds, or the seeds of a list."""
    if text is None:
        return None
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"--seeds {text!r}: give a number of seeds, such as 5, or a list, such as 0,1,7") from None
    return numbers if "," in text else numbers[0]


def _options(jobs: str | None, only: Sequence[str] | None, hours: float | None, retry: bool, prune: bool) -> Options:
    from fedelta.runs.suite.work import Options

    chosen: dict[str, list[str]] = {}
    for text in only or ():
        key, _, value = text.partition("=")
        if key not in ("setting", "method", "seed") or not value:
            raise ValueError(f"--only {text!r}: write setting=..., method=... or seed=..., such as method=hetlora")
        chosen.setdefault(key, []).append(value)
    count = 1 if jobs in (None, "auto") else int(jobs)
    deadline = None if hours is None else time.monotonic() + hours * 3600
    return Options(count, chosen, retry, deadline, prune)


def _play(suite: Ready, options: Options, mode: Mode) -> None:
    from fedelta.report.terminal import CtrlC
    from fedelta.runs.suite.gather import comparison_of, write
    from fedelta.runs.suite.work import Work

    work = Work(suite.plan, suite.book, options)
    with CtrlC() as ctrl_c:
        work.run(lambda: ctrl_c.asked, lambda event: note(f"{event.what} {event.task.title}") if event.what != "round" else None)
    found = comparison_of(work, suite.text)
    write(found, suite.plan.folder)
    for cell in found.cells:
        print(cell.setting, cell.label, cell.seed, cell.state, cell.reason, cell.run and cell.run.records[-1].get("test"))
    if ctrl_c.asked:
        raise typer.Exit(STOPPED)
    if any(cell.state == "failed" for cell in found.cells):
        raise typer.Exit(FAILED)
