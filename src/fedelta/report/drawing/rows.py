"""Draws one row for each method or client: intervals of differences, dots of clients, bars of labels; and shares by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fedelta.report.drawing.lines import Size
from fedelta.report.drawing.svg import Axis, joined, marker, nice_ticks, path, picture, shortened, tag, tick_text

FOREST = Size(216, 30)
LEGIBLE_BARS = 30
"""Bars up to which each has its name; more of them are thin lines."""


@dataclass(frozen=True)
class ForestRow:
    """A row of the forest.

    Attributes:
        style: class of colour.
        mean: of the differences.
        bounds: of their interval; None for none.
        ticks: one for each seed.
    """

    style: str
    mean: float
    bounds: tuple[float, float] | None
    ticks: Sequence[float]


def forest_axis(intervals: Sequence[ForestRow], width: float = FOREST.width) -> Axis:
    """Returns the axis that all rows share: it holds zero and every seed, and cuts intervals that are far wider."""
    seeds = [0.0, *(x for row in intervals for x in (row.mean, *row.ticks))]
    reach = max(seeds) - min(seeds) or 1.0
    bounds = [x for row in intervals if row.bounds for x in row.bounds]
    low = max(min([*seeds, *bounds]), min(seeds) - 0.35 * reach)
    high = min(max([*seeds, *bounds]), max(seeds) + 0.35 * reach)
    ticks = [t for t in nice_ticks(low, high, 4) if low <= t <= high]
    return Axis(low, high, 10.0, width - 10.0, ticks)


def forest_head(axis: Axis) -> Markup:
    """Draws the ticks of the shared axis."""
    names = [tag("text", tick_text(t, axis.ticks), class_="m", x=axis.at(t), y=12) for t in axis.ticks]
    return picture(FOREST.width, 16, "axis of the differences", *names)


def forest_row(row: ForestRow, axis: Axis, label: str, references: Sequence[tuple[float, str]] = ()) -> Markup:
    """Draws a mean with its interval and one tick a seed; an arrow stands where the interval is cut.

    Args:
        row: the mean, its interval and the seeds.
        axis: that all rows share.
        label: says what it is, for a screen reader.
        references: differences of lines to compare with, and their names; those beyond the axis are left out.
    """
    middle = FOREST.height / 2
    parts = [tag("path", class_="zero", d=path([(axis.at(0.0), 0), (axis.at(0.0), FOREST.height)]))]
    for value, name in references:
        if axis.low <= value <= axis.high:
            rule = path([(axis.at(value), 0), (axis.at(value), FOREST.height)])
            parts.append(tag("path", tag("title", name), class_="ref", d=rule))
    if row.bounds:
        left, right = (axis.at(x) for x in row.bounds)
        parts.append(tag("path", class_="ci", d=path([(left, middle), (right, middle)])))
        if row.bounds[0] < axis.low:
            parts.append(
                tag("path", class_="arw", d=path([(left + 4, middle - 4), (left - 2, middle), (left + 4, middle + 4)]))
            )
        if row.bounds[1] > axis.high:
            parts.append(
                tag("path", class_="arw", d=path([(right - 4, middle - 4), (right + 2, middle), (right - 4, middle + 4)]))
            )
    parts += [tag("path", class_="seed", d=path([(axis.at(x), middle - 6), (axis.at(x), middle + 6)])) for x in row.ticks]
    parts.append(marker(row.style, axis.at(row.mean), middle))
    return picture(FOREST.width, FOREST.height, label, tag("g", *parts, class_=row.style))


@dataclass(frozen=True)
class Dots:
    """A row of the strip.

    Attributes:
        key, style, label: of the method.
        values: one for each client and seed, with what it is.
        mean: of them.
        worst: names the worst one.
    """

    key: str
    style: str
    label: str
    values: Sequence[tuple[float, str]]
    mean: float
    worst: str


def strip(rows: Sequence[Dots], axis_text: str, factor: float, size: Size, label: str) -> Markup:
    """Draws a dot for each client and seed, a bar at the mean, and the name of the worst."""
    step, left = 46, min(110.0, size.width * 0.28)
    everything = [value * factor for row in rows for value, _ in row.values]
    ticks = nice_ticks(min([0.0, *everything]), max(everything))
    axis = Axis(ticks[0], ticks[-1], left, size.width - 16.0, ticks)
    bottom = step * len(rows) + 6
    parts = [tag("path", class_="grid", d=path([(axis.at(t), 4), (axis.at(t), bottom)])) for t in ticks]
    parts += [tag("text", tick_text(t, ticks), class_="m", x=axis.at(t), y=bottom + 14) for t in ticks]
    parts.append(tag("text", axis_text, class_="m", x=(axis.start + axis.end) / 2, y=bottom + 30))
    for i, row in enumerate(rows):
        parts.append(_dots(row, axis, factor, step * i + 20, left))
    return picture(size.width, bottom + 36, label, *parts)


def _dots(row: Dots, axis: Axis, factor: float, middle: float, left: float) -> Markup:
    seen: dict[int, int] = {}
    parts = [
        tag("text", shortened(row.label, int(left / 7.4)), tag("title", row.label), class_="dl e", x=left - 10, y=middle + 4)
    ]
    for value, name in sorted(row.values):
        x = axis.at(value * factor)
        slot = round(x / 5)
        seen[slot] = seen.get(slot, 0) + 1
        # Dots that would lie upon each other go up and down in turn, at most as far as the row is high.
        offset = min(seen[slot] // 2, 3) * (4.0 if seen[slot] % 2 else -4.0)
        parts.append(tag("circle", tag("title", name), class_="pt", cx=x, cy=middle + offset, r=3))
    mean = axis.at(row.mean * factor)
    parts.append(tag("path", class_="mean", d=path([(mean, middle - 12), (mean, middle + 12)])))
    worst = min(max(axis.start, axis.end - len(row.worst) * 5.6), axis.end)
    parts.append(tag("text", row.worst, class_="wst", x=min(axis.start + 2, worst), y=middle + 22))
    return tag("g", *parts, class_=row.style, data_m=row.key)


@dataclass(frozen=True)
class Bar:
    """A client's bar: its name, and its rows by class of label colour."""

    name: str
    parts: Sequence[tuple[str, int, str]]

    @property
    def total(self) -> int:
        """Returns all rows of the client."""
        return sum(count for _, count, _ in self.parts)


