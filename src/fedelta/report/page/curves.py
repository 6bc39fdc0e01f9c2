"""Figures of lines: scores, losses, bytes, what happens to the update, whether nodes agree. Titles say what was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from fedelta.report import readings
from fedelta.report.compared import Compared, competitors, mean_total, unit_for
from fedelta.report.drawing.lines import NARROW, THIRD, WIDE, Frame, Line, data_rows, line_chart
from fedelta.report.numerals import DASH, Measure
from fedelta.report.page.parts import Figure, Grid
from fedelta.report.readings import Number, Point
from fedelta.report.study import Group, Study

LEVEL_WITHIN = 0.03
"""A difference of shares below which two methods are called level at the same bytes."""


def lines_of(study: Study, number: Number, *, banded: bool = True, factor: Callable[[float], float] = float) -> list[Line]:
    """Returns a line for each group: the mean over seeds by round, from 1, with a band where there are several seeds."""
    lines: list[Line] = []
    for group in study.groups:
        points = readings.series(readings.runs_of(study, group), number)
        several = banded and len(group.runs) > 1
        band = [(p.t + 1.0, factor(p.low), factor(p.high)) for p in points] if several else []
        lines.append(Line(group.key, group.style, group.label, [(p.t + 1.0, factor(p.mean)) for p in points], band))
    return [line for line in lines if line.points]


def seeds_text(study: Study, *, banded: bool = True) -> str:
    """Says what a line and its band are, for a caption; nothing for one seed."""
    counts = {len(readings.runs_of(study, group)) for group in study.groups}
    if counts == {1}:
        return ""
    line = (
        f"Line: mean of {max(counts)} seeds" if len(counts) == 1 else f"Line: mean of the seeds, {min(counts)} to {max(counts)}"
    )
    if not banded:
        return f"{line}."
    return f"{line}; band: {'their range' if max(counts) < readings.FEWEST_FOR_T else '95 % t-interval'}."


def figure_of(title: str, caption: str, lines: Sequence[Line], frame: Frame, *, small: bool = False) -> Figure:
    """Draws lines in the sizes that they are shown in, with their table."""
    label = f"{title}. The numbers are in the table under the chart."
    wide = line_chart(lines, frame, THIRD if small else WIDE, label)
    return Figure(
        title,
        caption,
        wide,
        line_chart(lines, frame, NARROW, label),
        data=_grid(lines, frame),
        columns=[line.key for line in lines],
    )


def _grid(lines: Sequence[Line], frame: Frame) -> Grid:
    xs, columns = data_rows(lines)
    rows = [[frame.x_text(x), *(_cell(column, x, frame) for column in columns.values())] for x in xs]
    return Grid([frame.x_label, *columns], rows)


def _cell(column: Mapping[float, float], x: float, frame: Frame) -> str:
    return frame.y_text(column[x]) if x in column else DASH


def round_text(x: float) -> str:
    """Writes a round."""
    return f"round {x:.0f}"


# --- how did they get there ------------------------------------------------------------------------------------------


def scores(c: Compared) -> Figure | None:
    """Draws the score by round; of one run test and validation."""
    study, m = c.study, c.measure
    if study.part is None or study.metric is None:
        return None
    lines = _of_parts(c) if study.one_run else lines_of(study, readings.at(study.part, study.metric))
    if not lines:
        return None
    name = f"{study.part} {m.name}".capitalize() if not study.one_run else m.name.capitalize()
    scaled = [_scaled(line, m.factor) for line in lines]
    frame = Frame(
        "round",
        _with_unit(name.lower(), m.unit),
        round_text,
        lambda y: m.text(y / m.factor),
        references=references(c),
        floor=0.0 if m.factor != 1 else None,
        ceiling=100.0 if m.factor != 1 else None,
    )
    caption = f"{_with_unit(name, m.unit)}, after each evaluated round. {seeds_text(study)}".strip()
    return figure_of(_score_title(c), caption, scaled, frame)


def references(c: Compared) -> list[tuple[float, str]]:
    """Returns what scores are seen against, in the page's unit: the commonest label, the untrained model, known lines."""
    m = c.measure
    majority = c.study.groups[0].first.facts.get("majority") if m.metric == "accuracy" else None
    found = [(majority, "commonest label"), (c.untrained, "untrained"), *_known_lines(c)]
    return [(value * m.factor, name) for value, name in found if value is not None and value > 0]


def _known_lines(c: Compared) -> list[tuple[float, str]]:
    """Returns the scores of lines to compare with that came with the config of the one run."""
    if not c.study.one_run:
        return []
    return [(value, name) for name, value in c.study.runs[0].lines(str(c.study.part), str(c.study.metric)).items()]


def _of_parts(c: Compared) -> list[Line]:
    """Returns the lines of one run: test and validation."""
    run, metric = c.study.runs[0], str(c.study.metric)
    found = [(part, f"k{i}", run.scores(part, metric)) for i, part in enumerate(("test", "validation"))]
    return [
        Line(f"p-{part}", style, part, [(t + 1.0, x) for t, x in values.items()]) for part, style, values in found if values
    ]


def _scaled(line: Line, factor: float) -> Line:
    points = [(x, y * factor) for x, y in line.points]
    return Line(line.key, line.style, line.label, points, [(x, low * factor, high * factor) for x, low, high in line.band])


