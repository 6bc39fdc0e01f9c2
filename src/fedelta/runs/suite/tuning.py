"""Chooses the values of a method by its runs on seeds of their own: by the validation score after the last round.

Scores that differ by less than the sampling error of the validation rows are level, and the loss decides between them. Where
the best value is the smallest or largest tried, one more beyond it is tried, at most twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeAlias

from fedelta.report.comparison import Tuned
from fedelta.report.statistics import sampling_error
from fedelta.report.study import LARGEST, Run
from fedelta.runs.suite.cells import Plan, Task, combinations
from fedelta.runs.suite.names import Values, text_of
from fedelta.runs.suite.schema import Entry, Tune
from fedelta.tasks.metrics import LOWER_IS_BETTER, is_better

MOST_EXTENSIONS = 2
"""Times that a grid may grow beyond an edge."""

FEWEST_VALUES = 2
"""Values that a grid needs to have a ratio."""

LOSS, SHARE = "loss", "accuracy"

Find: TypeAlias = Callable[[Task], Run | None]
"""Returns the finished run of a task; None for one that is not finished."""

IsLost: TypeAlias = Callable[[Task], bool]
"""Returns whether a task failed, so that it is not to be waited for."""


@dataclass(frozen=True)
class Tried:
    """Holds what became of one combination of values: mean score and mean loss on validation rows, and how many those are."""

    values: Values
    score: float
    loss: float
    rows: int


@dataclass(frozen=True)
class Choice:
    """The state of a method's tuning in a setting.

    Attributes:
        tuned: what was chosen; None while it is not known, or where every run failed.
        waiting: the runs that it still needs.
    """

    tuned: Tuned | None
    waiting: Sequence[Task] = ()

    @property
    def values(self) -> Values | None:
        """Returns the chosen values; None while they are not known."""
        return None if self.tuned is None else self.tuned.values


def choose(plan: Plan, setting: str, entry: Entry, find: Find, is_lost: IsLost) -> Choice:
    """Returns what a method's tuning runs say, as far as they are there."""
    tune = entry.tune
    if tune is None:
        return Choice(Tuned({}, {}))
    where = setting if tune.setting == "each" else next(iter(plan.settings))
    candidates = combinations(entry)
    if len(candidates) == 1:
        return Choice(Tuned(candidates[0], {}))
    for extension in range(MOST_EXTENSIONS + 1):
        tasks = {text_of(v): [plan.tuning_task(where, entry, s, v) for s in tune.seeds] for v in candidates}
        waiting = [task for own in tasks.values() for task in own if find(task) is None and not is_lost(task)]
        if waiting:
            return Choice(None, waiting)
        tried = [_tried(values, [find(task) for task in tasks[text_of(values)]]) for values in candidates]
        best = best_of(tried, _metric(tasks))
        if best is None:
            return Choice(None)
        beyond = [] if extension == MOST_EXTENSIONS else _beyond(tune, candidates, best.values)
        if not beyond:
            return Choice(_tuned(candidates, tried, best))
        candidates = [*candidates, *beyond]
    raise AssertionError("the last extension is never extended")


def _metric(tasks: Mapping[str, Sequence[Task]]) -> str:
    return next(iter(tasks.values()))[0].config.evaluation.best_by


def _tried(values: Values, runs: Sequence[Run | None]) -> Tried:
    """Returns the means over a combination's runs; one that failed or diverged makes it the worst there can be."""
    known = [run for run in runs if run is not None]
    if len(known) < len(runs) or not known:
        return Tried(values, math.nan, math.inf, 0)
    metric = str(known[0].config["evaluation"]["best_by"])
    rows = int(known[0].facts.get("rows", {}).get("validation", 0))
    return Tried(values, _mean(known, metric), _mean(known, LOSS, math.inf), rows)


def _mean(runs: Sequence[Run], metric: str, missing: float = math.nan) -> float:
    """Returns the mean of a metric on validation rows after the last round; `missing` where a run has none there."""
    found = [(run.records[-1].get("validation") or {}).get(metric) for run in runs]
    usable = [float(x) for x in found if x is not None and abs(x) < LARGEST]
    return fmean(usable) if len(usable) == len(runs) else missing


def best_of(tried: Sequence[Tried], metric: str) -> Tried | None:
    """Returns the best combination; None where none has a score.

    Accuracies that differ by no more than the sampling error of the best one are level: then the lower loss decides, and of
    equal losses the higher score.
    """
    scored = [one for one in tried if not math.isnan(one.score)]
    if not scored:
        return None
    top = scored[0]
    for one in scored[1:]:
        top = one if is_better(one.score, top.score, metric) else top
    error = sampling_error(top.score, top.rows) if metric == SHARE and top.rows else 0.0
    level = [one for one in scored if abs(one.score - top.score) <= error]
    sign = 1 if metric in LOWER_IS_BETTER else -1
    return min(level, key=lambda one: (one.loss, sign * one.score))


def _beyond(tune: Tune, candidates: Sequence[Values], best: Values) -> list[Values]:
    """Returns for each key at whose edge the best combination lies one more, beyond that edge."""
    found: list[Values] = []
    for key in tune.grid:
        value = next_value([values[key] for values in candidates], best[key])
        if value is not None:
            found.append({**best, key: value})
    return found


def next_value(tried: Sequence[Any], best: Any) -> int | float | None:
    """Returns the value beyond the edge of a grid on which the best one lies, by the grid's ratio there; None if on none."""
    if not all(isinstance(x, int | float) and not isinstance(x, bool) and x > 0 for x in tried):
        return None
    ordered = sorted(set(tried))
    if len(ordered) < FEWEST_VALUES or best not in (ordered[0], ordered[-1]):
        return None
    inner = ordered[1] if best == ordered[0] else ordered[-2]
    value = best * best / inner
    if all(isinstance(x, int) for x in tried):
        whole = round(value)
        return whole if whole > 0 and whole not in ordered else None
    return float(f"{value:.6g}")  # 0.03, and not 0.030000000000000002


def _tuned(candidates: Sequence[Values], tried: Sequence[Tried], best: Tried) -> Tuned:
    at_edge = any(next_value([values[key] for values in candidates], best.values[key]) is not None for key in best.values)
    scored = {text_of(one.values): (one.score, one.loss) for one in tried if not math.isnan(one.score)}
    return Tuned(best.values, scored, at_edge)
