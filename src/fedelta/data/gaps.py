"""Rows whose label is missing: refused, left out, or kept."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:  # a config needs `Empty` before anything needs numpy
    from fedelta.data.rows import Row

Empty: TypeAlias = Literal["error", "drop", "keep"]
"""Treatment of rows whose label is empty: refused, left out, or kept, a blank text being a class like any other."""


def is_empty(value: object) -> bool:
    """Returns True if a field's value says nothing: null, blank text, or not a number."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def without_empty(rows: list[Row], field: str | None, empty: Empty, where: str) -> list[Row]:
    """Returns the rows whose label is not empty, or all rows to be kept.

    Args:
        rows: raw rows; those that lack the field altogether stay, and are refused where they are encoded.
        field: the one with the label; None where the task has none.
        empty: what is done with the others.
        where: where the rows come from, for the message.

    Raises:
        ValueError: for an empty label under "error", or where no row has a label.
    """
    gaps = [i for i, row in enumerate(rows) if field is not None and field in row and is_empty(row[field])]
    if not gaps or empty == "keep":
        return rows
    found = f"{where}: {len(gaps)} of {len(rows)} rows have an empty {field!r}"
    if empty == "error":
        raise ValueError(
            f"{found}, the first of them row {gaps[0]}: fill it, or set data.empty to drop (leaves such rows out) or to keep "
            "(a blank text is a class of its own)"
        )
    if len(gaps) == len(rows):
        raise ValueError(f"{found}, so that dropping them leaves none: name the field with the label in the task")
    skipped = set(gaps)
    return [row for i, row in enumerate(rows) if i not in skipped]
