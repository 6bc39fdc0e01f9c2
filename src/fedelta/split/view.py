"""Shows a split of the data as a table and as a picture."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedelta.data.rows import label_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Part = np.ndarray
"""The positions of one client's examples: int64, increasing."""

PLOTS_EXTRA = "pip install 'fedelta[plots]'"
MOST_BARS = 10
"""With more labels than this the picture is a field of shades: so many colours cannot be told apart."""


def label_counts(parts: Sequence[Part], labels: Sequence[Hashable]) -> tuple[list[Hashable], np.ndarray]:
    """Returns the labels in order, and how many of each a client has: (clients, labels) int."""
    known = sorted(set(labels), key=label_order)
    place = {label: i for i, label in enumerate(known)}
    index = np.array([place[label] for label in labels], dtype=np.int64)
    return known, np.array([np.bincount(index[part], minlength=len(known)) for part in parts])


def partition_table(parts: Sequence[Part], labels: Sequence[Hashable]) -> list[dict[str, Any]]:
    """Makes a table of the clients' examples.

    Args:
        parts: positions of each client's examples.
        labels: the label of every example.

    Returns:
        For each client `client` (its number), `examples`, `labels` (label -> count, all labels, sorted), `top_share` (the
        share of its commonest label) and `distance` (total variation from the labels of all clients together, 0 to 1).
        The last two are None for a client without examples.
    """
    known, counts = label_counts(parts, labels)
    overall = counts.sum(axis=0) / max(counts.sum(), 1)
    held = [dict(zip(known, map(int, row), strict=True)) for row in counts]
    return [_line(client, own, overall) for client, own in enumerate(held)]


def _line(client: int, held: dict[Hashable, int], overall: np.ndarray) -> dict[str, Any]:
    counts = np.array(list(held.values()))
    total = int(counts.sum())
    line: dict[str, Any] = {"client": client, "examples": total, "labels": held, "top_share": None, "distance": None}
    if total:
        line["top_share"] = float(counts.max() / total)
        line["distance"] = float(np.abs(counts / total - overall).sum() / 2)
    return line


def plot_partition(parts: Sequence[Part], labels: Sequence[Hashable], path: str | Path, names: Sequence[str] = ()) -> None:
    """Draws who holds which labels: a bar for each client, or a field of shades where there are more than `MOST_BARS` labels.

    Args:
        parts: positions of each client's examples.
        labels: the label of every example.
        path: the file to write; its suffix says the format (.png, .svg, .pdf).
        names: of the clients; their numbers if not given.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"pictures are drawn by matplotlib: {PLOTS_EXTRA}") from error
    known, counts = label_counts(parts, labels)
    draw, low, high = (_bars, 3.2, 14) if len(known) <= MOST_BARS else (_heat, 4.8, 12)
    figure = Figure(figsize=(8.5, float(np.clip(1.6 + 0.32 * len(parts), low, high))), layout="constrained")
    axes = figure.subplots()
    draw(axes, [str(label) for label in known], counts)
    _label_clients(axes, names or [str(k) for k in range(len(parts))])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(f"{counts.sum():,} examples, {len(known)} labels, {len(parts)} clients", loc="left", fontsize=11)
    figure.savefig(path, dpi=150)


def _bars(axes: Axes, names: list[str], counts: np.ndarray) -> None:
    """Draws one horizontal bar a client, stacked by label."""
    from matplotlib import colormaps

    clients, left = np.arange(len(counts)), np.zeros(len(counts))
    for name, column, color in zip(names, counts.T, colormaps["tab10"].colors, strict=False):  # pyright: ignore[reportAttributeAccessIssue]
        axes.barh(clients, column, left=left, color=color, label=name, height=0.78, edgecolor="white", linewidth=0.6)
        left += column
    axes.set_xlabel("examples")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9, title="label")


def _heat(axes: Axes, names: list[str], counts: np.ndarray) -> None:
    """Draws a field of clients by labels; the darker, the more examples, and white is none."""
    from matplotlib.colors import PowerNorm

    shades = axes.imshow(counts, aspect="auto", cmap="Blues", norm=PowerNorm(0.5, vmin=0), interpolation="nearest")
    bar = axes.figure.colorbar(shades, ax=axes, label="examples", shrink=0.9, pad=0.02)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue] - a spine, not a patch, in matplotlib's stubs
    shown = np.arange(0, len(names), -(-len(names) // 40))
    axes.set_xticks(shown, [shortened(names[i]) for i in shown], rotation=90, fontsize=8)
    axes.set_xlabel("label")
    axes.tick_params(length=0)


def shortened(name: str, longest: int = 22) -> str:
    """Returns a name, cut to fit under a picture."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _label_clients(axes: Axes, names: Sequence[str]) -> None:
    """Names the clients, client 0 on top; where there are many, not every one."""
    shown = np.arange(0, len(names), -(-len(names) // 45))
    # a dollar sign begins mathematics in matplotlib
    axes.set_yticks(shown, [shortened(names[int(i)]).replace("$", r"\$") for i in shown])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_ylabel("client")
    axes.tick_params(axis="y", length=0)
