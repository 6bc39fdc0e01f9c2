"""Gathers what every table says of a method, as numbers: score, difference, cost, rate, and how it was tuned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from fedelta.report import readings, statistics
from fedelta.report.compared import Compared, mean_of
from fedelta.report.comparison import State
from fedelta.report.drawing.rows import ForestRow
from fedelta.report.numerals import DASH
from fedelta.report.statistics import Difference, Interval
from fedelta.report.study import Group


@dataclass(frozen=True, eq=False)
class Standing:
    """One row of a table of methods. A number that was not measured is None.

    Attributes:
        group: the method and its runs.
        mean, sd: of the compared score over seeds.
        is_baseline: whether the differences are to it.
        difference: to the baseline; None for the baseline itself, and where scores cannot be compared.
        mark: the verdict for a reader; empty where the seeds allow none.
        bold: whether it is the best mean, or these seeds cannot tell it from that.
        lacking: the seeds that another method has and this one has not.
        seeds: that have a score.
        best: mean of the scores at the rounds that were best on validation.
        best_rounds: those rounds, from 1.
        worst: the mean over seeds of the worst client's score, and of the spread of clients; None where a run diverged.
        macro_f1: mean of the last.
        sent, up, down: mean bytes of a run; of these and all other costs a run that diverged is left out.
        seconds, evaluation: mean time of the rounds of a run, and of its evaluations.
        steps, rows_seen: mean optimiser steps and training rows of a run, all participants together.
        memory: mean peak, in bytes.
        rates: the learning rates of the runs.
        tuned: whether a grid was tried; None where there is no suite.
        at_edge: whether the value that was chosen is at the edge of the grid.
    """

    group: Group
    mean: float | None
    sd: float | None
    is_baseline: bool
    difference: Difference | None
    mark: str
    bold: bool
    lacking: Sequence[int]
    seeds: int
    best: float | None
    best_rounds: Sequence[int]
    worst: tuple[float, float] | None
    macro_f1: float | None
    sent: float
    up: float
    down: float
    seconds: float
    evaluation: float | None
    steps: float | None
    rows_seen: float | None
    memory: float | None
    rates: Sequence[float]
    tuned: bool | None
    at_edge: bool

    @property
    def interval(self) -> Interval | None:
        """Returns the 95 % interval of the difference."""
        return self.difference.interval if self.difference else None

    @property
    def rate(self) -> str:
        """Writes the learning rates."""
        return ", ".join(f"{rate:g}" for rate in self.rates) or DASH


def standings(c: Compared) -> list[Standing]:
    """Returns a row for each method that has a run, in the order of a table."""
    return [_standing(c, group) for group in c.ranked()]


def _standing(c: Compared, group: Group) -> Standing:
    study, runs = c.study, readings.runs_of(c.study, group)
    chosen = [run.best_round(c.measure.metric) for run in group.runs.values()]
    pairs = best_and_last(c, group)
    worst = readings.worst_clients(group.runs.values(), c.measure.metric)
    is_baseline = group.key == study.baseline.key and bool(c.differences)
    tuned = None if c.suite is None else c.suite.tuned.get(group.label)
    return Standing(
        group=group,
        mean=c.mean(group.key),
        sd=statistics.spread(study.table[group.key]),
        is_baseline=is_baseline,
        difference=None if is_baseline else c.differences.get(group.key),
        mark=shown_mark(c, group),
        bold=c.seeds >= statistics.FEWEST and c.against_best.get(group.key) in ("best mean", "not separated"),
        lacking=study.missing(group) if study.last is not None else [],
        seeds=len(study.table[group.key]),
        best=fmean(best for best, _ in pairs) if pairs else None,
        best_rounds=[t + 1 for t in chosen if t is not None],
        worst=(fmean(w for w, _, _ in worst), fmean(s for _, s, _ in worst)) if worst else None,
        macro_f1=macro_f1(c, group),
        sent=mean_of(readings.total, runs) or 0.0,
        up=mean_of(lambda run: readings.total(run, "up"), runs) or 0.0,
        down=mean_of(lambda run: readings.total(run, "down"), runs) or 0.0,
        seconds=mean_of(readings.seconds, runs) or 0.0,
        evaluation=mean_of(lambda run: readings.seconds_of(run, "evaluation"), runs),
        steps=mean_of(readings.steps, runs),
        rows_seen=mean_of(readings.rows_seen, runs),
        memory=mean_of(readings.peak_memory, runs),
        rates=_rates(group),
        tuned=None if c.suite is None else tuned is not None,
        at_edge=tuned is not None and tuned.at_edge,
    )


@dataclass(frozen=True)
class Absent:
    """A method of a suite that has no run in a setting, and why.

    Attributes:
        key: of the method.
        label: of the method.
        state: of its cells: the first that is not merely missing, else `missing`.
        reason: the claim's sentence, or the error's first line; empty where there is neither.
    """

    key: str
    label: str
    state: State
    reason: str


def absent(c: Compared) -> list[Absent]:
    """Returns the methods of the suite without any run in this setting, in the suite's order."""
    if c.suite is None:
        return []
    there = {group.label for group in c.study.groups}
    found: list[Absent] = []
    for label, key in c.suite.keys.items():
        cells = [cell for cell in c.suite.cells if cell.label == label]
        if label not in there and cells:
            said = next((cell for cell in cells if cell.state != "missing"), cells[0])
            found.append(Absent(key, label, said.state, said.reason))
    return found


