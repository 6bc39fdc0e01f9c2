"""Draws one point a method on a shared axis: interquartile means with their intervals, and mean ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fedelta.report.drawing.lines import Size
from fedelta.report.drawing.svg import Axis, marker, nice_ticks, path, picture, shortened, tag, tick_text

STEP = 30
"""Pixels of a row."""

BAR_STEP = 7
"""Pixels between two bars beside the rows."""


@dataclass(frozen=True)
class Point:
    """A row.

    Attributes:
        key, style, label: of the method.
        value: on the axis.
        bounds: of its interval; None for none.
        text: of the value, for a pointer.
    """

    key: str
    style: str
    label: str
    value: float
    bounds: tuple[float, float] | None
    text: str


def points(rows: Sequence[Point], axis_text: str, size: Size, label: str, joins: Sequence[tuple[int, int]] = ()) -> Markup:
    """Draws the rows from the top.

    Args:
        rows: at least one.
        axis_text: names the axis.
        size: its width counts; the height is that of the rows.
        label: says what it is, for a screen reader.
        joins: first and last row of each bar at the right, which holds rows together that are not separated.
    """
    left = min(130.0, size.width * 0.3)
    values = [x for row in rows for x in (row.value, *(row.bounds or ()))]
    ticks = nice_ticks(min(values), max(values))
    axis = Axis(ticks[0], ticks[-1], left, size.width - 20.0 - BAR_STEP * len(joins), ticks)
    bottom = STEP * len(rows) + 6
    parts = [tag("path", class_="grid", d=path([(axis.at(t), 4), (axis.at(t), bottom)])) for t in ticks]
    parts += [tag("text", tick_text(t, ticks), class_="m", x=axis.at(t), y=bottom + 14) for t in ticks]
    parts.append(tag("text", axis_text, class_="m", x=(axis.start + axis.end) / 2, y=bottom + 30))
    parts += [_row(row, axis, STEP * i + 20.0, left) for i, row in enumerate(rows)]
    for k, (first, last) in enumerate(joins):
        x = axis.end + 12.0 + BAR_STEP * k
        ends = [(x, STEP * first + 12.0), (x, STEP * last + 28.0)]
        parts.append(tag("path", tag("title", "not separated"), class_="join", d=path(ends)))
    return picture(size.width, bottom + 36, label, *parts)


def _row(row: Point, axis: Axis, middle: float, left: float) -> Markup:
    name = shortened(row.label, int(left / 7.4))
    parts = [tag("text", name, tag("title", row.label), class_="dl e", x=left - 10, y=middle + 4)]
    if row.bounds is not None:
        low, high = (axis.at(x) for x in row.bounds)
        parts.append(tag("path", class_="ci", d=path([(low, middle), (high, middle)])))
    parts.append(marker(row.style, axis.at(row.value), middle, title=row.text))
    return tag("g", *parts, class_=row.style, data_m=row.key)
