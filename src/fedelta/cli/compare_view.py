"""Shows a suite while it runs: a bar and a line for each cell that runs, one line for each that is done; on stderr."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedelta.activity import Board, watched
from fedelta.report.numerals import Measure
from fedelta.report.run_view import doing
from fedelta.report.terminal import Mode, err, print_json
from fedelta.report.words import Record, duration, main_metric, number, size, total_bytes
from fedelta.runs.suite.cells import Task
from fedelta.runs.suite.gather import comparison_of, write_csv
from fedelta.runs.suite.play import Event
from fedelta.runs.suite.work import Progress, Work

BAR = 30
"""Characters of the bar."""

BETWEEN_TABLES = 30.0
"""Seconds after which a finished cell writes the table of all anew, which costs more than a small cell."""


@dataclass
class _Going:
    """A cell that runs."""

    task: Task
    since: float
    records: list[Record] = field(default_factory=list[Record])


class SuiteView:
    """Shows the events of a suite: on the screen, as JSON lines, or not at all.

    Args:
        work: the suite's cells.
        mode: what is shown.
    """

    def __init__(self, work: Work, mode: Mode) -> None:
        self.work, self.mode = work, mode
        self._going: dict[str, _Going] = {}
        self._began = self._written = time.monotonic()
        self._progress: Progress | None = None
        self._board = Board()
        self._live = Live(console=err, get_renderable=self._picture, transient=True, refresh_per_second=4)

    @contextmanager
    def shown(self) -> Generator[SuiteView]:
        """Shows the bar, where there is a screen."""
        if self.mode != "screen" or not err.is_terminal:
            yield self
            return
        self._progress = self.work.progress()
        with watched() as self._board, self._live:
            yield self

    def show(self, event: Event) -> None:
        """Shows what happened to a cell."""
        if event.what == "begun":
            self._going[event.task.digest] = _Going(event.task, time.monotonic())
            self._board.clear()
        going = self._going[event.task.digest]
        if event.record is not None:
            going.records.append(event.record)
        if self.mode == "json":
            print_json(_plain(event))
        if event.what in ("begun", "round"):
            return
        del self._going[event.task.digest]
        if event.what == "done":
            self._keep_csv()
        if self.mode == "screen":
            err.print(_ended(event, going), soft_wrap=True)
            self._progress = self.work.progress() if err.is_terminal else None

    def _keep_csv(self) -> None:
        """Writes results.csv as it is by now, for whoever looks before the end."""
        now = time.monotonic()
        if now - self._written >= BETWEEN_TABLES:
            write_csv(comparison_of(self.work), self.work.plan.folder)
            self._written = now

    # --- the picture -------------------------------------------------------------------------------------------------

    def _picture(self) -> Group:
        # Only cells of this process write on the board: of those in processes of their own each round is known when it is over.
        board = self._board if self.work.options.jobs == 1 else None
        return Group(self._headline(), *(_line(going, board) for going in list(self._going.values())))

    def _headline(self) -> Table:
        now, options = self._progress, self.work.options
        grid = Table.grid(padding=(0, 2))
        if now is None:
            return grid
        jobs = "" if options.jobs == 1 else f"{options.jobs} jobs"
        left = f"left {duration(now.seconds)}" if now.seconds else "left unknown"
        grid.add_row(
            Text(self.work.plan.file.name, style="bold"),
            ProgressBar(max(1, now.total), now.done, width=BAR),
            f"{now.done}/{now.total}",
            Text(f"failed {now.failed}", style="red" if now.failed else "dim"),
            duration(time.monotonic() - self._began),
            left,
            jobs,
        )
        return grid


def _line(going: _Going, board: Board | None) -> Text:
    """Returns the line of a cell that runs: what it is doing, loss and score, and the time left."""
    records, rounds = going.records, going.task.config.federation.rounds
    now = "preparing" if board is None else doing(board, rounds)
    if not records:
        return Text(f"  {going.task.title}   {now}", style="dim", no_wrap=True, overflow="ellipsis")
    last = records[-1]
    where = f"round {last['t'] + 1}/{rounds}" if board is None else now
    parts = [going.task.title, where, f"loss {number(last['train_loss'], 3)}"]
    if scored := _scored(records):
        parts.append(scored)
    took = time.monotonic() - going.since
    parts.append(f"{duration(took / len(records) * (rounds - 1 - last['t']))} left")
    return Text("  " + "   ".join(parts), no_wrap=True, overflow="ellipsis")


def _ended(event: Event, going: _Going) -> Text:
    """Returns the line of a cell that runs no longer."""
    title = event.task.title
    if event.what == "failed":
        return Text(f"failed  {title}   {event.reason}", style="red")
    if event.what == "busy":
        return Text(f"left    {title}   another process runs it", style="dim")
    if event.what == "stopped":
        return Text(f"stopped {title}   after round {len(going.records)}", style="yellow")
    if event.reason:
        hint = "; check the method, or the learning rate" if event.reason.startswith("round 0:") else ""
        return Text(f"diverged {title}   {event.reason}{hint}", style="yellow")
    parts = [f"done    {title}", _scored(going.records), duration(time.monotonic() - going.since)]
    parts.append(size(total_bytes(going.records)) if going.records else "")
    return Text("   ".join(part for part in parts if part))


def _scored(records: list[Record]) -> str:
    """Returns the last score that some round has, such as `accuracy 61.2 %`; empty without one."""
    metric = main_metric(records)
    for record in reversed(records):
        for part in ("test", "validation"):
            if metric is not None and (scores := record.get(part)):
                return f"{metric.replace('_', ' ')} {Measure(metric).with_unit(scores.get(metric))}"
    return ""


def _plain(event: Event) -> dict[str, object]:
    task = event.task
    said: dict[str, object] = {
        "event": event.what,
        "setting": task.setting,
        "method": task.label,
        "seed": task.seed,
        "tuning": task.tuning or None,
    }
    return said | ({"record": event.record} if event.record else {}) | ({"reason": event.reason} if event.reason else {})
