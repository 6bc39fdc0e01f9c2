"""Tables of a page: the lead table with its forest plot, what a target takes, every run, and the settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from markupsafe import Markup

from fedelta.report import readings, statistics
from fedelta.report.compared import Compared, mean_total, place, unit_for
from fedelta.report.drawing.rows import Interval, forest_axis, forest_head, forest_row
from fedelta.report.drawing.svg import Axis
from fedelta.report.numerals import DASH, seconds
from fedelta.report.page.parts import Grid
from fedelta.report.standings import Standing, interval_of, standings
from fedelta.report.study import Group, Run

TARGETS = tuple(share / 10 for share in range(9, 0, -1))

KIND = {"best mean": "good", "ahead": "good", "behind": "bad"}


@dataclass(frozen=True)
class Cell:
    """A number of the lead table, a smaller line under it, and the head of its column for a phone."""

    head: str
    value: str
    under: str = ""
    optional: bool = False


@dataclass(frozen=True)
class Row:
    """A method in the lead table."""

    key: str
    style: str
    label: str
    tag: str
    kind: str
    forest: Markup
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Lead:
    """The lead table.

    Attributes:
        text: says how to read it.
        heads: of the columns, with what is under each and whether it may go on a narrow screen.
        axis: of the forest, and what differences are `against`.
        rows: one for each method.
        note: on the resolution of the test rows.
    """

    text: str
    heads: Sequence[tuple[str, str, bool]]
    axis: Markup
    against: str
    rows: Sequence[Row]
    note: str


def lead(c: Compared) -> Lead | None:
    """Returns the table of who wins; None where there is nothing to compare."""
    study, m = c.study, c.measure
    if study.one_run or study.last is None:
        return None
    found = standings(c)
    drawn = {s.group.key: row for s in found if (row := interval_of(c, s)) is not None}
    axis = forest_axis(list(drawn.values()))
    factor, unit = unit_for([s.sent for s in found])
    columns = _columns(c, unit)
    heads = [head for head, _, _ in columns]
    rows = [_row(c, s, axis, drawn.get(s.group.key), factor, heads) for s in found]
    against = f"against {study.baseline.label}, {m.difference_unit}" if m.difference_unit else f"against {study.baseline.label}"
    tick = "A tick is a seed, the mark their mean, the bar the 95 % interval of the paired difference."
    text = f"Sorted by the mean. {tick}" if c.seeds > 1 else "Sorted by the score of the one seed."
    return Lead(text, columns, forest_head(axis) if drawn else Markup(""), against, rows, _resolution(c))


def _columns(c: Compared, unit: str) -> list[tuple[str, str, bool]]:
    m = c.measure
    score = f"{c.study.part} {m.name}" + (f", {m.unit}" if m.unit else "")
    spread = "mean ± sd" if c.seeds > 1 else "one seed"
    difference = "difference" + (f", {m.difference_unit}" if m.difference_unit else "")
    interval = "paired by seed, 95 % t" if c.seeds > 1 else "same seed"
    return [
        (score, f"round {(c.study.last or 0) + 1}, {spread}", False),
        (difference, interval, False),
        ("best" + (f", {m.unit}" if m.unit else ""), "chosen on validation", True),
        ("worst client" + (f", {m.unit}" if m.unit else ""), "own test rows", True),
        (f"sent, {unit}", "both ways", False),
        ("time, s", "training rounds", True),
        ("rate", "not tuned", True),
        ("n", "seeds", True),
    ]


def _row(c: Compared, s: Standing, axis: Axis, drawn: Interval | None, factor: int, heads: Sequence[str]) -> Row:
    group = s.group
    shown = f"{s.seeds} of {c.seeds} seeds" if s.lacking else s.mark
    forest = forest_row(drawn, axis, f"{group.label}: difference with its interval") if drawn else Markup("")
    values = [_score(c, s), _difference(c, s), _best(c, s), _worst(c, s), *_costs(s, factor)]
    cells = [
        Cell(head, value, under, i in (2, 3, 5, 6, 7))
        for i, (head, (value, under)) in enumerate(zip(heads, values, strict=True))
    ]
    return Row(group.key, group.style, group.label, shown, KIND.get(s.mark, ""), forest, cells)


def _score(c: Compared, s: Standing) -> tuple[str, str]:
    return c.measure.text(s.mean), f"± {c.measure.text(s.sd)} sd" if s.sd is not None else ""


def _difference(c: Compared, s: Standing) -> tuple[str, str]:
    if s.is_baseline:
        return "baseline", ""
    if s.difference is None or s.difference.mean is None:
        return DASH, ""
    return c.measure.difference(s.difference.mean), c.measure.bounds(s.interval)


def _best(c: Compared, s: Standing) -> tuple[str, str]:
    if s.best is None:
        return DASH, "no validation"
    rounds = s.best_rounds
    shown = ", ".join(map(str, rounds)) if len(rounds) <= 5 else f"{min(rounds)} to {max(rounds)}"
    return c.measure.text(s.best), f"round {shown}"


def _worst(c: Compared, s: Standing) -> tuple[str, str]:
    if s.worst is None:
        return DASH, ""
    return c.measure.text(s.worst[0]), f"spread {c.measure.text(s.worst[1])}"


def _costs(s: Standing, factor: int) -> list[tuple[str, str]]:
    return [(f"{s.sent / factor:.1f}", ""), (seconds(s.seconds), ""), (s.rate, ""), (str(s.seeds), "")]


def _resolution(c: Compared) -> str:
    rows, m = c.measure.rows, c.measure
    if not rows or m.metric != "accuracy" or c.study.part != "test":
        return ""
    means = [mean for group in c.study.groups if (mean := c.mean(group.key)) is not None]
    error = max(statistics.sampling_error(mean, rows) for mean in means)
    return (
        f"{rows} test rows: one row is {100 / rows:.2g} pp, the sampling error of one accuracy is up to {100 * error:.1f} pp. "
        "Within a seed all methods are tested on the same rows, so that it cancels in part in the differences."
    )


def what_it_takes(c: Compared) -> tuple[str, Grid] | None:
    """Returns a caption and the cost of each method: bytes, time, and rounds and bytes to a target score."""
    groups = [g for g in c.ranked() if readings.runs_of(c.study, g)]
    if not groups:
        return None
    target = _target(c, groups)
    factor, unit = unit_for([mean_total(c.study, g, way) for g in groups for way in ("up", "down")])
    head = ["method", f"up, {unit}", f"down, {unit}", "s a round"]
    text = f"{c.measure.with_unit(target)}" if target is not None else ""
    head += [f"rounds to {text}", f"{unit} to {text}", "seeds there"] if target is not None else []
    rows = [_taken(c, g, target, factor) for g in groups]
    caption = "Means over seeds; seconds are of this machine." if c.seeds > 1 else "Seconds are of this machine."
    if target is not None:
        caption += f" Target: {text}, the last ten-percent line that most methods’ means pass; read off evaluated rounds only."
    return caption, Grid(head, rows, keys=[g.key for g in groups], styles=[g.style for g in groups])


def _target(c: Compared, groups: Sequence[Group]) -> float | None:
    if c.measure.factor == 1.0 or c.study.part is None:
        return None
    majority = c.study.groups[0].first.facts.get("majority") or 0.0
    ends = [mean for g in groups if (mean := c.mean(g.key)) is not None]
    passed = [t for t in TARGETS if t > majority and 2 * sum(end >= t for end in ends) > len(ends)]
    return passed[0] if passed else None


def _taken(c: Compared, group: Group, target: float | None, factor: int) -> list[str]:
    runs = readings.runs_of(c.study, group)
    ways = [f"{mean_total(c.study, group, way) / factor:.1f}" for way in ("up", "down")]
    pace = fmean(readings.seconds(run) / len(run.records) for run in runs)
    row = [group.label, *ways, f"{pace:.2f}" if pace < 10 else f"{pace:.0f}"]
    if target is None:
        return row
    there = [(t, readings.sent(run)[t]) for run in runs if (t := _first_at(c, run, target)) is not None]
    if not there:
        return [*row, DASH, DASH, f"0 of {len(runs)}"]
    middle, sent = fmean(t + 1 for t, _ in there), fmean(b for _, b in there)
    return [*row, f"{middle:.0f}", f"{sent / factor:.1f}", f"{len(there)} of {len(runs)}"]


def _first_at(c: Compared, run: Run, target: float) -> int | None:
    return next((t for t, x in run.scores(str(c.study.part), c.measure.metric).items() if x >= target), None)


def every_run(c: Compared) -> Grid:
    """Returns every run with its state, score and bytes."""
    factor, unit = unit_for([readings.total(run) for run in c.study.runs])
    rows: list[list[str]] = []
    for group in c.study.groups:
        for seed, run in group.runs.items():
            state = "diverged" if run.diverged else "done" if run.finished else "unfinished"
            score = c.measure.text(c.study.score(run)) if c.study.metric else DASH
            sent = f"{readings.total(run) / factor:.1f}"
            rows.append([place(run.name), group.label, str(seed), f"{len(run.records)} of {run.rounds}", state, score, sent])
    keys = [group.key for group in c.study.groups for _ in group.runs]
    return Grid(["run", "method", "seed", "rounds", "state", c.measure.name or "score", f"sent, {unit}"], rows, keys=keys)


def common_settings(c: Compared) -> Grid:
    """Returns the settings that all runs share."""
    settings = [run.settings for run in c.study.runs]
    shared = {k: v for k, v in settings[0].items() if all(k in s and s[k] == v for s in settings)}
    return Grid(["key", "value"], [[key, place(value)] for key, value in sorted(shared.items())])


def differing_settings(c: Compared) -> Grid | None:
    """Returns the settings in which the methods differ; None where they differ in none."""
    if not c.study.differing:
        return None
    head = ["key", *(group.label for group in c.study.groups)]
    return Grid(head, [[key, *(place(v) for v in values)] for key, values in sorted(c.study.differing.items())])
