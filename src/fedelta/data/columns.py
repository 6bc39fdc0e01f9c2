"""Looks at rows column by column: what is in them, how much is missing, how long their texts are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from fedelta.data.gaps import is_empty
from fedelta.data.image_folder import ENDINGS as IMAGE_ENDINGS
from fedelta.data.rows import Row, unfit_label

Kind: TypeAlias = Literal[
    "text", "whole number", "number", "true or false", "list of texts", "chat", "image", "nothing", "other"
]
"""Contents of a column: of all its values that are not empty."""

MOST_COUNTED = 1000
"""Different values of a column up to which they are counted: more are no labels."""


@dataclass(frozen=True)
class Column:
    """Says what one field of all rows holds.

    Attributes:
        name: of the field.
        kind: of its values.
        missing: rows that lack it, or have nothing in it.
        example: its first value that is not empty; None if there is none.
        counts: how often each value occurs; empty where there are more than `MOST_COUNTED` different ones, or lists.
        lengths: words of each text; empty for other kinds.
    """

    name: str
    kind: Kind
    missing: int
    example: Any
    counts: Mapping[Hashable, int] = field(default_factory=dict[Hashable, int])
    lengths: Sequence[int] = ()

    def words(self, share: float) -> int:
        """Returns the number of words that a share of the texts does not exceed; 0 for other kinds."""
        return int(np.quantile(self.lengths, share, method="higher")) if len(self.lengths) else 0


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """Returns the columns of rows, in the order in which they first occur."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [_column(name, [row.get(name) for row in rows]) for name in names]


def _column(name: str, values: Sequence[Any]) -> Column:
    filled = [value for value in values if not is_empty(value)]
    kind = _kind(filled)
    lengths = [len(value.split()) for value in filled] if kind == "text" else []
    return Column(name, kind, len(values) - len(filled), filled[0] if filled else None, _counts(filled), lengths)


def _kind(filled: Sequence[Any]) -> Kind:
    kinds: set[Kind] = {_kind_of(value) for value in filled}
    if len(kinds) == 1:
        return next(iter(kinds))
    if kinds == {"number", "whole number"}:
        return "number"
    if kinds == {"image", "text"}:  # a sentence may end in the name of a file
        return "text"
    return "other" if kinds else "nothing"


def _kind_of(value: Any) -> Kind:
    if isinstance(value, str | Path):
        return "image" if Path(value).suffix.lower() in IMAGE_ENDINGS else "text"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "whole number" if float(value).is_integer() else "number"
    if isinstance(value, list) and value:
        if all(isinstance(part, str) for part in value):
            return "list of texts"
        if all(isinstance(part, Mapping) and {"role", "content"} <= part.keys() for part in value):
            return "chat"
    return "other"


def _counts(filled: Sequence[Any]) -> dict[Hashable, int]:
    found: Counter[Hashable] = Counter()
    for value in filled:
        if unfit_label(value):
            return {}
        found[value] += 1
        if len(found) > MOST_COUNTED:
            return {}
    return dict(found.most_common())


def is_numeric(column: Column) -> bool:
    """Returns True for numbers, also where they are written as text, as all values of a CSV file are."""
    if column.kind in ("whole number", "number"):
        return True
    return column.kind == "text" and bool(column.counts) and all(map(_reads_as_number, column.counts))


def _reads_as_number(value: Hashable) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True
