"""Shows what `fedelta init` found in data files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

MOST = 12
"""Files, and columns, that are shown one by one."""


def files_table(sizes: Mapping[str, int], parts: Sequence[str], clients: bool) -> Table:
    """Lists the files by the name of their client or part, with their rows."""
    table = _table(["file", "rows", "for"], numbers=(1,))
    for name, size in list(sizes.items())[:MOST]:
        use = name if name in parts else "a client" if clients else "training"
        table.add_row(_cell(name, 40), f"{size:,}", use)
    if len(sizes) > MOST:
        rest = list(sizes.values())[MOST:]
        table.add_row(f"{len(rest)} more", f"{sum(rest):,}", "")
    return table


def columns_table(columns: Sequence[Mapping[str, Any]]) -> Table:
    """Lists columns: `name`, `kind`, `missing`, `different`, `words`, `example` and `use`, those in use first."""
    table = _table(["column", "used as", "kind", "empty", "different", "words", "example"], numbers=(3, 4, 5))
    table.expand = True
    for column in table.columns[1:]:
        column.no_wrap = True
    table.columns[-1].ratio, table.columns[-1].overflow = 1, "ellipsis"  # the example gets the room that the others leave
    ordered = sorted(columns, key=lambda column: not column["use"])
    for x in ordered[:MOST]:
        cells = [_cell(x["name"], 16), x["use"] or "–", x["kind"], f"{x['missing']:,}", x["different"], x["words"]]
        table.add_row(*cells, _cell(x["example"], 60))
    if len(columns) > MOST:
        table.add_row(f"{len(columns) - MOST:,} more", *[""] * 6)
    return table


def _table(columns: Sequence[str], numbers: Sequence[int]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for k, name in enumerate(columns):
        table.add_column(name, justify="right" if k in numbers else "left", overflow="fold")
    return table


def labels_line(counts: Mapping[Any, int], shown: int = 6) -> str:
    """Returns the shares of the commonest labels; `counts` begins with the commonest one."""
    total = sum(counts.values())
    parts = [f"{one_line(value, 24)} {count / total:.0%}" for value, count in list(counts.items())[:shown]]
    return ", ".join(parts) + (f", … ({len(counts)} in all)" if len(counts) > shown else "")


def one_line(value: object, longest: int) -> str:
    """Returns a value on one line, cut, without what a terminal would take for a command."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(value)[: 4 * longest])
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _cell(value: object, longest: int) -> str:
    return escape(one_line(value, longest))
