"""Puts numbers and rounds into words, and picks what of a record is shown first; needs nothing but plain Python.

A record is one line of a run's `rounds.jsonl`; `fedelta.runs.runner` says what is in it. Bytes are counted on the wire.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeAlias

Record: TypeAlias = Mapping[str, Any]

LINES = {"local_only": "each client alone", "centralised": "all rows in one place"}
"""Methods that are lines to compare with: who trains there, and on what."""


def size(count: float) -> str:
    """Writes a number of bytes for a reader: `512 B`, `3.4 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def folded(name: str, width: int) -> str:
    """Returns a layer's name in at most `width` characters: its parts go from the left, but for numbers and the last one.

    Names of one model begin alike. What tells them apart, the block's number and the weight, is what stays.
    """
    parts = name.split(".")
    for k, part in enumerate(parts[:-1]):
        if len(_joined(parts)) <= width:
            break
        if not part.isdigit():
            parts[k] = GAP
    text = _joined(parts)
    return text if len(text) <= width else f"{GAP}{text[len(text) - width + 1 :]}"[: max(width, 0)]


GAP = "…"
"""Stands for what is left out of a name."""


def _joined(parts: Sequence[str]) -> str:
    return re.sub(rf"\.?({GAP}\.?)+", GAP, ".".join(parts))


def percent(value: float | None) -> str:
    """Writes a share of one with a digit after the point, small ones as a power of ten; a dash where there is none.

    `numerals.share` has two significant digits in its place, for shares that are mostly small.
    """
    if value is None:
        return "–"
    return f"{value:.1%}" if value == 0 or value >= 5e-4 else f"{value:.0e}"


def number(value: float | None, digits: int = 4) -> str:
    """Writes a number, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def main_metric(records: Sequence[Record]) -> str | None:
    """Returns the metric to show first: accuracy if it is measured, else the first one; None if nothing was evaluated."""
    for record in records:
        for part in ("test", "validation"):
            if scores := record.get(part):
                return "accuracy" if "accuracy" in scores else next(iter(scores))
    return None


def total_bytes(records: Sequence[Record]) -> int:
    """Returns the bytes that all rounds sent, both ways."""
    return sum(record["bytes"]["down"] + record["bytes"]["up"] for record in records)


def round_line(record: Record, sent: int) -> str:
    """Writes one round in one line; `sent` is the bytes of all rounds so far."""
    parts = [f"round {record['t']:>3}", f"loss {number(record['train_loss'])}"]
    metric = main_metric([record])
    scored = [f"{part} {number(record[part][metric])}" for part in ("validation", "test") if record.get(part)]
    parts += [f"{metric}: {', '.join(scored)}"] if scored else []
    parts.append(size(sent))
    if record.get("dropped"):
        parts.append(f"left out: {', '.join(sorted(record['dropped'], key=int))}")
    return "  ".join(parts)


def majority(labels: Sequence[Hashable]) -> float | None:
    """Returns the share of the commonest label, which a constant answer scores; None if rows have no labels."""
    known = [label for label in labels if label is not None]
    return Counter(known).most_common(1)[0][1] / len(known) if known else None


INNER = ("train", "aggregate")
"""The times of a record that are parts of its `round`."""


def total_seconds(record: Record) -> float:
    """Returns the seconds that a record speaks of, each once."""
    return sum(value for name, value in record["seconds"].items() if name not in INNER)


def duration(seconds: float) -> str:
    """Writes a time for a reader: `42 s`, `3 min 20 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
