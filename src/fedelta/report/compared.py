"""A study with its statistics, which tables, page, picture and terminal share, so that all of them say the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, Protocol, TypeVar

from fedelta.report import readings, statistics
from fedelta.report.comparison import Cell, Tuned
from fedelta.report.numerals import Measure
from fedelta.report.statistics import Difference, Mark, Scores
from fedelta.report.study import Group, Run, Study

UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))


@dataclass(frozen=True, eq=False)
class Conditions:
    """Holds what a suite knows of a setting beside the runs.

    Attributes:
        setting: its name; empty where nothing is swept.
        cells: of the setting, finished or not.
        tuned: by label; methods that were not tuned are missing.
        untrained: scores of the model before any training, by part and metric.
        seeds: that the suite asks for.
        keys: of the methods, by label, in the suite's order.
    """

    setting: str = ""
    cells: Sequence[Cell] = ()
    tuned: Mapping[str, Tuned] = field(default_factory=dict[str, Tuned])
    untrained: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])
    seeds: Sequence[int] = ()
    keys: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, eq=False)
class Compared:
    """A study with its statistics, which all parts of a page share.

    Attributes:
        study: the runs.
        measure: how the metric is written.
        table: scores by seed of the methods that are compared: no lines to compare with, no method without a score.
        marks: the verdict on each group, by key.
        differences: to the baseline, by key; empty where scores cannot be compared.
        against_best: the verdict on each group against the best mean, whatever `marks` are against.
        suite: what a suite knows beside the runs; None for runs that were only set side by side.
    """

    study: Study
    measure: Measure
    table: Mapping[str, Mapping[int, float]] = field(default_factory=dict[str, Mapping[int, float]])
    marks: Mapping[str, Mark] = field(default_factory=dict[str, Mark])
    differences: Mapping[str, Difference] = field(default_factory=dict[str, Difference])
    against_best: Mapping[str, Mark] = field(default_factory=dict[str, Mark])
    suite: Conditions | None = None

    @property
    def untrained(self) -> float | None:
        """Returns the compared score of the model before any training; None where it is not known."""
        scores = self.suite.untrained.get(str(self.study.part), {}) if self.suite else {}
        return scores.get(self.measure.metric)

    @property
    def seeds(self) -> int:
        """Returns the number of seeds."""
        return len(self.study.seeds)

    def group(self, key: str) -> Group:
        """Returns the group of a key."""
        return next(group for group in self.study.groups if group.key == key)

    def seeds_of(self, group: Group) -> list[int]:
        """Returns the seeds for which a group has a score."""
        return sorted(self.study.table[group.key])

    def mean(self, key: str) -> float | None:
        """Returns the mean score of a group; None without one."""
        scores = self.study.table[key].values()
        return fmean(scores) if scores else None

    @property
    def best(self) -> Group | None:
        """Returns the group with the best mean among those that have every seed, else among all."""
        table = statistics.complete(self.table) or self.table
        if not table:
            return None
        return self.group(statistics.best_of(table, lower_is_better=self.measure.lower_is_better))

    def seeds_to_separate(self) -> dict[str, int | None]:
        """Estimates by label how many seeds would separate each method from the best mean; None where 100 would not be enough.

        Lines to compare with are no methods here. Empty below two seeds, and where scores cannot be compared.
        """
        if self.study.one_run or self.study.unlike:
            return {}
        needed = statistics.seeds_to_separate(self.table, lower_is_better=self.measure.lower_is_better)
        return {self.group(key).label: seeds for key, seeds in needed.items()}

    def ranked(self) -> list[Group]:
        """Returns the groups as a table lists them: by mean, then those that lack seeds, then lines to compare with."""
        sign = 1 if self.measure.lower_is_better else -1

        def place(group: Group) -> tuple[bool, bool, float]:
            mean = self.mean(group.key)
            lacking = bool(self.study.missing(group)) and self.study.last is not None
            return group.style == "kr", lacking, math.inf if mean is None else sign * mean

        return sorted(self.study.groups, key=place)


class Styled(Protocol):
    """Has a class of colour."""

    @property
    def style(self) -> str:
        """Returns the class."""
        ...


Drawn = TypeVar("Drawn", bound=Styled)


def competitors(drawn: Sequence[Drawn]) -> list[Drawn]:
    """Returns what titles and findings speak of: all but the lines to compare with, or all where there is nothing else."""
    return [each for each in drawn if each.style != "kr"] or list(drawn)


def compared(study: Study, suite: Conditions | None = None) -> Compared:
    """Computes the statistics of a study, of which a suite may know more."""
    rows = max((int(run.facts.get("rows", {}).get("test", 0)) for run in study.runs), default=0)
    measure = Measure(study.metric or "", rows)
    table = {g.key: study.table[g.key] for g in study.groups if study.table[g.key] and g.style != "kr"}
    if study.one_run or study.unlike or study.last is None:
        return Compared(study, measure, table, suite=suite)
    base = study.baseline.key
    lower = measure.lower_is_better
    against_best = statistics.marks_against_best(table, lower_is_better=lower)
    marks = against_best
    if study.named and study.table.get(base):
        marks = statistics.marks_against_baseline({base: study.table[base], **table}, base, lower_is_better=lower)
    return Compared(study, measure, table, marks, _differences(study, table), against_best, suite)


def _differences(study: Study, table: Mapping[str, Scores]) -> dict[str, Difference]:
    """Returns the difference of each group to the baseline; lines to compare with take no part in Holm's correction."""
    base = study.baseline.key
    if not study.table[base]:
        return {}
    differences = statistics.against_baseline({base: study.table[base], **table}, base)
    for key in study.table.keys() - {base, *table}:
        if study.table[key]:
            alone = statistics.against_baseline({base: study.table[base], key: study.table[key]}, base)[key]
            differences[key] = replace(alone, adjusted=None)
    return {group.key: differences[group.key] for group in study.groups if group.key in differences}


def unit_for(sizes: Sequence[float]) -> tuple[int, str]:
    """Returns the unit in which a column of bytes is written, by its largest."""
    largest = max(sizes, default=0.0)
    return next((unit for unit in UNITS if largest >= unit[0]), UNITS[-1])


def mean_total(study: Study, group: Group, way: str | None = None) -> float:
    """Returns the mean over seeds of all bytes that a method sent."""
    runs = readings.runs_of(study, group)
    return fmean(readings.total(run, way) for run in runs) if runs else 0.0


def mean_of(number: Callable[[Run], float | None], runs: Sequence[Run]) -> float | None:
    """Returns the mean over runs; None where one of them lacks the number."""
    found = [x for run in runs if (x := number(run)) is not None]
    return fmean(found) if found and len(found) == len(runs) else None


def place(value: Any) -> str:
    """Writes a setting; of a path on somebody's machine only its end, since the rest says who they are and not what was run."""
    text = "null" if value is None else str(value)
    return f"…/{text.rstrip('/').rsplit('/', 1)[-1]}" if text.startswith(("/", "~", "file:")) else text
