"""Warnings of what is missing in rows: texts, and the ends of texts that are longer than a task takes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fedelta.data.gaps import is_empty
from fedelta.data.rows import Row
from fedelta.tasks.task import Example, Task

logger = logging.getLogger(__name__)

WITHOUT_END = 2**30
"""A number of tokens that no text has."""


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
    """Returns True if a text, or one of a list of texts, is blank."""
    return any(is_empty(text) for text in value) if isinstance(value, list | tuple) else is_empty(value)
