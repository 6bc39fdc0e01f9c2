"""Gathers the cells of a suite into a comparison, and writes it as tables and a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from fedelta.exchange import files
from fedelta.report import results
from fedelta.report.comparison import Cell, Comparison
from fedelta.runs.config.paths import shortened
from fedelta.runs.suite import play
from fedelta.runs.suite.lines import commit_of
from fedelta.runs.suite.schema import Entry
from fedelta.runs.suite.tuning import Choice
from fedelta.runs.suite.work import Work

RESULTS = Path(play.CLAIMS) / "results"
"""The folder whose lock belongs to the process that writes tables and page."""

NO_VALUE = "none of its tuning runs ended with a score"


def comparison_of(work: Work, text: str = "", command: str = "") -> Comparison:
    """Returns what is there of a suite, finished or not.

    Args:
        work: the suite's cells.
        text: of the suite file as resolved.
        command: that made it.
    """
    file, plan = work.plan.file, work.plan
    choices = {(setting, entry.label): work.choice(setting, entry) for setting, entry in work.served()}
    return Comparison(
        name=file.name,
        methods={entry.label: entry.name for entry in file.entries},
        settings={name: shortened(values) for name, values in plan.settings.items()},
        seeds=plan.seeds,
        baseline=file.baseline,
        metric=file.suite.metric,
        cells=list(_cells(work, choices)),
        tuned={key: choice.tuned for key, choice in choices.items() if choice.tuned is not None and choice.tuned.values},
        text=text,
        named=file.suite.baseline is not None,
        command=command,
        untrained={setting: scores for setting in plan.settings if (scores := _untrained(work, choices, setting))},
    )


def _cells(work: Work, choices: Mapping[tuple[str, str], Choice]) -> Iterator[Cell]:
    for setting, entry, seed in work.plan.cells():
        yield _cell(work, choices.get((setting, entry.label)), setting, entry, seed)


def _cell(work: Work, choice: Choice | None, setting: str, entry: Entry, seed: int) -> Cell:
    if choice is None:
        return Cell(setting, entry.label, seed, "not applicable", reason=work.plan.refused[setting, entry.label])
    if choice.values is None:
        lost = not choice.waiting
        return Cell(setting, entry.label, seed, "failed" if lost else "missing", reason=NO_VALUE if lost else "")
    task = work.plan.task(setting, entry, seed, choice.values)
    line, run = work.line(task), work.run_of(task)
    if line is not None:
        return Cell(setting, entry.label, seed, "done", run, digest=task.digest, commit=commit_of(line))
    if play.is_claimed(task, work.book.place):
        return Cell(setting, entry.label, seed, "running", digest=task.digest)
    reason = play.failure(task)
    return Cell(setting, entry.label, seed, "failed" if reason else "missing", reason=reason, digest=task.digest)


def _untrained(work: Work, choices: Mapping[tuple[str, str], Choice], setting: str) -> Mapping[str, Mapping[str, float]]:
    """Returns the scores before any training in a setting, from the first cell that has them."""
    for entry in work.plan.file.entries:
        choice = choices.get((setting, entry.label))
        if choice is None or choice.values is None:
            continue
        scores = work.book.untrained(work.plan.task(setting, entry, work.plan.seeds_of(setting)[0], choice.values))
        if scores:
            return scores
    return {}


def write(work: Work, text: str = "", command: str = "", *, rounds: bool = False) -> tuple[Comparison, list[Path]]:
    """Writes tables, picture and page of what is there of a suite into its folder; returns the comparison and their paths.

    Where another process is writing them it waits, and then gathers: the last that writes has the most cells.

    Args:
        work: the suite's cells.
        text: of the suite file as resolved.
        command: that made it.
        rounds: also every number of every round.

    Raises:
        ImportError: for several seeds without scipy, naming the extra.
    """
    folder = work.plan.folder
    with files.appending(folder / RESULTS / files.LOCK):
        comparison = comparison_of(work, text, command)
        found = results.files(comparison, rounds=rounds)
        for name, content in found.items():
            files.commit(folder / name, content)
    return comparison, [folder / name for name in found]


def write_csv(comparison: Comparison, folder: Path) -> None:
    """Writes results.csv alone, as it is after a cell; another process that is writing it has the same cells, or more."""
    text = results.results_csv(comparison)
    with suppress(BlockingIOError), files.locked(folder / RESULTS):
        files.commit(folder / "results.csv", text.encode())
