"""`fedelta compare`."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedelta.cli import completion
from fedelta.cli.options import AllowFiles, AsJson, Overrides, Trust, allowed_files
from fedelta.cli.output import STOPPED, note

if TYPE_CHECKING:
    from fedelta.report.comparison import Comparison
    from fedelta.report.terminal import Mode
    from fedelta.runs.suite.cells import Plan
    from fedelta.runs.suite.estimate import Cost
    from fedelta.runs.suite.work import Kind, Options, Work

FAILED = 1
"""The exit code where some cell failed."""


def compare(
    suite: Annotated[
        str,
        typer.Argument(metavar="SUITE", help="A suite file; or, with --methods, a config.", autocompletion=completion.configs),
    ],
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
    rounds: Annotated[bool, typer.Option("--rounds", help="Write rounds.csv, too: every number of every round.")] = False,
    trust: Trust = False,
    allow_files: AllowFiles = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare methods over seeds: each tuned by itself, run side by side, with a table, a page and a CSV file at the end.

    What is done is not done again: call it once more to go on. Several calls may share one folder. Ctrl-C ends after the round.
    """
    from fedelta.registry import is_code
    from fedelta.report.terminal import quieten_libraries, show_warnings
    from fedelta.runs.suite.estimate import jobs_for, may_share
    from fedelta.runs.suite.preflight import demand_sources, rehearsed
    from fedelta.runs.suite.start import Wanted, ready
    from fedelta.runs.suite.work import Work

    mode: Mode = "json" if as_json else "quiet" if quiet else "screen"
    show_warnings(mode)
    logging.getLogger("fedelta").handlers[0].addFilter(Once())
    quieten_libraries()
    listed = None if methods is None else [name.strip() for name in methods.split(",") if name.strip()]
    may_run = allowed_files(overrides, [*(allow_files or []), *(name for name in listed or () if is_code(name))])
    changes = [*(overrides or []), *(["model.trust_remote_code=true"] if trust else [])]
    made = ready(suite, Wanted(changes, listed, _seeds(seeds), baseline, store, output, may_run))
    work = Work(made.plan, made.book, _options(made.plan, only, hours, retry, prune))
    at_once = _jobs(jobs, made.plan.file.suite.jobs)
    demand_sources(work, to_reckon=dry_run)
    costs = rehearsed(work, to_reckon=dry_run, to_size=at_once is None and may_share(work))
    work.options = replace(work.options, jobs=jobs_for(work, costs) if at_once is None else at_once)
    if dry_run:
        _show_plan(work, made.text, costs, as_json)
    else:
        _play(work, made.text, mode, rounds)


class Once(logging.Filter):
    """Lets each message through once: the cells of a suite have most of their warnings in common."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether a message is new."""
        message = record.getMessage()
        is_new = message not in self._said
        self._said.add(message)
        return is_new


def _seeds(text: str | None) -> int | list[int] | None:
    """Returns a number of seeds, or the seeds of a list."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",") if part.strip()] if "," in text else int(text)
    except ValueError:
        raise ValueError(f"--seeds {text!r}: give a number of seeds, such as 5, or a list, such as 0,1,7") from None


def _options(plan: Plan, only: Sequence[str] | None, hours: float | None, retry: bool, prune: bool) -> Options:
    from fedelta.runs.suite.work import Options

    there = {
        "setting": list(plan.settings),
        "method": [entry.label for entry in plan.file.entries],
        "seed": [str(seed) for seed in plan.seeds],
    }
    chosen: dict[str, list[str]] = {}
    for text in only or ():
        key, _, value = text.partition("=")
        if key not in there or not value:
            raise ValueError(f"--only {text!r}: write setting=..., method=... or seed=..., such as method=hetlora")
        if value not in there[key]:
            raise ValueError(f"--only {text!r}: the suite has no {key} {value!r}; there are {', '.join(there[key])}")
        chosen.setdefault(key, []).append(value)
    deadline = None if hours is None else time.monotonic() + hours * 3600
    options = Options(1, chosen, retry, deadline, prune)
    if only and not any(options.wants_cell(setting, entry.label, seed) for setting, entry, seed in plan.cells()):
        have = "; ".join(f"{setting} has {', '.join(map(str, plan.seeds_of(setting)))}" for setting in plan.settings)
        raise ValueError(f"--only {' --only '.join(only)}: the suite has no such cell; of its seeds {have}")
    return options


def _jobs(text: str | None, suites: int | str) -> int | None:
    """Returns how many cells run at a time; None where the machine is to say."""
    asked = suites if text is None else text
    if asked == "auto":
        return None
    if not str(asked).isdigit() or int(asked) < 1:
        raise ValueError(f"--jobs {asked}: give a number from 1 on, or auto")
    return int(asked)


def _play(work: Work, text: str, mode: Mode, rounds: bool) -> None:
    """Runs what is left, writes tables and page of all that is there, and shows them."""
    from fedelta.cli.compare_view import SuiteView
    from fedelta.report.terminal import CtrlC
    from fedelta.runs import provenance
    from fedelta.runs.suite.gather import write

    with CtrlC() as ctrl_c, SuiteView(work, mode).shown() as view:
        work.run(lambda: ctrl_c.asked, view.show)
    found, paths = write(work, text, provenance.command(), rounds=rounds)
    _show(work, found, paths, mode)
    if ctrl_c.asked:
        note("stopped after a whole round; call it once more to go on")
        raise typer.Exit(STOPPED)
    if any(cell.state == "failed" for cell in found.cells):
        raise typer.Exit(FAILED)


def _show(work: Work, found: Comparison, paths: Sequence[Path], mode: Mode) -> None:
    from fedelta.report.results import terminal_table
    from fedelta.report.terminal import out

    shown = [str(path) for path in paths if path.name.endswith((".csv", ".html"))]
    if mode == "screen":
        # In a terminal the remarks are broken between words; behind a pipe their lines stay whole.
        out.print(terminal_table(found, out.width, paths=shown), soft_wrap=not out.is_terminal)
    progress = work.progress()
    left = progress.total - progress.done - progress.failed
    if left and mode != "quiet":
        note(f"{left} of {progress.total} runs are left: call it once more to go on")


def _show_plan(work: Work, text: str, costs: Mapping[Kind, Cost], as_json: bool) -> None:
    from fedelta.report.tables import suite_plan_table
    from fedelta.report.terminal import out, print_json
    from fedelta.runs.suite.estimate import rows_of, separable
    from fedelta.runs.suite.gather import comparison_of

    rows = [asdict(row) for row in rows_of(work, costs)]
    seconds, seeds = work.progress().seconds, separable(comparison_of(work, text))
    if as_json:
        print_json({"cells": rows, "seconds": seconds or None, "jobs": work.options.jobs, "seeds": seeds})
    else:
        out.print(suite_plan_table(rows, seconds, work.options.jobs, seeds))
