"""Rows: raw examples with fields by name, and reading a field with an error that names the row, the field and the remedy."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from fedelta.registry import listed

SEPARATORS = {";": "semicolons", "\t": "tabs", ",": "commas", "|": "bars"}
"""The characters that keep the columns of a table apart."""

Row = Mapping[str, Any]
"""One raw example: fields by name."""


def value_of(row: Row, index: int, field: str) -> Any:
    """Returns a field's value.

    Raises:
        ValueError: the row has no such field, or nothing in it.
    """
    if field not in row:
        raise ValueError(
            f"row {index} has no field {field!r}; it has {listed(row)}: "
            f"{joined(row, field) or 'name the right one in the task'}"
        )
    if row[field] is None:
        raise ValueError(f"row {index} has nothing in its field {field!r}: fill it or leave the row out")
    return row[field]


def joined(row: Row, field: str) -> str | None:
    """Says that a field stands within another, as in 'text;label', where a table mixes separators; None if it does not."""
    for name in row:
        for mark, words in SEPARATORS.items():
            if mark in name and field in (part.strip() for part in name.split(mark)):
                return f"{name!r} looks like columns kept apart by {words}: save the table with one separator alone"
    return None


def text_of(row: Row, index: int, field: str) -> str:
    """Returns a field's text.

    Raises:
        ValueError: the row has no such field, or its value is not text.
    """
    value = value_of(row, index, field)
    if not isinstance(value, str):
        raise ValueError(f"row {index}: field {field!r} holds {value!r} ({type(value).__name__}), but text is needed")
    return value


def require_rows(rows: Sequence[Row]) -> None:
    """Refuses an empty data set where it enters, rather than at the first batch."""
    if not len(rows):
        raise ValueError("no rows to encode: the data set is empty (a client that was given zero examples?)")


def labels_from(rows: Sequence[Row], field: str = "label") -> tuple[Hashable, ...]:
    """Returns the different labels in a field, sorted, so that the order of rows does not matter.

    Numbers sort by value and come before texts.

    Raises:
        ValueError: there are no rows, or one lacks the field.
    """
    require_rows(rows)
    return distinct((label_in(row, index, field) for index, row in enumerate(rows)), f"field {field!r}")


def label_in(row: Row, index: int, field: str) -> Hashable:
    """Returns a field's value as a label.

    Raises:
        ValueError: the row has no such field, or what is in it is a list, an object, or not a finite number.
    """
    value = value_of(row, index, field)
    if problem := unfit_label(value):
        raise ValueError(f"row {index}: field {field!r} holds {value!r}, {problem}")
    return value


def unfit_label(value: object) -> str | None:
    """Returns the reason why a value cannot be a label, or None if it can be one."""
    if not isinstance(value, Hashable):
        return f"a {type(value).__name__}, but a label is a text or a number"
    if isinstance(value, float) and not math.isfinite(value):
        return "but a label that is a number is a finite one"
    return None


def kind_of(label: Hashable) -> str:
    """Returns "true or false", "a whole number", "a fraction", or else the type's name: equal labels may differ in it."""
    if isinstance(label, bool | np.bool_):
        return "true or false"
    if isinstance(label, Integral):
        return "a whole number"
    return "a fraction" if isinstance(label, Real) else type(label).__name__


def distinct(labels: Iterable[Hashable], where: str) -> tuple[Hashable, ...]:
    """Returns the different labels, sorted by `label_order`.

    Raises:
        ValueError: for labels that are equal in Python and written differently, such as 1, 1.0 and true: as one class they
            would hide a mistake.
    """
    kinds: dict[Hashable, tuple[str, Hashable]] = {}
    for label in labels:
        kind, first = kinds.setdefault(label, (kind_of(label), label))
        if kind != kind_of(label):
            raise ValueError(
                f"{where} has the labels {first!r} ({kind}) and {label!r} ({kind_of(label)}), which are equal but written "
                "differently: write them alike if they are one class, or as texts if they are two"
            )
    return tuple(sorted(kinds, key=label_order))


def label_order(label: Hashable) -> tuple[int, Any]:
    """Returns a sort key for labels of mixed types: numbers by value, all else by type and text."""
    if isinstance(label, (bool, int, float, np.integer, np.floating)):
        return (0, float(label))
    return (1, (type(label).__name__, str(label)))
