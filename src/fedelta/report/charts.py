"""Draws the curves of a run, and the spectra of adapters; with matplotlib, an extra."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedelta.report.words import Record, main_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)

PLOTS_EXTRA = "pip install 'fedelta[plots]'"
# Okabe and Ito's colours, which stay apart for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
COLOUR_OF = {"test": COLOURS[0], "validation": COLOURS[1], "training": COLOURS[2], "down": COLOURS[0], "up": COLOURS[1]}

# Both kinds of delta, since a server that truncates does not send the mean of the clients' deltas.
RANKS = {
    "effective_rank": ("effective rank, mean of the deltas", COLOURS[0], "-"),
    "server_effective_rank": ("effective rank, server's delta", COLOURS[0], "--"),
    "stable_rank": ("stable rank, mean of the deltas", COLOURS[1], "-"),
    "server_stable_rank": ("stable rank, server's delta", COLOURS[1], "--"),
}


def curves(records: Sequence[Record], path: str | Path, *, title: str = "", majority: float | None = None) -> Path | None:
    """Draws a run: score with the clients' spread, loss, bytes, and the ranks of deltas if they were measured.

    Returns None without matplotlib, with a warning that says what to install.

    Args:
        records: of the rounds so far, at least one.
        path: of the picture, `.png` or another suffix that matplotlib knows.
        title: above all panels.
        majority: the share of the commonest label, drawn as a line.
    """
    panels: list[Callable[..., None]] = [partial(_draw_score, constant=majority), _draw_loss, _draw_bytes]
    panels += [_draw_rank] if _has_rank(records) else []

    def draw(axes: Sequence[Axes]) -> None:
        for panel, axis in zip(panels, axes, strict=True):
            panel(axis, records)

    return _picture(path, title, len(panels), draw)


def spectra(adapters: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path) -> Path | None:
    """Draws the singular values and the effective rank of every layer, by adapter; from `adapters.inspection.describe`."""

    def draw(axes: Sequence[Axes]) -> None:
        for colour, (name, layers) in zip(COLOURS * len(adapters), adapters.items(), strict=False):
            for layer in layers:
                axes[0].plot(range(1, len(layer["spectrum"]) + 1), layer["spectrum"], color=colour, alpha=0.35, linewidth=1)
            axes[1].plot([layer["effective_rank"] for layer in layers], color=colour, label=name, marker="o", markersize=3)
        axes[0].set_yscale("log")
        _name(axes[0], "component", "singular value of dW")
        _name(axes[1], "layer", "effective rank of dW")
        axes[1].set_ylim(bottom=0)

    return _picture(path, "", 2, draw)


def _picture(path: str | Path, title: str, panels: int, draw: Callable[[Sequence[Axes]], None]) -> Path | None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("%s is not drawn, since matplotlib is missing: %s", path, PLOTS_EXTRA)
        return None
    rows, columns = (2, 2) if panels == 4 else (1, panels)
    figure = Figure(figsize=(4.6 * columns, 3.4 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    draw(axes)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
    return Path(path)


def _points(records: Sequence[Record], part: str, metric: str | None) -> tuple[list[int], list[float]]:
    found = [(r["t"], r[part][metric]) for r in records if (r.get(part) or {}).get(metric) is not None]
    return [t for t, _ in found], [value for _, value in found]


def _line(axis: Axes, ts: Sequence[int], values: Sequence[float], name: str) -> None:
    if ts:
        axis.plot(ts, values, color=COLOUR_OF[name], label=name, marker="o" if len(ts) < 30 else None, markersize=3)


def _draw_score(axis: Axes, records: Sequence[Record], constant: float | None = None) -> None:
    metric = main_metric(records)
    if constant is not None and metric == "accuracy":
        axis.axhline(constant, color="grey", linestyle=":", label="majority class")
    for part in ("test", "validation"):
        _line(axis, *_points(records, part, metric), part)
    spreads = [(r["t"], r["clients"][metric]) for r in records if metric in (r.get("clients") or {})]
    if spreads:
        ts = [t for t, _ in spreads]
        low = [s["mean"] - s["spread"] for _, s in spreads]
        high = [s["mean"] + s["spread"] for _, s in spreads]
        axis.fill_between(ts, low, high, color="grey", alpha=0.2, linewidth=0, label="clients: mean ± spread")
        axis.plot(ts, [s["worst"] for _, s in spreads], color="grey", linestyle="--", linewidth=1, label="worst client")
    _name(axis, "round", metric or "nothing was evaluated")


def _draw_loss(axis: Axes, records: Sequence[Record]) -> None:
    trained = [(r["t"], r["train_loss"]) for r in records if r["train_loss"] is not None]
    _line(axis, [t for t, _ in trained], [loss for _, loss in trained], "training")
    for part in ("test", "validation"):
        _line(axis, *_points(records, part, "loss"), part)
    _name(axis, "round", "loss, nats")


def _draw_bytes(axis: Axes, records: Sequence[Record]) -> None:
    # Both are often equal: through the dashes of one the other line is seen.
    for way, style in (("down", "-"), ("up", "--")):
        sent = list(accumulate(r["bytes"][way] / 2**20 for r in records))
        axis.plot([r["t"] for r in records], sent, color=COLOUR_OF[way], linestyle=style, label=way)
    _name(axis, "round", "sent so far, MiB")
    axis.set_ylim(bottom=0)


def _draw_rank(axis: Axes, records: Sequence[Record]) -> None:
    for name, (label, colour, style) in RANKS.items():
        ts, ranks = _points(records, "diagnostics", name)
        if ts:
            axis.plot(ts, ranks, color=colour, linestyle=style, label=label)
    _name(axis, "round", "rank of a delta, mean over layers")
    axis.set_ylim(bottom=0)


def _has_rank(records: Sequence[Record]) -> bool:
    return any(_points(records, "diagnostics", name)[0] for name in RANKS)


def _name(axis: Axes, x: str, y: str) -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.locator_params(axis="x", integer=True)
    if axis.get_legend_handles_labels()[1]:
        axis.legend(frameon=False, fontsize=8)
