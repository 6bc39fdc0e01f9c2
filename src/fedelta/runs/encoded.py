"""Rows made ready for a model, and a cache of them on a site's disk, so that a worker that is started again need not wait."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import fields
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from fedelta.data.rows import Row
from fedelta.exchange import files
from fedelta.models.positions import Places, check_lengths
from fedelta.tasks.task import Example, Task
from fedelta.tasks.text.gaps import warn_of_cut_texts, warn_of_empty_texts

logger = logging.getLogger("fedelta.site")

DIGEST = 64
"""Characters of the sha256 of all else, with which a file of the cache begins."""

KEPT = 8
"""The files of the cache that are kept: the last ones that were used."""


def encoded(
    task: Task, rows: Sequence[Row], tokenizer: Any, part: str, cache: Path | None = None, *, places: Places | None = None
) -> Sequence[Example]:
    """Returns one example for each row, with warnings of rows that are empty or cut.

    Args:
        task: with its labels known.
        rows: of one part; there may be none.
        tokenizer: of the model.
        part: in words, for messages.
        cache: the folder in which what was encoded once is kept; None keeps nothing.
        places: of the model; None, where no model reads the rows as they are encoded here.

    Raises:
        ValueError: for a row that does not fit the task, or one longer than the model has positions for.
    """
    if not rows:
        return []
    key = None if cache is None else key_of(task, rows, tokenizer)
    path = None if cache is None or key is None else cache / f"{key}.json"
    examples = None if path is None else _read(path)
    if examples is None:
        try:
            examples = task.encode(rows, tokenizer)
        except ValueError as error:  # most often a label that the training rows do not have
            raise ValueError(f"{part} rows: {error}") from error
        if path is not None:
            _write(path, examples)
    if places is not None:
        check_lengths(places, task, examples, f"{part} rows")
    warn_of_empty_texts(task, rows, part)
    warn_of_cut_texts(task, rows, examples, tokenizer, part)
    return examples


def key_of(task: Task, rows: Sequence[Row], tokenizer: Any) -> str | None:
    """Returns a digest of all that the examples depend on: rows, tokenizer, the task with its length, and versions.

    None where that is not known, such as for an image processor.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    whole = json.loads(backend.to_str())
    for passing in ("truncation", "padding"):  # of the last call
        whole.pop(passing, None)
    settings = {entry.name: getattr(task, entry.name) for entry in fields(task) if entry.name != "metrics"}
    versions = [version(name) for name in ("fedelta", "transformers", "tokenizers")]
    parts = [versions, type(tokenizer).__name__, tokenizer.special_tokens_map, whole, type(task).__name__, settings]
    digest = sha256(json.dumps(parts, sort_keys=True, default=str).encode())
    for row in rows:
        digest.update(b"\n" + json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _read(path: Path) -> list[Example] | None:
    """Returns what a file of the cache holds; None, with a warning where it is damaged, if it is to be made anew."""
    try:
        content = path.read_bytes()
        path.touch()
    except OSError:
        return None
    found, rest = content[:DIGEST], content[DIGEST:]
    if found.decode("ascii", "replace") != sha256(rest).hexdigest():
        logger.warning("%s is damaged: the rows are encoded again", path)
        return None
    return cast("list[Example]", json.loads(rest))


def _write(path: Path, examples: Sequence[Example]) -> None:
    """Writes examples of plain numbers and lists, not others, and removes all but the last files of the folder."""
    try:
        rest = json.dumps([dict(example) for example in examples], separators=(",", ":")).encode()
    except TypeError:  # tensors, of images
        return
    try:
        files.commit_private(path, sha256(rest).hexdigest().encode() + rest)
        by_age = sorted(path.parent.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
        for old in by_age[KEPT:]:
            old.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("the encoded rows cannot be kept (%s): they are encoded again at the next start", error)
