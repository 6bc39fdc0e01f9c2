"""The table of who wins, with its forest plot: one row a method, also of those that have no run, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fedelta.report import statistics
from fedelta.report.compared import Compared, unit_for
from fedelta.report.drawing.rows import ForestRow, forest_axis, forest_head, forest_row
from fedelta.report.drawing.svg import Axis
from fedelta.report.numerals import DASH, count, listed, seconds
from fedelta.report.standings import Absent, Standing, absent, interval_of, shows_macro_f1, standings

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
    """A method in the lead table; one that has no run has a reason in place of its cells."""

    key: str
    style: str
    label: str
    tag: str
    kind: str
    forest: Markup
    cells: Sequence[Cell]
    reason: str = ""


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
    columns = _columns(c, unit, found)
    heads = [head for head, _, _ in columns]
    optional = [may_go for _, _, may_go in columns]
    lines = _lines_to_compare(c, found)
    rows: list[Row] = []
    for s in found:
        values = _values(c, s, factor)
        cells = [Cell(head, value, under, may_go) for head, (value, under), may_go in zip(heads, values, optional, strict=True)]
        rows.append(_row(c, s, axis, drawn.get(s.group.key), cells, lines))
    if c.untrained is not None:
        rows.append(_untrained(c, c.untrained, heads, optional))
    rows += [_without_runs(x) for x in absent(c)]
    against = f"against {study.baseline.label}, {m.difference_unit}" if m.difference_unit else f"against {study.baseline.label}"
    tick = "A tick is a seed, the mark their mean, the bar the 95 % interval of the paired difference."
    text = f"Sorted by the mean. {tick}" if c.seeds > 1 else "Sorted by the score of the one seed."
    within = [name for value, name in lines if axis.low <= value <= axis.high]
    text += f" Dotted: {listed(within)}." if within else ""
    return Lead(text, columns, forest_head(axis) if drawn else Markup(""), against, rows, _resolution(c))


def _lines_to_compare(c: Compared, found: Sequence[Standing]) -> list[tuple[float, str]]:
    """Returns the differences of the lines to compare with, in the page's unit, which every row of the forest shows."""
    base = c.mean(c.study.baseline.key)
    means = {s.group.label: s.mean for s in found if s.group.style == "kr"} | {"untrained": c.untrained}
    if base is None or not c.differences:
        return []
    return [((mean - base) * c.measure.factor, label) for label, mean in means.items() if mean is not None]


def _untrained(c: Compared, value: float, heads: Sequence[str], optional: Sequence[bool]) -> Row:
    """Returns the row of the model before any training: a score and nothing else."""
    texts = [c.measure.text(value), *[DASH] * (len(heads) - 1)]
    cells = [Cell(head, text, "", may_go) for head, text, may_go in zip(heads, texts, optional, strict=True)]
    return Row("", "kg", "untrained", "", "", Markup(""), cells)


def _without_runs(x: Absent) -> Row:
    return Row(x.key, "kg", x.label, x.state, "", Markup(""), [], x.reason or "no run has finished a round")


def _columns(c: Compared, unit: str, found: Sequence[Standing]) -> list[tuple[str, str, bool]]:
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
        *([("macro-F1, %", "the same round", True)] if shows_macro_f1(c) else []),
        (f"sent, {unit}", "both ways", False),
        ("time, s", "training rounds", True),
        ("steps", "rows seen", True),
        ("rate", _tuning(found), True),
        ("n", "seeds", True),
    ]


def _tuning(found: Sequence[Standing]) -> str:
    """Says under the head of the rates whether they were tuned: all, none, or those that a row marks."""
    tuned = {bool(s.tuned) for s in found if s.group.style != "kr"}
    return "tuned" if tuned == {True} else "tuned in part" if len(tuned) > 1 else "not tuned"


def _row(
    c: Compared,
    s: Standing,
    axis: Axis,
    drawn: ForestRow | None,
    cells: Sequence[Cell],
    lines: Sequence[tuple[float, str]],
) -> Row:
    group = s.group
    shown = f"{s.seeds} of {c.seeds} seeds" if s.lacking else s.mark
    label = f"{group.label}: difference with its interval"
    forest = forest_row(drawn, axis, label, lines) if drawn else Markup("")
    return Row(group.key, group.style, group.label, shown, KIND.get(s.mark, ""), forest, cells)


def _values(c: Compared, s: Standing, factor: int) -> list[tuple[str, str]]:
    """Returns the cells of a method and what is under each, in the order of the columns."""
    return [
        _score(c, s),
        _difference(c, s),
        _best(c, s),
        _worst(c, s),
        *([(c.measure.text(s.macro_f1), "")] if shows_macro_f1(c) else []),
        (f"{s.sent / factor:.1f}", ""),
        (seconds(s.seconds), ""),
        (count(s.steps), count(s.rows_seen) if s.rows_seen is not None else ""),
        (s.rate, "at the edge" if s.at_edge else "not tuned" if s.tuned is False else ""),
        (str(s.seeds), ""),
    ]


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
    low, high = min(rounds), max(rounds)
    return c.measure.text(s.best), f"round {low}" if low == high else f"rounds {low} to {high}"


def _worst(c: Compared, s: Standing) -> tuple[str, str]:
    if s.worst is None:
        return DASH, ""
    return c.measure.text(s.worst[0]), f"spread {c.measure.text(s.worst[1])}"


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
