"""What is missing in rows: labels, texts, and the ends of texts that are longer than a task takes."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

from fedelta.tasks.rows import Row
from fedelta.tasks.task import Example, Task

logger = logging.getLogger(__name__)

Empty: TypeAlias = Literal["error", "drop", "keep"]
"""What is done with rows whose label is empty: refused, left out, or kept, a blank text being a class like any other."""

WITHOUT_END = 2**30
"""A number of tokens that no text has."""


def is_empty(value: Any) -> bool:
    """Returns whether a field's value says nothing: null, blank text, or not a number."""
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


def warn_of_empty_texts(task: Task, rows: Sequence[Row], where: str) -> None:
    """Warns of rows without a text, field by field, with their number."""
    for field in task.text_fields():
        count = sum(_lacks_text(row.get(field)) for row in rows)
        if count:
            logger.warning("%s: %d of %d rows have an empty %r", where, count, len(rows), field)


def warn_of_cut_texts(task: Task, rows: Sequence[Row], examples: Sequence[Example], tokenizer: Any, where: str) -> None:
    """Warns of rows that were cut to the task's `max_length`, with their number; only the longest are encoded again."""
    longest = [row for row, example in zip(rows, examples, strict=True) if task.length(example) >= task.max_length]
    if not longest:
        return
    whole = replace(task, max_length=WITHOUT_END).encode(longest, tokenizer)
    count = sum(task.length(example) > task.max_length for example in whole)
    if count:
        logger.warning("%s: %d of %d rows are cut to task.max_length = %d tokens", where, count, len(rows), task.max_length)


def _lacks_text(value: Any) -> bool:
    """Returns whether a text, or one of a list of texts, is blank."""
    return any(is_empty(text) for text in value) if isinstance(value, list | tuple) else is_empty(value)
