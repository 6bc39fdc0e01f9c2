"""Draws rows from rows: some of them, or parts that share them out; the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedelta.data.rounding import proportional
from fedelta.data.rows import Row, label_order, value_of
from fedelta.seeding import SERVER, numpy_generator


def subsample(rows: list[Row], limit: int | None, seed: int = 0) -> list[Row]:
    """Returns `limit` rows drawn without replacement, in their own order; all of them if there are no more.

    Raises:
        ValueError: the limit is below one.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit {limit} would keep no rows: give at least 1, or none for all rows")
    if limit is None or limit >= len(rows):
        return rows
    chosen = numpy_generator(seed, 0, SERVER, "subsample").choice(len(rows), size=limit, replace=False)
    return [rows[i] for i in np.sort(chosen)]


def split_rows(
    rows: Sequence[Row], fractions: Sequence[float], seed: int = 0, *, stratify: str | None = None
) -> list[list[Row]]:
    """Shares out rows by fractions; each row goes to one part, and each part keeps the rows' order.

    Part sizes are the fractions of n rounded to sum to n. With `stratify` each label's share of a part is its share of the
    whole, to one row: the part's rows are taken at even distances from the rows in order of label.

    Args:
        rows: n rows.
        fractions: not negative, summing to one.
        seed: the same seed, rows and fractions give the same parts.
        stratify: the field with the label, or None for a plain random split.

    Raises:
        ValueError: the fractions are not such, or a row lacks the field.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
        raise ValueError(f"fractions {list(fractions)} must not be negative and must sum to 1")
    random = numpy_generator(seed, 0, SERVER, "split")
    left = random.permutation(len(rows))
    if stratify is not None:
        labels = [value_of(row, index, stratify) for index, row in enumerate(rows)]
        left = np.array(sorted(left, key=lambda index: label_order(labels[index])), dtype=np.intp)
    parts: list[list[Row]] = []
    for size in proportional(fractions, len(rows)):
        chosen = _evenly(len(left), size, random.random())
        parts.append([rows[i] for i in np.sort(left[chosen])])
        left = np.delete(left, chosen)
    return parts


def _evenly(total: int, size: int, offset: float) -> np.ndarray:
    """Returns `size` different positions below `total` at even distances, started at a random place in [0, 1)."""
    return np.floor((np.arange(size) + offset) * total / max(size, 1)).astype(np.intp)