def _with_unit(name: str, unit: str) -> str:
    return f"{name}, {unit}" if unit else name


def _score_title(c: Compared) -> str:
    study, m = c.study, c.measure
    found = {
        g.key: readings.series(readings.runs_of(study, g), readings.at(str(study.part), str(study.metric)))
        for g in study.groups
    }
    scored = competitors([g for g in study.groups if found[g.key]])
    curves = {g.key: found[g.key] for g in scored}
    if len(curves) < 2:
        points = next(iter(curves.values()))
        return f"From {m.with_unit(points[0].mean)} to {m.with_unit(points[-1].mean)}"
    sign = -1 if m.lower_is_better else 1
    leader = max(curves, key=lambda key: sign * curves[key][-1].mean)
    direction = "lowest" if m.lower_is_better else "highest"
    label = c.group(leader).label
    since = _leads_since(curves, leader, sign)
    if since is not None and since < curves[leader][-1].t:
        return f"{label} leads from round {since + 1} on"
    return f"{label} ends {direction}{'; the seeds’ bands overlap' if c.seeds > 1 and _overlap(curves, leader) else ''}"


def _leads_since(curves: Mapping[str, Sequence[Point]], leader: str, sign: int) -> int | None:
    """Returns the round from which one curve's band lies beyond all others' to the end; None if it does not there."""
    others = {key: {p.t: p for p in points} for key, points in curves.items() if key != leader}
    since: int | None = None
    for mine in reversed([point for point in curves[leader] if all(point.t in points for points in others.values())]):
        if any(_touch(mine, points[mine.t], sign) for points in others.values()):
            break
        since = mine.t
    return since


def _touch(upper: Point, lower: Point, sign: int) -> bool:
    """Returns whether a band does not lie wholly beyond another; `sign` is -1 where small is better."""
    return upper.low <= lower.high if sign > 0 else upper.high >= lower.low


def _overlap(curves: Mapping[str, Sequence[Point]], leader: str) -> bool:
    top = curves[leader][-1]
    return any(points[-1].high >= top.low and points[-1].low <= top.high for key, points in curves.items() if key != leader)


def losses(c: Compared) -> Figure | None:
    """Draws the training loss by round."""
    lines = lines_of(c.study, readings.at("train_loss"))
    if not lines:
        return None
    methods = competitors(lines)
    lowest = min(methods, key=lambda line: line.points[-1][1])
    title = f"{lowest.label} ends with the lowest training loss" if len(methods) > 1 else "Training loss"
    frame = Frame("round", "training loss, nats", round_text, lambda y: f"{y:.3f}")
    caption = f"Training loss, nats, mean over the round’s clients. {seeds_text(c.study)}".strip()
    return figure_of(title, caption, lines, frame)


def against_bytes(c: Compared) -> Figure | None:
    """Draws the score against all that was sent so far."""
    study, m = c.study, c.measure
    if study.part is None or study.metric is None:
        return None
    factor, unit = unit_for([mean_total(study, group) for group in study.groups])
    lines = [line for group in study.groups if (line := _by_bytes(study, group, m, factor)).points]
    lines = [line for line in lines if line.points[-1][0]]  # what sends nothing has no place on this axis
    if not lines:
        return None
    methods = competitors(lines)
    budget = min(line.points[-1][0] for line in methods)
    frame = Frame(
        f"sent so far, {unit}",
        _with_unit(f"{study.part} {m.name}", m.unit),
        lambda x: f"{x:.1f} {unit}",
        lambda y: m.text(y / m.factor),
        rounds=False,
        floor=0.0 if m.factor != 1 else None,
        ceiling=100.0 if m.factor != 1 else None,
    )
    what = _with_unit(f"{study.part} {m.name}".capitalize(), m.unit)
    caption = f"{what}, against everything sent so far, both ways, {unit} on the wire"
    tail = "; mean of the seeds." if c.seeds > 1 else "."
    tail += " The budget is the least that a method sends in all." if len(methods) > 1 else ""
    return figure_of(_budget_title(methods, budget, m, unit), caption + tail, lines, frame)


def _by_bytes(study: Study, group: Group, m: Measure, factor: int) -> Line:
    runs = readings.runs_of(study, group)
    points = readings.series(runs, readings.at(str(study.part), str(study.metric)))
    sent = [readings.sent(run) for run in runs]
    pairs = [(fmean(s[p.t] for s in sent) / factor, p.mean * m.factor) for p in points]
    return Line(group.key, group.style, group.label, pairs)


def _budget_title(lines: Sequence[Line], budget: float, m: Measure, unit: str) -> str:
    if len(lines) < 2:
        return f"{lines[0].points[-1][0]:.1f} {unit} in all"
    within = {line.label: [y for x, y in line.points if x <= budget + 1e-9] for line in lines}
    reached = {label: values[-1] for label, values in within.items() if values}
    if len(reached) < 2:
        return f"Only {next(iter(reached))} is evaluated within {budget:.1f} {unit}" if reached else "Score against bytes"
    order = sorted(reached, key=lambda label: reached[label], reverse=not m.lower_is_better)
    near = abs(reached[order[0]] - reached[order[1]]) < LEVEL_WITHIN * m.factor
    words = f"{order[0]} and {order[1]} are level" if near else f"{order[0]} is ahead of {order[1]}"
    return f"Within {budget:.1f} {unit}, {words}"