def interval_of(c: Compared, s: Standing) -> ForestRow | None:
    """Returns the row of the forest, in the unit of the page; None without a difference."""
    if s.is_baseline:
        return ForestRow(s.group.style, 0.0, None, [])
    found = s.difference
    if found is None or found.mean is None:
        return None
    factor = c.measure.factor
    bounds = (found.interval.low * factor, found.interval.high * factor) if found.interval else None
    ticks = [x * factor for x in found.by_seed.values()] if len(found.by_seed) > 1 else []
    return ForestRow(s.group.style, found.mean * factor, bounds, ticks)


UNEQUAL = 1.5
"""The ratio of the commonest label's rows to the rarest one's from which macro-F1 stands beside accuracy."""


def shows_macro_f1(c: Compared) -> bool:
    """Returns whether macro-F1 belongs beside accuracy: classes are unequal, or nothing says how large they are."""
    if c.measure.metric != "accuracy":
        return False
    split = next((run.split for run in c.study.runs if run.split is not None), None)
    totals: dict[str, int] = {}
    for client in split["clients"].values() if split else ():
        for label, rows in (client.get("labels") or {}).items():
            totals[label] = totals.get(label, 0) + int(rows)
    if totals:
        return max(totals.values()) > UNEQUAL * min(totals.values())
    return any("macro_f1" in (r.get(str(c.study.part)) or {}) for run in c.study.runs for r in run.records[-1:])


def _rates(group: Group) -> list[float]:
    found = [(run.config.get("training") or {}).get("learning_rate") for run in group.runs.values()]
    return sorted({float(rate) for rate in found if isinstance(rate, int | float)})


def shown_mark(c: Compared, group: Group) -> str:
    """Returns the verdict on a method as a table shows it: none from fewer than three seeds, nor where seeds are lacking."""
    mark = c.marks.get(group.key, "")
    if c.study.missing(group) and c.study.last is not None:
        return ""
    return "" if c.seeds < statistics.FEWEST and mark != "baseline" else mark


def macro_f1(c: Compared, group: Group) -> float | None:
    """Returns the mean macro-F1 in the compared round; None where a run has none."""
    part, last = str(c.study.part), c.study.last
    if last is None:
        return None
    return mean_of(lambda run: run.scores(part, "macro_f1").get(last), list(group.runs.values()))


def best_and_last(c: Compared, group: Group) -> list[tuple[float, float]]:
    """Returns for each run of a group its score at the best round by validation, and the one by which it is compared.

    One that diverged is among them: its best round was before that, and leaving it out would favour its method.
    """
    study = c.study
    found: list[tuple[float, float]] = []
    for run in group.runs.values():
        scores, chosen, last = (
            run.scores(str(study.part), str(study.metric)),
            run.best_round(str(study.metric)),
            study.score(run),
        )
        if chosen in scores and last is not None:
            found.append((scores[chosen], last))
    return found
