"""Rows: raw examples with fields by name, and reading a field with an error that names the row, the field and the remedy."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

Row = Mapping[str, Any]
"""One raw example: fields by name."""


def value_of(row: Row, index: int, field: str) -> Any:
    """A field's value.

    Raises:
        ValueError: the row has no such field, or nothing in it.
    """
    if field not in row:
        raise ValueError(
            f"row {index} has no field {field!r}; it has {', '.join(map(repr, row))}: name the right one in the task"
        )
    if row[field] is None:
        raise ValueError(f"row {index} has nothing in its field {field!r}: fill it or leave the row out")
    return row[field]


def text_of(row: Row, index: int, field: str) -> str:
    """A field's text.

    Raises:
        ValueError: the row has no such field, or its value is not text.
    """
    value = value_of(row, index, field)
    if not isinstance(value, str):
        raise ValueError(f"row {index}: field {field!r} holds {value!r} ({type(value).__name__}), but text is needed")
    return value


def require_rows(rows: Sequence[Row]) -> None:
    """Refuse an empty data set where it enters, rather than at the first batch."""
    if not len(rows):
        raise ValueError("no rows to encode: the data set is empty (a client that was given zero examples?)")


def labels_from(rows: Sequence[Row], field: str = "label") -> tuple[Hashable, ...]:
    """The different labels in a field, sorted, so that the order of rows does not matter.

    Numbers sort by value and come before texts.

    Raises:
        ValueError: there are no rows, or one lacks the field.
    """
    require_rows(rows)
    found = {value_of(row, index, field) for index, row in enumerate(rows)}
    return tuple(sorted(found, key=label_order))


def label_order(label: Hashable) -> tuple[int, Any]:
    """A sort key for labels of mixed types: numbers by value, all else by type and text."""
    if isinstance(label, (bool, int, float, np.integer, np.floating)):
        return (0, float(label))
    return (1, (type(label).__name__, str(label)))
