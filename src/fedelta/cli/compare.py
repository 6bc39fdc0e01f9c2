"""`fedelta compare`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedelta.cli.options import AsJson, Overrides
from fedelta.cli.output import STOPPED, note

if TYPE_CHECKING:
    from fedelta.report.comparison import Comparison
    from fedelta.report.terminal import Mode
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show cells, bytes, memory and time, and do not train.")] = False,
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
    from fedelta.runs.suite.work import Work

    mode: Mode = "json" if as_json else "quiet" if quiet else "screen"
    show_warnings(mode)
    quieten_libraries()
    listed = None if methods is None else [name.strip() for name in methods.split(",") if name.strip()]
    wanted = Wanted(overrides or [], listed, _seeds(seeds), baseline, store, output)
    made = ready(suite, wanted)
    work = Work(made.plan, made.book, _options(only, hours, retry, prune))
    work.book.refresh()
    work.options = replace(work.options, jobs=_jobs(jobs, made.plan.file.suite.jobs, work))
    if dry_run:
        _show_plan(work, made.text, as_json)
    else:
        _play(work, made.text, mode)


def _seeds(text: str | None) -> int | list[int] | None:
    """Returns a number of seeds, or the seeds of a list."""
    if text is None:
        return None
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"--seeds {text!r}: give a number of seeds, such as 5, or a list, such as 0,1,7") from None
    return numbers if "," in text else numbers[0]


def _options(only: Sequence[str] | None, hours: float | None, retry: bool, prune: bool) -> Options:
    from fedelta.runs.suite.work import Options

    chosen: dict[str, list[str]] = {}
    for text in only or ():
        key, _, value = text.partition("=")
        if key not in ("setting", "method", "seed") or not value:
            raise ValueError(f"--only {text!r}: write setting=..., method=... or seed=..., such as method=hetlora")
        chosen.setdefault(key, []).append(value)
    deadline = None if hours is None else time.monotonic() + hours * 3600
    return Options(1, chosen, retry, deadline, prune)


def _jobs(text: str | None, suites: int | str, work: Work) -> int:
    """Returns how many cells run at a time."""
    from fedelta.runs.suite.estimate import jobs_for

    asked = suites if text is None else text
    if asked == "auto":
        return jobs_for(work)
    if not str(asked).isdigit() or int(asked) < 1:
        raise ValueError(f"--jobs {asked}: give a number from 1 on, or auto")
    return int(asked)


def _play(work: Work, text: str, mode: Mode) -> None:
    from fedelta.cli.compare_view import SuiteView
    from fedelta.report.terminal import CtrlC
    from fedelta.runs.suite.gather import comparison_of

    with CtrlC() as ctrl_c, SuiteView(work, mode).shown() as view:
        work.run(lambda: ctrl_c.asked, view.show)
    found = comparison_of(work, text)
    _show(work, found, mode)
    if ctrl_c.asked:
        note("stopped after a whole round; call it once more to go on")
        raise typer.Exit(STOPPED)
    if any(cell.state == "failed" for cell in found.cells):
        raise typer.Exit(FAILED)


def _show(work: Work, found: Comparison, mode: Mode) -> None:
    """Writes tables and page of what is done, and shows them."""
    from fedelta.runs.suite.gather import write

    write(found, work.plan.folder)
    if mode == "screen":
        for cell in found.cells:
            print(cell.setting, cell.label, cell.seed, cell.state, cell.reason, cell.run and cell.run.records[-1].get("test"))
    left = work.progress()
    if left.done + left.failed < left.total and mode != "quiet":
        note(f"{left.total - left.done - left.failed} of {left.total} runs are left: call it once more to go on")


def _show_plan(work: Work, text: str, as_json: bool) -> None:
    from fedelta.report.tables import suite_plan_table
    from fedelta.report.terminal import out, print_json
    from fedelta.runs.suite.estimate import rows_of, separable
    from fedelta.runs.suite.gather import comparison_of

    rows = [asdict(row) for row in rows_of(work)]
    seconds, seeds = work.progress().seconds, separable(comparison_of(work, text))
    if as_json:
        print_json({"cells": rows, "seconds": seconds or None, "jobs": work.options.jobs, "seeds": seeds})
    else:
        out.print(suite_plan_table(rows, seconds, work.options.jobs, seeds))
