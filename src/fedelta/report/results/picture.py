"""Draws the main figure of a comparison for a paper: the score by round beside the forest; with matplotlib, an extra."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Literal

from fedelta.report import readings
from fedelta.report.charts import PLOTS_EXTRA
from fedelta.report.compared import Compared
from fedelta.report.comparison import Comparison
from fedelta.report.drawing.rows import forest_axis
from fedelta.report.outcome import outcomes
from fedelta.report.standings import interval_of, standings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOUR = {
    "k0": "#0072b2",
    "k1": "#c04f00",
    "k2": "#007f5c",
    "k3": "#a8478a",
    "k4": "#8f6a00",
    "kr": "#4a5560",
    "kg": "#6a727b",
}
DASHES = {"k0": "-", "k1": (0, (5, 2)), "k2": (0, (1, 1.6)), "k3": (0, (6, 2, 1, 2)), "k4": (0, (3, 1.5)), "kr": ":", "kg": "-"}
MARKS = {"k0": "o", "k1": "s", "k2": "^", "k3": "D", "k4": "v", "kr": "P", "kg": "."}

MOST_SETTINGS = 6
"""Settings that one picture shows; more would be too small to read."""

NO_DATES = {"pdf": {"CreationDate": None}, "png": {"Software": None}}
"""Metadata, such that the same comparison gives the same bytes."""


def figure(comparison: Comparison, kind: Literal["pdf", "png"] = "pdf") -> bytes:
    """Returns the main figure: a row for each setting, at most six; the same comparison gives the same bytes.

    Raises:
        ImportError: without matplotlib, naming the extra.
        ValueError: where nothing was evaluated yet.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"the figure needs matplotlib: {PLOTS_EXTRA}") from error
    shown = {name: c for name, c in outcomes(comparison).items() if c.study.last is not None}
    if not shown:
        raise ValueError("there is nothing to draw yet: no run was evaluated")
    shown = dict(list(shown.items())[:MOST_SETTINGS])
    with rc_context({"pdf.fonttype": 42, "font.size": 9}):
        drawing = Figure(figsize=(8.4, 2.9 * len(shown)), layout="constrained")
        axes = drawing.subplots(len(shown), 2, squeeze=False, width_ratios=[1.25, 1])
        for (name, c), (left, right) in zip(shown.items(), axes, strict=True):
            _draw_scores(left, c, name)
            _draw_forest(right, c)
        written = io.BytesIO()
        drawing.savefig(written, format=kind, dpi=200, metadata=NO_DATES[kind])
    return written.getvalue()


def _draw_scores(axis: Axes, c: Compared, name: str) -> None:
    m = c.measure
    for group in c.study.groups:
        points = readings.series(readings.runs_of(c.study, group), readings.at(str(c.study.part), m.metric))
        rounds, colour = [p.t + 1 for p in points], COLOUR[group.style]
        (line,) = axis.plot(rounds, [p.mean * m.factor for p in points], color=colour, label=_plain(group.label))
        line.set(linestyle=DASHES[group.style], linewidth=0.8 if group.style == "kg" else 1.6)
        if len(group.runs) > 1 and group.style != "kg":
            low, high = [p.low * m.factor for p in points], [p.high * m.factor for p in points]
            axis.fill_between(rounds, low, high, color=colour, alpha=0.12, linewidth=0)
    if c.untrained is not None:
        axis.axhline(c.untrained * m.factor, color="0.5", linestyle=":", linewidth=0.8, label="untrained")
    axis.set_title(_plain(name), loc="left", fontsize=9)
    axis.set_xlabel("round")
    axis.set_ylabel(f"{c.study.part} {m.name}" + (f", {m.unit}" if m.unit else ""))
    axis.locator_params(axis="x", integer=True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=7)


def _draw_forest(axis: Axes, c: Compared) -> None:
    rows = [(s, row) for s in standings(c) if (row := interval_of(c, s)) is not None]
    axis.axvline(0, color="0.4", linestyle="--", linewidth=0.8)
    for place, (s, row) in enumerate(rows):
        colour = COLOUR[s.group.style]
        if row.bounds is not None:
            axis.plot(row.bounds, [place, place], color=colour, linewidth=2.2, alpha=0.45, solid_capstyle="butt")
        axis.plot(row.ticks, [place] * len(row.ticks), "|", color=colour, markersize=8)
        axis.plot([row.mean], [place], MARKS[s.group.style], color=colour, markersize=6)
    if rows:
        span = forest_axis([row for _, row in rows])
        margin = 0.03 * (span.high - span.low) or 1.0  # all differences may be zero
        axis.set_xlim(span.low - margin, span.high + margin)
    axis.set_yticks(range(len(rows)), [_plain(s.group.label) for s, _ in rows])
    axis.invert_yaxis()
    unit = f", {c.measure.difference_unit}" if c.measure.difference_unit else ""
    axis.set_xlabel(f"difference to {_plain(c.study.baseline.label)}{unit}; bar: 95 % interval")
    axis.spines[["top", "right", "left"]].set_visible(False)


def _plain(text: str) -> str:
    """Returns a text in which a dollar sign begins no formula."""
    return text.replace("$", r"\$")
