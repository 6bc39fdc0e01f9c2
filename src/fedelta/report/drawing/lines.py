"""Draws lines over rounds or bytes: bands, end marks, direct labels that do not overlap, and the values under the pointer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from markupsafe import Markup

from fedelta.report.drawing.svg import (
    Axis,
    joined,
    log_ticks,
    marker,
    nice_ticks,
    path,
    picture,
    round_ticks,
    shortened,
    tag,
    tick_text,
)

MOST_HITS = 60
"""Places under the pointer of one chart; the data table has the others."""

MOST_TIP_LINES = 12
LABEL_STEP, LABEL_WIDTH = 14.5, 7.2
TICK_WIDTH = 6.4
TIP_STEP, TIP_WIDTH = 16.0, 6.4


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        key: of the series, by which a chip hides it; empty for a line that is never hidden.
        style: class of colour.
        label: at its end.
        points: (x, y), ascending in x.
        band: (x, low, high); empty for none.
    """

    key: str
    style: str
    label: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class Frame:
    """Holds what a chart of lines shows beside them.

    Attributes:
        x_label, y_label: names of the axes.
        x_text, y_text: write a value under the pointer.
        y_tick: writes a tick, given all of them.
        rounds: whether x counts rounds: ticks are whole, with the first and the last.
        logarithmic: whether y is.
        references: dashed lines at these y, with their names.
        floor: the lowest end of y that must be shown.
        ceiling: the highest end of y that may be shown.
        x_span, y_span: ends that must be shown, such that charts side by side share their axes.
    """

    x_label: str
    y_label: str
    x_text: Callable[[float], str]
    y_text: Callable[[float], str]
    y_tick: Callable[[float, Sequence[float]], str] = field(default=tick_text)
    rounds: bool = True
    logarithmic: bool = False
    references: Sequence[tuple[float, str]] = ()
    floor: float | None = None
    ceiling: float | None = None
    x_span: Sequence[float] = ()
    y_span: Sequence[float] = ()


@dataclass(frozen=True)
class Size:
    """The pixels of a drawing: it is drawn for its place and not scaled."""

    width: int
    height: int


WIDE, NARROW, THIRD = Size(560, 300), Size(330, 270), Size(344, 232)


def line_chart(lines: Sequence[Line], frame: Frame, size: Size, label: str) -> Markup:
    """Draws lines with at least one point among them."""
    lines = [line for line in lines if line.points]
    room = _label_room(lines, size)
    y = _y_axis(lines, frame, size.height - 38.0, 26.0)
    margin = 10 + TICK_WIDTH * max(len(frame.y_tick(value, y.ticks)) for value in y.ticks)
    x = _x_axis(lines, frame, max(margin, 30.0), size.width - room - 10.0)
    parts = [
        tag("text", frame.y_label, class_="yl", x=0, y=10),
        _grid(x, y, frame),
        tag("text", frame.x_label, class_="m", x=(x.start + x.end) / 2, y=size.height - 4),
        _references(frame, x, y),
        *(_band(line, x, y) for line in lines if line.band),
        *(_line(line, x, y) for line in lines),
        _labels(lines, x, y, room),
        _hits(lines, frame, x, y, size),
    ]
    return picture(size.width, size.height, label, *parts)


def _label_room(lines: Sequence[Line], size: Size) -> float:
    longest = max((len(line.label) for line in lines), default=0)
    return min(longest * LABEL_WIDTH + 22, size.width * 0.3)


def _x_axis(lines: Sequence[Line], frame: Frame, start: float, end: float) -> Axis:
    xs = [x for line in lines for x, _ in line.points] + list(frame.x_span)
    low, high = min(xs), max(xs)
    if frame.rounds:
        return Axis(low, high, start, end, round_ticks(int(low), int(high)))
    ticks = nice_ticks(min(low, 0.0), high)
    return Axis(min(low, 0.0), high, start, end, [t for t in ticks if min(low, 0.0) <= t <= high])


def _y_axis(lines: Sequence[Line], frame: Frame, start: float, end: float) -> Axis:
    values = [y for line in lines for _, y in line.points]
    values += [y for line in lines for _, low, high in line.band for y in (low, high)]
    if frame.logarithmic:
        positive = [y for y in values if y > 0]
        ticks = log_ticks(min(positive), max(positive))
        return Axis(ticks[0], ticks[-1], start, end, ticks, logarithmic=True)
    values += [y for y, _ in frame.references] + list(frame.y_span)
    low = min(values) if frame.floor is None else min(frame.floor, *values)
    ticks = nice_ticks(low, max(values))
    if frame.ceiling is not None:
        ticks = [t for t in ticks if t <= frame.ceiling + 1e-9] or ticks
    return Axis(ticks[0], max(ticks[-1], max(values)), start, end, ticks)


def _grid(x: Axis, y: Axis, frame: Frame) -> Markup:
    rules = [tag("path", class_="grid", d=path([(x.start, y.at(v)), (x.end, y.at(v))])) for v in y.ticks]
    names = [tag("text", frame.y_tick(v, y.ticks), class_="e", x=x.start - 6, y=y.at(v) + 4) for v in y.ticks]
    below = [tag("text", tick_text(v, x.ticks), class_="m", x=x.at(v), y=y.start + 16) for v in x.ticks]
    return joined([*rules, *names, *below])


def _references(frame: Frame, x: Axis, y: Axis) -> Markup:
    """Draws the dashed lines; the names of two that lie close are above and below."""
    parts: list[Markup] = []
    ordered = sorted(frame.references)
    for k, (value, name) in enumerate(ordered):
        close = k + 1 < len(ordered) and y.at(value) - y.at(ordered[k + 1][0]) < LABEL_STEP
        parts.append(tag("path", class_="ref", d=path([(x.start, y.at(value)), (x.end, y.at(value))])))
        parts.append(tag("text", name, class_="e halo", x=x.end, y=y.at(value) + (12 if close else -4)))
    return joined(parts)


