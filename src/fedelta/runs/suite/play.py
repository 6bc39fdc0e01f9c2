"""Carries out one cell, or goes on with it: claimed by one process, and with what went wrong written down."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal, TypeAlias

from fedelta.engines import manifests
from fedelta.engines.rounds import DivergedError
from fedelta.exchange import files
from fedelta.runs import reports
from fedelta.runs.config import ConfigError, RunConfig
from fedelta.runs.config.allowed import Allowed
from fedelta.runs.digests import files_of, is_same_cell, untrained_digest
from fedelta.runs.folder import RunFolder
from fedelta.runs.open_run import OpenRun
from fedelta.runs.records import Record
from fedelta.runs.runner import opened
from fedelta.runs.suite.cells import Task
from fedelta.runs.suite.lines import Line, encoded, line_of, parsed

CLAIMS, STALE, UNTRAINED = ".claims", "stale", "untrained"

LONGEST_TRACE = 4000
"""Characters of a traceback that are kept, from its end."""

What: TypeAlias = Literal["begun", "round", "done", "failed", "busy", "stopped"]

Stopping: TypeAlias = Callable[[], bool]
"""Says whether a person wants runs to end after their round."""


@dataclass(frozen=True)
class Event:
    """News of a cell: `busy` says that another process has it.

    Attributes:
        what: happened.
        task: the cell.
        record: of a round.
        reason: of a failure, or of a run that diverged, its first line.
    """

    what: What
    task: Task
    record: Record | None = None
    reason: str = ""


@dataclass(frozen=True)
class Place:
    """The folder of a suite's runs, and the code that may run in them.

    Attributes:
        folder: of the suite.
        allowed: digests of the Python files that may run.
    """

    folder: Path
    allowed: Allowed = frozenset()

    def claim(self, digest: str) -> Path:
        """Returns the folder whose lock belongs to the process that runs a cell."""
        return self.folder / CLAIMS / digest[:20]

    def untrained(self, digest: str) -> Path:
        """Returns the file of the scores before any training."""
        return self.folder / UNTRAINED / f"{digest[:20]}.json"


def events(task: Task, place: Place, stopping: Stopping) -> Iterator[Event]:
    """Runs a cell to its end, or until somebody wants it to end after its round, and yields what happens."""
    yield Event("begun", task)
    try:
        with closing(_rounds(task, place)) as rounds:
            for record in rounds:
                yield Event("round", task, record)
                if stopping() and record["t"] + 1 < task.config.federation.rounds:
                    yield Event("stopped", task)
                    return
    except BlockingIOError:
        yield Event("busy", task)
    except Exception as error:
        yield Event("failed", task, reason=note_failure(task, error))
    else:
        diverged = _diverged(task)
        yield Event("done", task, reason=str(diverged["facts"]["diverged"]) if diverged else "")


def _rounds(task: Task, place: Place) -> Generator[Record]:
    """Yields the rounds that are left; none if another process was quicker."""
    with files.locked(place.claim(task.digest)):
        if is_done(task):
            return
        folder = RunFolder(task.folder)
        _put_away(task, place)
        for last_try in (folder.failed_file, folder.diverged_file):
            last_try.unlink(missing_ok=True)
        lost: Line | None = None
        with _open(task, place) as going:
            if not folder.config_file.is_file():  # which is written with the first round
                files.commit(folder.cell_file, json.dumps({"files": files_of(task.config)}).encode())
            going.pictures = False  # they take longer than a small cell, and the suite's own page has all cells
            try:
                yield from going.records()
            except DivergedError as error:
                lost = line_of(going.folder, task.digest, error)
            if task.scores_start:
                _score_untrained(task, place, going)
        if lost is not None:  # only now, since a run without a whole round leaves no file in its folder
            files.commit(folder.diverged_file, encoded(lost))


@contextmanager
def _open(task: Task, place: Place) -> Generator[OpenRun]:
    config = task.config.model_copy(update={"output": str(task.folder)})
    with ExitStack() as stack:
        if RunFolder(task.folder).config_file.is_file():
            yield stack.enter_context(opened(config, resume=task.folder, allow_files=place.allowed))
        else:
            yield stack.enter_context(opened(config, allow_files=place.allowed))


def _score_untrained(task: Task, place: Place, going: OpenRun) -> None:
    """Scores the model before any training, once for all cells that begin from it.

    After the rounds, so that it can change no bit of them.
    """
    path = place.untrained(untrained_digest(task.config))
    experiment = going.experiment
    if path.is_file() or experiment.evaluator is None:
        return
    start = {"adapter": experiment.template, "base": None}
    parts = {"validation": experiment.validation, "test": experiment.test}
    scores = {part: experiment.evaluator.score(start, rows) for part, rows in parts.items() if rows}
    files.commit(path, json.dumps(scores).encode())


def finished(task: Task) -> Line | None:
    """Returns the line of a cell that is done, or that diverged; None for one that has rounds to come."""
    return line_of(RunFolder(task.folder), task.digest) if _has_all_rounds(task) else _diverged(task)


def is_done(task: Task) -> bool:
    """Returns whether nothing is left to do of a cell: it has all its rounds, or it diverged."""
    return _has_all_rounds(task) or _diverged(task) is not None


def _diverged(task: Task) -> Line | None:
    """Returns the line that a cell left when it diverged; None where it did not, or with another config."""
    path = RunFolder(task.folder).diverged_file
    try:
        line = parsed(path.read_bytes()) if path.is_file() else None
    except ValueError:  # it is run again
        return None
    return line if line is not None and line["digest"] == task.digest else None


def _has_all_rounds(task: Task) -> bool:
    """Returns whether the cell's folder holds all its rounds, and its config is the one that is asked for."""
    folder = RunFolder(task.folder)
    config = _config_of(folder)
    if config is None or not _is_asked(config, task):
        return False
    records, damages = folder.survey()
    return not damages and bool(records) and records[-1]["t"] + 1 == len(records) == task.config.federation.rounds


