"""What a person reads: tables for the terminal, pictures of a run. Nothing here computes a result.

A record is one line of a run's `rounds.jsonl`; `fedelta.runs.runner` says what is in it. Bytes are counted on the wire.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedelta.tasks.metrics import is_better

logger = logging.getLogger(__name__)

Record: TypeAlias = Mapping[str, Any]

PLOTS_EXTRA = "pip install 'fedelta[plots]'"
# Okabe and Ito's colours, which stay apart for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
COLOUR_OF = {"test": COLOURS[0], "validation": COLOURS[1], "training": COLOURS[2], "down": COLOURS[0], "up": COLOURS[1]}

# The diagnostics of the panel of ranks: the mean of the clients' deltas is not yet what a server that truncates sends.
RANKS = {
    "effective_rank": ("effective rank, mean of the deltas", COLOURS[0], "-"),
    "server_effective_rank": ("effective rank, server's delta", COLOURS[0], "--"),
    "stable_rank": ("stable rank, mean of the deltas", COLOURS[1], "-"),
    "server_stable_rank": ("stable rank, server's delta", COLOURS[1], "--"),
}


# --- words -----------------------------------------------------------------------------------------------------------


def size(count: float) -> str:
    """A number of bytes for a reader: `512 B`, `3.4 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def number(value: float | None, digits: int = 4) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def main_metric(records: Sequence[Record]) -> str | None:
    """The metric to show first: accuracy where it is measured, else the first one; None where nothing was evaluated."""
    for record in records:
        for part in ("test", "validation"):
            if scores := record.get(part):
                return "accuracy" if "accuracy" in scores else next(iter(scores))
    return None


def total_bytes(records: Sequence[Record]) -> int:
    """What all rounds sent, both ways."""
    return sum(record["bytes"]["down"] + record["bytes"]["up"] for record in records)


def round_line(record: Record, sent: int) -> str:
    """One round in one line; `sent` is the bytes of all rounds so far."""
    parts = [f"round {record['t']:>3}", f"loss {number(record['train_loss'])}"]
    metric = main_metric([record])
    parts += [f"{part} {metric} {number(record[part][metric])}" for part in ("validation", "test") if record.get(part)]
    parts += [f"{len(record['cohort'])} clients", size(sent)]
    if record.get("dropped"):
        parts.append(f"left out: {', '.join(sorted(record['dropped'], key=int))}")
    return "  ".join(parts)


def majority(labels: Sequence[Hashable]) -> float | None:
    """The share of the commonest label: what a constant answer scores. None where rows have no labels."""
    known = [label for label in labels if label is not None]
    return Counter(known).most_common(1)[0][1] / len(known) if known else None


def best_round(records: Sequence[Record], metric: str) -> int | None:
    """The first round with the best value of a metric on validation data; None where it was not measured."""
    found = [(r["t"], r["validation"][metric]) for r in records if (r.get("validation") or {}).get(metric) is not None]
    best: tuple[int, float] | None = None
    for t, value in found:
        if best is None or is_better(value, best[1], metric):
            best = (t, value)
    return None if best is None else best[0]


# --- tables ----------------------------------------------------------------------------------------------------------


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> Table:
    """A table whose first `left` columns are text and whose others are figures."""
    table = Table(title=title, title_justify="left", caption_justify="left", header_style="bold", box=None, pad_edge=False)
    for k, column in enumerate(columns):
        table.add_column(column, justify="left" if k < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def split_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Who gets what: one line for each client, from `fedelta.split.view.partition_table`, with the client's "rank"."""
    lines = [
        [str(row["client"]), str(row["rank"]), str(row["examples"]), number(row["distance"], 2), _commonest(row)]
        for row in rows
    ]
    table = _table("Split of the training rows", ["client", "rank", "examples", "distance", "commonest labels"], lines)
    table.columns[-1].justify = "left"
    table.caption = "distance: total variation from the labels of all clients together"
    return table


def _commonest(row: Mapping[str, Any], count: int = 3) -> str:
    held = sorted(((n, label) for label, n in row["labels"].items() if n), key=lambda x: -x[0])
    shown = [f"{label} {n / row['examples']:.0%}" for n, label in held[:count]]
    return ", ".join(shown + (["…"] if len(held) > count else []))


def methods_table(methods: Sequence[Mapping[str, Any]]) -> Table:
    """What there is: name, source, ranks, and what travels."""
    rows = [(m["name"], m["paper"], "yes" if m["hetero_rank"] else "no", m["travels"]) for m in methods]
    return _table("Methods", ["name", "source", "unequal ranks", "what travels"], rows, left=4)


def laws_table(report: Mapping[str, Any]) -> Table:
    """Returns one subject's verdicts, law by law, from `fedelta.testing.Report.as_dict`."""
    rows = [(v["law"], v["outcome"], v["detail"] or v["statement"]) for v in report["verdicts"]]
    return _table(f"Laws of {report['subject']}", ["law", "", "why, or what it says"], rows, left=3)


def reports_table(reports: Mapping[str, Mapping[str, Any]]) -> Table:
    """Returns the verdicts of many methods or tasks in numbers; what is broken in words."""
    rows: list[tuple[str, ...]] = []
    for name, report in reports.items():
        found = [v["outcome"] for v in report["verdicts"]]
        broken = "; ".join(f"{v['law']}: {v['detail']}" for v in report["verdicts"] if v["outcome"] == "broken")
        counts = [str(found.count(outcome)) for outcome in ("kept", "exempt", "not asked", "broken")]
        rows.append((name, broken or "all kept", *counts, number(report["seconds"], 1)))
    return _table("Laws", ["name", "broken", "kept", "exempt", "not asked", "broken", "seconds"], rows, left=2)


def summary(records: Sequence[Record], *, majority: float | None, folder: Path, best: int | None = None) -> RenderableType:
    """How a run ended: the last metrics, the majority line, bytes, time, and where the files are.

    Args:
        records: of all rounds.
        majority: share of the commonest label on the test rows; None where a task has no labels.
        folder: the run's.
        best: the round that was best on validation data.
    """
    metric = main_metric(records)
    scored = [r for r in records if r.get("test") or r.get("validation")]
    rows: list[tuple[str, str]] = [("rounds", str(len(records)))]
    if scored:
        rows += _scores(scored[-1], str(metric))
    if majority is not None and metric == "accuracy":
        rows.append(("majority class", number(majority)))
    if best is not None:
        rows.append(("best round by validation", str(best)))
    rows += [("sent", size(total_bytes(records))), ("time", duration(sum(sum(r["seconds"].values()) for r in records)))]
    table = _table("Result", ["", ""], rows, left=1)
    table.show_header = False
    return Group(table, Text(f"\nadapters, log and picture: {folder}", style="dim"))


def _scores(last: Record, metric: str) -> list[tuple[str, str]]:
    rows = [(f"{part} {metric}", number(last[part][metric])) for part in ("test", "validation") if last.get(part)]
    if spread := last.get("clients", {}).get(metric):
        rows.append((f"clients' {metric}", f"mean {number(spread['mean'])}, worst {number(spread['worst'])}"))
    return rows


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def scores_table(name: str, scores: Mapping[str, float]) -> Table:
    """Metrics of one adapter, and the number of examples."""
    rows = [(metric, str(value) if metric == "examples" else number(value)) for metric, value in scores.items()]
    return _table(name, ["metric", "value"], rows)


def plan_table(plan: Mapping[str, Any]) -> Table:
    """What a run would cost; `fedelta.runs.plan.Plan.as_dict` says what the entries mean."""
    bytes_, memory = plan["bytes"], plan["memory"]
    rows = [
        ("clients (a cohort)", f"{plan['clients']} ({plan['cohort']})"),
        ("rounds", str(plan["rounds"])),
        ("optimiser steps, all clients and rounds", str(plan["steps"])),
        ("trained numbers of the largest client", f"{plan['trained']:,}"),
        *((f"{which}, {way}", size(bytes_[which][way])) for which in ("first round", "later round") for way in ("down", "up")),
        ("sent in all", size(bytes_["total"])),
        *((f"memory: {name}", size(value)) for name, value in memory.items()),
    ]
    table = _table("Plan, without training", ["", ""], rows)
    table.show_header = False
    table.caption = "activations are not in the memory figures: they depend on batch size and length"
    return table


def spectra_table(name: str, layers: Sequence[Mapping[str, Any]]) -> Table:
    """One adapter, layer by layer; from `fedelta.adapters.inspection.describe`."""
    rows = [
        (
            str(x["layer"]),
            str(x["rank"]),
            f"{x['scale']:g}",
            f"{x['norm']:.3g}",
            number(x["effective_rank"], 2),
            number(x["stable_rank"], 2),
            " ".join(f"{s:.3g}" for s in x["spectrum"][:4]) + (" …" if len(x["spectrum"]) > 4 else ""),
        )
        for x in layers
    ]
    return _table(name, ["layer", "rank", "scale", "‖dW‖", "effective rank", "stable rank", "largest singular values"], rows)


def overlap_table(pair: str, layers: Sequence[Mapping[str, Any]]) -> Table:
    """Two adapters, layer by layer; from `fedelta.adapters.inspection.compare`."""
    rows = [
        (
            str(x["layer"]),
            number(x["cosine"], 3),
            *(number(x[f][what], digits) for f in "AB" for what, digits in (("overlap", 3), ("smallest", 1), ("largest", 1))),
        )
        for x in layers
    ]
    columns = ["layer", "cosine", "A overlap", "min°", "max°", "B overlap", "min°", "max°"]
    table = _table(pair, columns, rows)
    table.caption = "overlap: mean squared cosine of the principal angles, 1 for one subspace inside the other"
    return table


# --- pictures --------------------------------------------------------------------------------------------------------


def curves(records: Sequence[Record], path: str | Path, *, title: str = "", majority: float | None = None) -> Path | None:
    """Draws a run: score with the clients' spread, loss, bytes, and where they were measured the ranks of deltas.

    Without matplotlib a warning says what to install, and None is returned.

    Args:
        records: of the rounds so far, at least one.
        path: of the picture, `.png` or another suffix that matplotlib knows.
        title: above all panels.
        majority: the share of the commonest label, drawn as a line.
    """
    panels: list[Callable[..., None]] = [partial(_draw_score, constant=majority), _draw_loss, _draw_bytes]
    panels += [_draw_rank] if _has_rank(records) else []

    def draw(axes: Sequence[Any]) -> None:
        for panel, axis in zip(panels, axes, strict=True):
            panel(axis, records)

    return _picture(path, title, len(panels), draw)


def comparison(runs: Mapping[str, Sequence[Record]], path: str | Path, *, title: str = "") -> Path | None:
    """Draws the test score of several runs, by name, against rounds and against bytes sent."""

    def draw(axes: Sequence[Any]) -> None:
        for colour, (name, records) in zip(COLOURS * len(runs), runs.items(), strict=False):
            metric = main_metric(records)
            ts, values = _points(records, "test", metric)
            sent = dict(zip([r["t"] for r in records], accumulate(total_bytes([r]) for r in records), strict=True))
            axes[0].plot(ts, values, color=colour, label=name)
            axes[1].plot([sent[t] / 2**20 for t in ts], values, color=colour, label=name)
        _name(axes[0], "round", "test score")
        _name(axes[1], "sent, MiB", "test score")

    return _picture(path, title, 2, draw)


def spectra(adapters: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path) -> Path | None:
    """Draws the singular values and the effective rank of every layer, by adapter; from `adapters.inspection.describe`."""

    def draw(axes: Sequence[Any]) -> None:
        for colour, (name, layers) in zip(COLOURS * len(adapters), adapters.items(), strict=False):
            for layer in layers:
                axes[0].plot(range(1, len(layer["spectrum"]) + 1), layer["spectrum"], color=colour, alpha=0.35, linewidth=1)
            axes[1].plot([layer["effective_rank"] for layer in layers], color=colour, label=name, marker="o", markersize=3)
        axes[0].set_yscale("log")
        _name(axes[0], "component", "singular value of dW")
        _name(axes[1], "layer", "effective rank of dW")
        axes[1].set_ylim(bottom=0)

    return _picture(path, "", 2, draw)


def _picture(path: str | Path, title: str, panels: int, draw: Callable[[Sequence[Any]], None]) -> Path | None:
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


def _points(records: Sequence[Record], part: str, metric: str | None) -> tuple[list[int], list[Any]]:
    found = [(r["t"], r[part][metric]) for r in records if (r.get(part) or {}).get(metric) is not None]
    return [t for t, _ in found], [value for _, value in found]


def _line(axis: Any, ts: Sequence[int], values: Sequence[float], name: str) -> None:
    if ts:
        axis.plot(ts, values, color=COLOUR_OF[name], label=name, marker="o" if len(ts) < 30 else None, markersize=3)


def _draw_score(axis: Any, records: Sequence[Record], constant: float | None = None) -> None:
    metric = main_metric(records)
    if constant is not None and metric == "accuracy":
        axis.axhline(constant, color="grey", linestyle=":", label="majority class")
    for part in ("test", "validation"):
        _line(axis, *_points(records, part, metric), part)
    spreads = [(r["t"], r["clients"][metric]) for r in records if metric in (r.get("clients") or {})]
    if spreads:
        ts = [t for t, _ in spreads]
        low, high = ([s["mean"] + sign * s["spread"] for _, s in spreads] for sign in (-1, 1))
        axis.fill_between(ts, low, high, color="grey", alpha=0.2, linewidth=0, label="clients: mean ± spread")
        axis.plot(ts, [s["worst"] for _, s in spreads], color="grey", linestyle="--", linewidth=1, label="worst client")
    _name(axis, "round", metric or "nothing was evaluated")


def _draw_loss(axis: Any, records: Sequence[Record]) -> None:
    trained = [(r["t"], r["train_loss"]) for r in records if r["train_loss"] is not None]
    _line(axis, [t for t, _ in trained], [loss for _, loss in trained], "training")
    for part in ("test", "validation"):
        _line(axis, *_points(records, part, "loss"), part)
    _name(axis, "round", "loss, nats")


def _draw_bytes(axis: Any, records: Sequence[Record]) -> None:
    for way, style in (("down", "-"), ("up", "--")):  # often equal: the dashes let the other line through
        sent = list(accumulate(r["bytes"][way] / 2**20 for r in records))
        axis.plot([r["t"] for r in records], sent, color=COLOUR_OF[way], linestyle=style, label=way)
    _name(axis, "round", "sent so far, MiB")
    axis.set_ylim(bottom=0)


def _draw_rank(axis: Any, records: Sequence[Record]) -> None:
    for name, (label, colour, style) in RANKS.items():
        ts, ranks = _points(records, "diagnostics", name)
        if ts:
            axis.plot(ts, ranks, color=colour, linestyle=style, label=label)
    _name(axis, "round", "rank of a delta, mean over layers")
    axis.set_ylim(bottom=0)


def _has_rank(records: Sequence[Record]) -> bool:
    return any((r.get("diagnostics") or {}).get(name) is not None for r in records for name in RANKS)


def _name(axis: Any, x: str, y: str) -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.xaxis.get_major_locator().set_params(integer=True)
    if axis.get_legend_handles_labels()[1]:
        axis.legend(frameon=False, fontsize=8)