def _band(line: Line, x: Axis, y: Axis) -> Markup:
    upper = [(x.at(t), y.at(high)) for t, _, high in line.band]
    lower = [(x.at(t), y.at(low)) for t, low, _ in reversed(line.band)]
    area = tag("path", class_="band", d=path([*upper, *lower], closed=True))
    return tag("g", area, class_=line.style, data_m=line.key)


def _line(line: Line, x: Axis, y: Axis) -> Markup:
    points = [(x.at(t), y.at(v)) for t, v in line.points]
    parts = [tag("path", class_="ln", d=path(points))] if len(points) > 1 else []
    return tag("g", *parts, marker(line.style, *points[-1]), class_=line.style, data_m=line.key)


def _labels(lines: Sequence[Line], x: Axis, y: Axis, room: float) -> Markup:
    """Names the lines at their ends, moved apart where they would overlap."""
    wanted = [y.at(line.points[-1][1]) for line in lines]
    places = spread_apart(wanted, LABEL_STEP, y.end, y.start)
    most = max(3, int((room - 16) / LABEL_WIDTH))
    parts: list[Markup] = []
    for line, place in zip(lines, places, strict=True):
        last_x, last_y = x.at(line.points[-1][0]), y.at(line.points[-1][1])
        leader = tag("path", class_="ld", d=path([(last_x + 5, last_y), (x.end + 10, place)]))
        name = tag("text", shortened(line.label, most), tag("title", line.label), class_="dl", x=x.end + 14, y=place + 4)
        parts.append(tag("g", leader, name, class_=line.style, data_m=line.key))
    return joined(parts)


def spread_apart(wanted: Sequence[float], step: float, low: float, high: float) -> list[float]:
    """Returns places at least `step` apart and as close to those wanted as a pass down and a pass up bring them.

    Where there is not room for all between `low` and `high`, they are spaced evenly, closer than `step`.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    step = min(step, (high - low) / max(1, len(wanted) - 1))
    places = [min(max(wanted[i], low), high) for i in order]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + step)
    excess = places[-1] - high if places else 0.0
    if excess > 0:
        places[-1] = high
        for i in range(len(places) - 2, -1, -1):
            places[i] = min(places[i], places[i + 1] - step)
    found = dict(zip(order, places, strict=True))
    return [found[i] for i in range(len(wanted))]


# --- the values under the pointer ------------------------------------------------------------------------------------


def _hits(lines: Sequence[Line], frame: Frame, x: Axis, y: Axis, size: Size) -> Markup:
    """Puts a strip over each measured x, which shows its values while the pointer or the focus is there."""
    at: dict[float, list[tuple[float, Line]]] = {}
    for line in lines:
        for t, value in line.points:
            at.setdefault(t, []).append((value, line))
    xs = sorted(at)
    every = -(-len(xs) // MOST_HITS)
    xs = sorted({*xs[::every], xs[-1]})
    edges = [x.start, *((x.at(a) + x.at(b)) / 2 for a, b in pairwise(xs)), x.end]
    strips: list[Markup] = []
    for t, (left, right) in zip(xs, pairwise(edges), strict=True):
        zone = tag("rect", class_="hr", x=left, y=y.end, width=max(right - left, 1.0), height=y.start - y.end)
        cross = tag("path", class_="cross", d=path([(x.at(t), y.end), (x.at(t), y.start)]))
        tip = _tip(frame.x_text(t), at[t], frame.y_text, x.at(t), size)
        strips.append(tag("g", zone, tag("g", cross, tip, class_="tip"), class_="hit", tabindex=0))
    return joined(strips)


def _tip(head: str, values: Sequence[tuple[float, Line]], text: Callable[[float], str], x: float, size: Size) -> Markup:
    ordered = sorted(values, key=lambda pair: -pair[0])
    shown = [(line, f"{shortened(line.label, 22)}  {text(value)}") for value, line in ordered[:MOST_TIP_LINES]]
    more = f"and {len(ordered) - len(shown)} more, in the table" if len(ordered) > len(shown) else ""
    longest = max(len(row) for row in (head, more, *(row for _, row in shown)))
    width = min(longest * TIP_WIDTH + 30, size.width - 8.0)
    height = TIP_STEP * (len(shown) + 1 + bool(more)) + 8
    # Beside the cross, on the side that has the room; never beyond the drawing, which the card cuts off.
    left = x + 10 if x + 10 + width <= size.width - 2 else max(2.0, x - 10 - width)
    parts = [tag("rect", class_="tb", x=left, y=20, width=width, height=height, rx=5)]
    parts.append(tag("text", head, class_="tp h", x=left + 10, y=20 + 15))
    for i, (line, row) in enumerate(shown, start=1):
        middle = 20 + 15 + i * TIP_STEP
        mark = marker(line.style, left + 14, middle - 4)
        parts.append(tag("g", mark, tag("text", row, class_="tp", x=left + 24, y=middle), class_=line.style, data_m=line.key))
    if more:
        parts.append(tag("text", more, class_="tp h", x=left + 10, y=20 + 15 + (len(shown) + 1) * TIP_STEP))
    return joined(parts)


def data_rows(lines: Sequence[Line]) -> tuple[list[float], Mapping[str, Mapping[float, float]]]:
    """Returns all x of a chart, and the points of each line by its label: what the table under it lists."""
    xs = sorted({x for line in lines for x, _ in line.points})
    return xs, {line.label: dict(line.points) for line in lines}
