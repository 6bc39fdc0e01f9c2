"""Answers whether the order of methods changes with the setting: curves side by side, a table, and all settings together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from markupsafe import Markup

from fedelta.report import across, readings
from fedelta.report.compared import Compared
from fedelta.report.comparison import Comparison
from fedelta.report.drawing.lines import NARROW, WIDE, Frame, Line
from fedelta.report.drawing.points import Point, points
from fedelta.report.drawing.svg import swatch, tag
from fedelta.report.numerals import DASH, listed
from fedelta.report.outcome import keys_of
from fedelta.report.page import curves
from fedelta.report.page.parts import Figure, Grid, Section
from fedelta.report.settings import by_setting, settings_line
from fedelta.report.study import Group
from fedelta.report.verdict import across as verdict_across

MOST_COLUMNS = 4
"""Settings for which half the page has room."""


def settings(comparison: Comparison, found: Mapping[str, Compared]) -> Section | None:
    """Returns the section; None where nothing is swept."""
    if len(comparison.settings) < 2:
        return None
    figures = [table(comparison, found), *together(found)]
    text = verdict_across(found)
    return Section("settings", "Which setting?", "Which setting matters?", text, figures, list(panels(comparison, found)))


def group_of(found: Mapping[str, Compared], label: str) -> Group | None:
    """Returns a method's group in the first setting that has it: key and style are the same in all."""
    return next((group for c in found.values() for group in c.study.groups if group.label == label), None)


# --- the table -------------------------------------------------------------------------------------------------------


def table(comparison: Comparison, found: Mapping[str, Compared]) -> Figure:
    """Returns methods by settings: means, with the best and all not separated from it in bold."""
    rows = by_setting(comparison, found)
    head = [tag("th", "method", scope="col"), *(tag("th", name, scope="col") for name in comparison.settings)]
    lines = [_line(comparison, found, label, rows.texts[label], rows.bold[label], rows.reasons[label]) for label in rows.labels]
    whole = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *lines), class_="data tbl sets")
    caption = f"{settings_line(next(iter(found.values()))).capitalize()}; bold: the best mean, and all not separated from it."
    return Figure(
        "Every method in every setting",
        caption,
        body=tag("div", whole, class_="scroll"),
        whole=len(comparison.settings) > MOST_COLUMNS,
    )


def _line(
    comparison: Comparison,
    found: Mapping[str, Compared],
    label: str,
    texts: Mapping[str, str],
    bold: set[str],
    reasons: Mapping[str, str],
) -> Markup:
    group = group_of(found, label)
    key = keys_of(comparison)[label]
    mark = swatch(group.style) if group else Markup("")
    cells: list[Markup] = []
    for name in comparison.settings:
        text = texts.get(name, DASH)
        shown = tag("b", text) if name in bold else text
        cells.append(tag("td", shown, title=reasons.get(name), class_="gone" if name in reasons else None))
    return tag("tr", tag("th", mark, tag("bdi", label), scope="row"), *cells, data_m=key)


# --- panels with shared axes -----------------------------------------------------------------------------------------


def panels(comparison: Comparison, found: Mapping[str, Compared]) -> Iterator[Figure]:
    """Draws the score by round in each setting; all axes are the same."""
    lines = {name: _lines(c) for name, c in found.items()}
    lines = {name: drawn for name, drawn in lines.items() if drawn}
    xs = [x for drawn in lines.values() for line in drawn for x, _ in line.points]
    ys = [y for drawn in lines.values() for line in drawn for _, y in line.points]
    for name, drawn in lines.items():
        c = found[name]
        frame = replace(_frame(c), x_span=(min(xs), max(xs)), y_span=(min(ys), max(ys)))
        swept = ", ".join(f"{key} {value}" for key, value in comparison.settings[name].items())
        best = c.best
        title = f"{name}: {best.label} ends best" if best is not None and c.seeds > 0 else name
        yield curves.figure_of(title, swept, drawn, frame, small=True)


def _lines(c: Compared) -> list[Line]:
    if c.study.part is None or c.study.metric is None:
        return []
    drawn = curves.lines_of(c.study, readings.at(c.study.part, c.study.metric), banded=False)
    return [replace(line, points=[(x, y * c.measure.factor) for x, y in line.points]) for line in drawn]


def _frame(c: Compared) -> Frame:
    m = c.measure
    label = f"{c.study.part} {m.name}" + (f", {m.unit}" if m.unit else "")
    return Frame("round", label, curves.round_text, lambda y: m.text(y / m.factor), ceiling=100.0 if m.factor != 1 else None)


# --- all settings together -------------------------------------------------------------------------------------------


