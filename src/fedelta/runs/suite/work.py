"""Works off the cells of a suite: tuning first, then seed by seed, so that a suite that is cut short has whole seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TypeAlias

from fedelta.report.study import Run
from fedelta.runs.suite import play, tuning
from fedelta.runs.suite.book import Book
from fedelta.runs.suite.cells import Plan, Task
from fedelta.runs.suite.lines import Line, run_of, seconds_of
from fedelta.runs.suite.play import Event
from fedelta.runs.suite.schema import Entry
from fedelta.runs.suite.workers import here, side_by_side

PAUSE = 5.0
"""Seconds after which cells that another process had are looked at again."""

TUNING = "tuning"

Kind: TypeAlias = tuple[str, str]
"""Setting and label: cells of one kind take about the same time, whatever their seed."""


@dataclass(frozen=True)
class Options:
    """Holds what a person wants of this process.

    Attributes:
        jobs: cells at a time.
        only: by `setting`, `method` or `seed`, the ones to run; all where nothing is named.
        retry: cells that failed are tried once more.
        deadline: of `time.monotonic`, after which no further seed is begun; None for none.
        prune: adapters and checkpoints of finished cells are removed.
    """

    jobs: int = 1
    only: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    retry: bool = False
    deadline: float | None = None
    prune: bool = False

    def wants(self, task: Task) -> bool:
        """Returns whether a run is among those that are to be done; one that tunes counts whatever its seed."""
        return self.wants_cell(task.setting, task.label, None if task.tuning else task.seed)

    def wants_cell(self, setting: str, label: str, seed: int | None) -> bool:
        """Returns whether a cell is among those that are to be run; any seed where None is given."""
        own = {"setting": setting, "method": label, "seed": str(seed)}
        return all(own[key] in values for key, values in self.only.items() if key != "seed" or seed is not None)


@dataclass(frozen=True)
class Progress:
    """Says how far a suite is.

    Attributes:
        done: finished cells, with those that tune.
        total: all that are known by now.
        failed: those that are not tried again.
        seconds: that the open ones would take here; 0.0 while nothing is known of any.
    """

    done: int
    total: int
    failed: int
    seconds: float


@dataclass
class Work:
    """The cells of a suite, and what this process did about them.

    Attributes:
        plan: the suite.
        book: of finished cells.
        options: of this process.
        going: by digest, cells that run here now.
        busy: digests of cells that another process has.
        tried: digests of cells that were tried here.
        begun: stages that were begun here.
        seconds: by setting and label, what each finished cell took here.
    """

    plan: Plan
    book: Book
    options: Options
    going: dict[str, Task] = field(default_factory=dict[str, Task])
    busy: set[str] = field(default_factory=set[str])
    tried: set[str] = field(default_factory=set[str])
    begun: set[str] = field(default_factory=set[str])
    seconds: dict[Kind, list[float]] = field(default_factory=dict[Kind, list[float]])
    _runs: dict[str, Run] = field(default_factory=dict[str, Run])
    _since: dict[str, float] = field(default_factory=dict[str, float])

    # --- what there is -----------------------------------------------------------------------------------------------

    def line(self, task: Task) -> Line | None:
        """Returns the line of a finished cell; None for one that is not finished."""
        return None if task.digest in self.going else self.book.find(task)

    def run_of(self, task: Task) -> Run | None:
        """Returns a finished cell's run; None for one that is not finished."""
        if task.digest not in self._runs and (line := self.line(task)) is not None:
            self._runs[task.digest] = run_of(line, task.title)
        return self._runs.get(task.digest)

    def is_lost(self, task: Task) -> bool:
        """Returns whether a cell failed, and is not to be tried again."""
        return bool(play.failure(task)) and (not self.options.retry or task.digest in self.tried)

    def choice(self, setting: str, entry: Entry) -> tuning.Choice:
        """Returns the state of a method's tuning in a setting."""
        return tuning.choose(self.plan, setting, entry, self.run_of, self.is_lost)

    def served(self) -> Iterator[tuple[str, Entry]]:
        """Yields the settings and methods that go together."""
        for setting in self.plan.settings:
            for entry in self.plan.file.entries:
                if (setting, entry.label) not in self.plan.refused:
                    yield setting, entry

    def stages(self) -> dict[str, list[Task]]:
        """Returns the cells that are known by now: those that choose values, then those of each seed."""
        choices = {(setting, entry.label): (entry, self.choice(setting, entry)) for setting, entry in self.served()}
        waiting = [task for _, choice in choices.values() for task in choice.waiting]
        found = {TUNING: list({task.digest: task for task in waiting}.values())}
        for seed in self.plan.seeds:
            having = [(s, entry, choice.values) for (s, _), (entry, choice) in choices.items() if seed in self.plan.seeds_of(s)]
            found[str(seed)] = [self.plan.task(s, entry, seed, v) for s, entry, v in having if v is not None]
        return {stage: [task for task in tasks if self.options.wants(task)] for stage, tasks in found.items()}

    def left(self) -> dict[str, list[Task]]:
        """Returns the cells of each stage that are still to be run, by whomever."""
        open_ones = {
            stage: [t for t in tasks if self.line(t) is None and not self.is_lost(t)] for stage, tasks in self.stages().items()
        }
        return {stage: tasks for stage, tasks in open_ones.items() if tasks}

    def progress(self) -> Progress:
        """Counts cells: those of methods that are still tuned count as open, by what is known of them."""
        stages = self.stages()
        known = [task for tasks in stages.values() for task in tasks]
        done = [task for task in self.plan.tasks.values() if self.options.wants(task) and self.line(task) is not None]
        open_ones = [task for task in known if self.line(task) is None]
        lost = [task for task in open_ones if self.is_lost(task)]
        left = [task for task in open_ones if task not in lost]
        unknown = self._unchosen()
        to_come = [kind for kind, count in unknown.items() for _ in range(count)]
        seconds = self.reckon([_kind(task) for task in left] + to_come)
        return Progress(len(done), len(done) + len(left) + len(lost) + len(to_come), len(lost), seconds)

    def _unchosen(self) -> dict[Kind, int]:
        """Counts by kind the cells whose values are still to be chosen."""
        found: dict[Kind, int] = {}
        for setting, entry in self.served():
            if self.choice(setting, entry).waiting:
                wanted = [s for s in self.plan.seeds_of(setting) if self.options.wants_cell(setting, entry.label, s)]
                found[setting, entry.label] = len(wanted)
        return found

    # --- doing it ----------------------------------------------------------------------------------------------------

    def run(self, stopping: play.Stopping, show: Callable[[Event], None]) -> None:
        """Runs what is left, until nothing is, or somebody wants it to stop."""
        if self.options.prune:
            self._prune_earlier()
        bench = here if self.options.jobs == 1 else side_by_side
        while not stopping():
            for event in bench(self.next_task, self.book.place, stopping, self.options.jobs):
                self.note(event)
                show(event)
            if not self.busy:
                return
            self._wait(stopping)

    def _prune_earlier(self) -> None:
        """Removes adapters and checkpoints of the wanted cells that were finished by an earlier call."""
        for tasks in self.stages().values():
            for task in tasks:
                if task.folder.is_dir() and self.line(task) is not None:
                    self.book.prune(task)

    def next_task(self) -> Task | None:
        """Returns the next cell that nobody runs; None if there is none now, or no time for its seed."""
        self.book.refresh()
        for stage, tasks in self.left().items():
            free = [task for task in tasks if task.digest not in self.going and task.digest not in self.busy]
            if not free:
                continue
            if stage not in self.begun and not self._fits(stage, tasks):
                return None
            self.begun.add(stage)
            return free[0]
        return None

    def note(self, event: Event) -> None:
        """Keeps what an event says."""
        task = event.task
        if event.what == "begun":
            self.going[task.digest] = task
            self._since[task.digest] = time.monotonic()
        elif event.what != "round":
            self.going.pop(task.digest, None)
            self.tried.add(task.digest)
        if event.what == "busy":
            self.busy.add(task.digest)
        elif event.what == "done":
            took = time.monotonic() - self._since[task.digest]
            self.seconds.setdefault(_kind(task), []).append(took)
            self.line(task)  # into the store
            if self.options.prune:
                self.book.prune(task)

    def _wait(self, stopping: play.Stopping) -> None:
        until = time.monotonic() + PAUSE
        while time.monotonic() < until and not stopping():
            time.sleep(0.1)
        self.busy.clear()

    def _fits(self, stage: str, tasks: Sequence[Task]) -> bool:
        """Returns whether a stage can be finished in time, as far as can be reckoned."""
        deadline = self.options.deadline
        if deadline is None:
            return True
        if stage != TUNING and self._unchosen():
            return False  # cells of this seed are still to be known: another process, or another call, finishes the tuning
        return time.monotonic() + self.reckon([_kind(task) for task in tasks]) <= deadline

    def reckon(self, kinds: Sequence[Kind]) -> float:
        """Returns the seconds that a cell of each of these kinds would take here; 0.0 while nothing is known of any."""
        known = self._known_seconds()
        usual = fmean(known.values()) if known else 0.0
        return sum(known.get(kind, usual) for kind in kinds) / self.options.jobs

    def _known_seconds(self) -> dict[Kind, float]:
        """Returns what a cell of each kind takes: as measured here, else as the records of finished cells say."""
        known: dict[Kind, list[float]] = {}
        for task in self.plan.tasks.values():
            run = self.run_of(task)
            if run is not None:
                known.setdefault(_kind(task), []).append(seconds_of(run.records))
        return {kind: fmean(took) for kind, took in {**known, **self.seconds}.items()}


def _kind(task: Task) -> Kind:
    return task.setting, task.label