def failure(task: Task) -> str:
    """Returns the first line of the error with which the cell's last try ended; empty where it did not fail."""
    path = RunFolder(task.folder).failed_file
    if not path.is_file():
        return ""
    return str(reports.json_object(path).get("error") or "failed").splitlines()[0]


def is_claimed(task: Task, place: Place) -> bool:
    """Returns whether a process is running the cell now."""
    if not place.claim(task.digest).is_dir():
        return False
    try:
        with files.locked(place.claim(task.digest)):
            return False
    except BlockingIOError:
        return True


def note_failure(task: Task, error: BaseException) -> str:
    """Writes down how a cell failed; returns the error's first line."""
    text = str(error) or type(error).__name__
    trace = "".join(traceback.format_exception(error))[-LONGEST_TRACE:]
    records = RunFolder(task.folder).survey()[0] if task.folder.is_dir() else []
    found: Mapping[str, Any] = {"error": text, "round": len(records), "trace": trace}
    files.commit(RunFolder(task.folder).failed_file, json.dumps(found, ensure_ascii=False).encode())
    return text.splitlines()[0]


def _put_away(task: Task, place: Place) -> None:
    """Moves a run of another config, or one that cannot become whole any more, out of the cell's folder, to `stale/`."""
    folder = RunFolder(task.folder)
    config = _config_of(folder)
    if not folder.config_file.is_file() or (config is not None and _is_asked(config, task) and _can_go_on(folder)):
        return
    within = task.folder.relative_to(place.folder)
    names = (place.folder / STALE / within.with_name(f"{within.name}.{number}") for number in count(1))
    target = next(path for path in names if not path.exists())
    target.parent.mkdir(parents=True, exist_ok=True)
    with RunFolder(task.folder).locked():
        os.replace(task.folder, target)


def _can_go_on(folder: RunFolder) -> bool:
    """Returns whether a run that is taken up will have the records of all its rounds.

    Its checkpoint may have been pruned, and a round whose record is gone is not done again: only the record of the last round
    is in the checkpoint, too.
    """
    rounds = {record["t"] for record in folder.survey()[0]}
    saved = [int(path.stem) for path in manifests.paths(folder.checkpoint)]
    return rounds >= set(range(saved[0] - 1)) if saved else len(rounds) <= 1


def _is_asked(config: RunConfig, task: Task) -> bool:
    """Returns whether the run in a cell's folder, with this config, is the one that is asked for."""
    known: Mapping[str, Any] = reports.json_object(RunFolder(task.folder).cell_file)
    return is_same_cell(config, task.config, known.get("files", {}))


def _config_of(folder: RunFolder) -> RunConfig | None:
    """Returns the config in a folder; None where there is none that can be read."""
    try:
        return folder.config() if folder.config_file.is_file() else None
    except (ConfigError, OSError):
        return None