def together(found: Mapping[str, Compared]) -> Iterator[Figure]:
    """Draws what only several settings can say: interquartile means and profiles from three on, ranks from five on."""
    scores = across.normalised(found)
    if scores and any(scores.values()):
        yield _interquartile(found, scores)
        yield _profile(found, scores)
    ranks = across.mean_ranks(found)
    if ranks is not None:
        yield _ranks(found, ranks)


def _between(found: Mapping[str, Compared]) -> str:
    lines = across.lines_of(next(iter(found.values())))
    return f"0 is {lines.names[0]}, 1 is {lines.names[1]}" if lines else ""


def _left_out(found: Mapping[str, Compared], shown: Sequence[str]) -> str:
    """Says which methods lack a seed or a setting, so that their mean would be over other runs than the others'."""
    there = dict.fromkeys(g.label for c in found.values() for g in c.study.groups if g.style != "kr" and g.label not in shown)
    return f" Without {listed(list(there))}, which lack{'s' * (len(there) == 1)} a run." if there else ""


def _interquartile(found: Mapping[str, Compared], scores: Mapping[str, Mapping[str, across.Scores]]) -> Figure:
    means = across.interquartile_means(scores)
    ordered = sorted(means, key=lambda label: -means[label].mean)
    rows: list[Point] = []
    for label in ordered:
        group, mean = group_of(found, label), means[label]
        if group is not None:
            rows.append(Point(group.key, group.style, label, mean.mean, (mean.low, mean.high), f"{label}: {mean.mean:.3f}"))
    overlap = len(rows) > 1 and means[ordered[1]].high >= means[ordered[0]].low
    title = f"{ordered[0]} has the highest interquartile mean{'; the intervals overlap' if overlap else ''}"
    caption = (
        f"Mean of the middle half of all runs, scores measured within their setting: {_between(found)}. "
        f"Bar: 95 % bootstrap over seeds within settings.{_left_out(found, ordered)}"
    )
    label = f"{title}. The numbers are in the table under the chart."
    wide, narrow = (points(rows, "normalised score", size, label) for size in (WIDE, NARROW))
    cells = [[x, f"{means[x].mean:.3f}", f"{means[x].low:.3f} to {means[x].high:.3f}"] for x in ordered]
    grid = Grid(["method", "interquartile mean", "95 % interval"], cells, keys=[row.key for row in rows])
    return Figure(title, caption, wide, narrow, data=grid)


def _profile(found: Mapping[str, Compared], scores: Mapping[str, Mapping[str, across.Scores]]) -> Figure:
    lines: list[Line] = []
    for label, shares in across.profile(scores).items():
        group = group_of(found, label)
        if group is not None:
            lines.append(Line(group.key, group.style, label, [(tau, 100 * share) for tau, share in shares]))
    frame = Frame(
        "normalised score",
        "runs above it, %",
        lambda x: f"above {x:.2f}",
        lambda y: f"{y:.0f}",
        rounds=False,
        floor=0.0,
        ceiling=100.0,
    )
    caption = f"Share of all runs above a score, scores measured within their setting: {_between(found)}. Higher is better."
    caption += _left_out(found, [line.label for line in lines])
    return curves.figure_of("Performance profile", caption, lines, frame)


def _ranks(found: Mapping[str, Compared], ranks: across.Ranks) -> Figure:
    rows: list[Point] = []
    for label, mean in ranks.mean.items():
        group = group_of(found, label)
        if group is not None:
            rows.append(Point(group.key, group.style, label, mean, None, f"{label}: mean rank {mean:.2f}"))
    places = {label: i for i, label in enumerate(ranks.mean)}
    joins = [(places[clique[0]], places[clique[-1]]) for clique in ranks.cliques]
    title = _ranks_title(ranks)
    caption = (
        f"Mean rank over {ranks.settings} settings, 1 the best. Methods on one bar are not separated: Wilcoxon’s signed ranks, "
        "Holm’s correction, 5 % together. A setting counts once, whatever its seeds."
        f"{_left_out(found, list(ranks.mean))}"
    )
    label = f"{title}. The numbers are in the table under the chart."
    wide, narrow = (points(rows, "mean rank", size, label, joins) for size in (WIDE, NARROW))
    grid = Grid(["method", "mean rank"], [[x, f"{mean:.2f}"] for x, mean in ranks.mean.items()], keys=[row.key for row in rows])
    return Figure(title, caption, wide, narrow, data=grid)


def _ranks_title(ranks: across.Ranks) -> str:
    best = next(iter(ranks.mean))
    level: Sequence[str] = next((clique for clique in ranks.cliques if best in clique), [best])
    others = [label for label in level if label != best]
    if not others:
        return f"{best} has the best mean rank"
    if len(level) == len(ranks.mean):
        return f"{ranks.settings} settings part no method from {best} by rank"
    return f"{best} has the best mean rank; {listed(others)} {'is' if len(others) == 1 else 'are'} not separated"
