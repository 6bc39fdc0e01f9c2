"""Shows a split of the rows: each client's share, or of many clients what they have by rank and who differs most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from fedelta.report.tables import NARROWEST, plain_table
from fedelta.report.words import number

MOST_CLIENTS = 40
"""Clients that have a line each; of more, those of a rank have one together."""

FARTHEST = 10
"""Clients that have a line of their own all the same: those whose labels are farthest from all."""

MOST_RANKS = 12
"""Ranks that have a line each; of more, all clients have one."""

Row = Mapping[str, Any]


def split_table(rows: Sequence[Row]) -> RenderableType:
    """Lists each client's share.

    Args:
        rows: of `fedelta.split.view.partition_table`, with "rank" and perhaps "name" and "feature_shift".
    """
    if len(rows) <= MOST_CLIENTS:
        return _by_client("Split of the training rows", rows)
    farthest = sorted(rows, key=lambda row: -(row["distance"] or 0.0))[:FARTHEST]
    return Group(_by_rank(rows), Text(""), _by_client(f"The {FARTHEST} farthest of {len(rows)} clients", farthest))


def _by_client(title: str, rows: Sequence[Row]) -> Table:
    shifted = any("feature_shift" in row for row in rows)
    table = plain_table(title, ["client", "rank", "examples", "distance", *(["shift"] if shifted else [])], [])
    table.add_column("commonest labels")
    for row in rows:
        shift = [str(row.get("feature_shift", ""))] if shifted else []
        table.add_row(*map(Text, [*_line(row), *shift]), _Cropped(_commonest(row)))
    table.caption = "distance: total variation from the labels of all clients together"
    table.caption += "; shift: what was done to a client's images, synthetic" if shifted else ""
    return table


def _line(row: Row) -> list[str]:
    return [str(row.get("name", row["client"])), str(row["rank"]), str(row["examples"]), number(row["distance"], 2)]


class _Cropped:
    """A text that is cut off where its column is too narrow, before any other column gives way."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.text, no_wrap=True, overflow="ellipsis")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(len(self.text), NARROWEST), len(self.text))


def _by_rank(rows: Sequence[Row]) -> Table:
    """Returns a line for each rank, and one for all where there are several."""
    ranks = sorted({row["rank"] for row in rows})
    groups = {str(rank): [row for row in rows if row["rank"] == rank] for rank in ranks} if len(ranks) <= MOST_RANKS else {}
    if len(groups) != 1:
        groups["all"] = list(rows)
    lines: list[list[str]] = []
    for rank, held in groups.items():
        lines.append([rank, str(len(held)), *_spread(held, "examples", 0), *_spread(held, "distance", 2)])
    columns = ["rank", "clients", "fewest\nexamples", "\nmedian", "\nmost", "least\ndistance", "\nmedian", "\nmost"]
    return plain_table(f"Split of the training rows over {len(rows)} clients, by rank", columns, lines)


def _spread(rows: Sequence[Row], key: str, digits: int) -> list[str]:
    """Returns the smallest value, the median and the largest; dashes where no client has one."""
    values = sorted(row[key] for row in rows if row[key] is not None)
    if not values:
        return ["–"] * 3
    return [number(value, digits) for value in (values[0], values[len(values) // 2], values[-1])]


def _commonest(row: Row, count: int = 3) -> str:
    held = sorted(((n, label) for label, n in row["labels"].items() if n), key=lambda x: -x[0])
    shown = [f"{label} {n / row['examples']:.0%}" for n, label in held[:count]]
    return ", ".join(shown + (["…"] if len(held) > count else []))