def bars(clients: Sequence[Bar], size: Size, axis_text: str, label: str) -> Markup:
    """Draws a bar for each client, its length the rows, its colours the labels; above 30 sorted, thin, without names."""
    named = len(clients) <= LEGIBLE_BARS
    ordered = clients if named else sorted(clients, key=lambda bar: -bar.total)
    step, thick, left = (19.0, 14.0, 104.0) if named else (min(4.0, 560 / len(clients)), min(3.4, 480 / len(clients)), 12.0)
    ticks = nice_ticks(0, max(1, *(bar.total for bar in clients)), 4)
    axis = Axis(0, ticks[-1], left, size.width - 44.0, ticks)
    parts: list[Markup] = []
    for i, bar in enumerate(ordered):
        top, so_far = 4 + i * step, 0
        if named:
            parts.append(tag("text", shortened(bar.name, 17), class_="e", x=left - 8, y=top + 11))
            parts.append(tag("text", bar.total, x=axis.at(bar.total) + 6, y=top + 11))
        for style, count, name in bar.parts:
            start, end = axis.at(so_far), axis.at(so_far + count)
            title = [tag("title", name)] if named else []
            parts.append(tag("rect", *title, class_=style, x=start, y=top, width=max(end - start, 0.3), height=thick))
            so_far += count
    bottom = 8 + step * len(clients)
    parts += [tag("text", tick_text(t, ticks), class_="m", x=axis.at(t), y=bottom + 12) for t in ticks]
    parts.append(tag("text", axis_text, class_="m", x=(axis.start + axis.end) / 2, y=bottom + 28))
    return picture(size.width, int(bottom + 34), label, *parts)


def areas(shares: Sequence[tuple[int, Mapping[str, float]]], styles: Mapping[str, str], label: str) -> Markup:
    """Draws shares that sum to one over rounds, stacked from the first of `styles` up."""
    size, left, top, bottom = Size(248, 108), 34.0, 4.0, 88.0
    rounds = [t for t, _ in shares]
    x = Axis(rounds[0], rounds[-1], left, size.width - 2.0, [])
    y = Axis(0.0, 1.0, bottom, top, [0.0, 0.5, 1.0])
    floor = [0.0] * len(shares)
    parts: list[Markup] = []
    for name, style in styles.items():
        ceiling = [low + found.get(name, 0.0) for low, (_, found) in zip(floor, shares, strict=True)]
        upper = [(x.at(t), y.at(v)) for t, v in zip(rounds, ceiling, strict=True)]
        lower = [(x.at(t), y.at(v)) for t, v in zip(rounds, floor, strict=True)]
        parts.append(tag("path", tag("title", name), class_=style, d=path([*upper, *reversed(lower)], closed=True)))
        floor = ceiling
    parts += [tag("text", f"{v:.0%}", class_="e", x=left - 4, y=y.at(v) + 4) for v in y.ticks]
    parts.append(tag("text", f"round {rounds[0]}", x=left, y=bottom + 14))
    parts.append(tag("text", rounds[-1], class_="e", x=x.end, y=bottom + 14))
    return picture(size.width, size.height, label, joined(parts))
