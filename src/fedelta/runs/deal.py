"""Loads the data of a run and deals them to the clients; touches no model."""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TypeAlias

import numpy as np

from fedelta import seeding
from fedelta.data.carving import subsample
from fedelta.data.digests import stand_in
from fedelta.data.gaps import without_empty
from fedelta.data.rows import Row, value_of
from fedelta.data.sources import Splits, load_rows, load_splits, pinned_revision
from fedelta.runs.config import Data, RankChoice, RunConfig
from fedelta.runs.config.choices import scheme_of
from fedelta.split.partition import assign_ranks, partition
from fedelta.tasks.images.shifts import FIELD
from fedelta.tasks.task import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Deal:
    """Data, and who gets what of it.

    Attributes:
        task: with its labels known.
        splits: the rows.
        parts: for each client, the positions of its training rows in `splits.train`.
        held_out: for each client, the positions of the rows kept to test it by.
        ranks: one for each client.
        revision: the commit of a data set on the Hub; None for any other source.
        names: of the clients; empty where they have numbers only.
        shifts: by client, the synthetic feature shift of its rows; empty where there is none.
    """

    task: Task
    splits: Splits
    parts: Sequence[np.ndarray]
    held_out: Sequence[np.ndarray]
    ranks: Sequence[int]
    revision: str | None = None
    names: Sequence[str] = ()
    shifts: Sequence[str] = ()

    def labels(self, rows: Sequence[Row]) -> list[Hashable]:
        """Returns the label of each row; None where the task has none."""
        return [self.task.label_of(row) for row in rows]


def deal(config: RunConfig, task: Task) -> Deal:
    """Loads the data and splits it over clients.

    Args:
        config: of the run; its data, split, ranks and seed count here.
        task: the config's, whose labels may still have to be read from the rows.

    Raises:
        ValueError, FileNotFoundError, ImportError: for data that cannot be read, or a split that cannot be made.
    """
    seeds = config.seeds()
    read = _read_source if config.data.clients is None else _read_files
    splits, parts, task, revision = read(config, task)
    kept = [hold_out(part, config.data.client_test_fraction, seeds.data, k) for k, part in enumerate(parts)]
    ranks = ranks_for(config.lora.rank, len(parts), seeds.partition)
    names, shifts = list(config.client_files()), _shifts(config, len(parts))
    splits = _shifted(splits, parts, shifts)
    return Deal(task, splits, [train for train, _ in kept], [test for _, test in kept], ranks, revision, names, shifts)


def _shifts(config: RunConfig, clients: int) -> list[str]:
    """Returns each client's synthetic feature shift, the config's in turns; empty where it names none."""
    given = config.partition.feature_shift or []
    return [given[k % len(given)] for k in range(clients)] if given else []


def _shifted(splits: Splits, parts: Sequence[np.ndarray], shifts: Sequence[str]) -> Splits:
    """Returns splits in which each training row names its client's shift, for the task to carry out."""
    if not shifts:
        return splits
    rows = list(splits.train)
    for part, shift in zip(parts, shifts, strict=True):
        for i in part:
            rows[i] = {**rows[i], FIELD: shift}
    return replace(splits, train=rows)


Read: TypeAlias = tuple[Splits, Sequence[np.ndarray], Task, str | None]
"""The rows; for each client the positions of its training rows, before any is held out; the task; the revision."""


def _read_source(config: RunConfig, task: Task) -> Read:
    """Reads one source and deals its training rows to clients."""
    data, split, seeds = config.data, config.partition, config.seeds()
    revision = pinned_revision(data.source, data.revision)
    splits = load_splits(
        data.source,
        train=data.train,
        validation=data.validation,
        test=data.test,
        subset=data.subset,
        fields=data.fields,
        validation_fraction=data.validation_fraction,
        test_fraction=data.test_fraction,
        stratify=data.stratify,
        limit=data.limit,
        label=task.label_field(),
        empty=data.empty,
        seed=seeds.data,
        revision=revision,
        path=data.path,
        in_files=task.path_fields(),
    )
    task = task.settled(splits.train)
    # The task's label is what skews the parts, unless the config names a field of the rows.
    labels = splits.train if split.by else [task.label_of(row) for row in splits.train]
    parts = partition(
        labels, scheme_of(split), split.clients, by=split.by, seed=seeds.partition, min_examples=split.min_examples
    )
    return splits, parts, task, revision


def _read_files(config: RunConfig, task: Task) -> Read:
    """Reads the file of each client, and those of validation and test rows, if there are any."""
    files = {"validation": config.data.validation, "test": config.data.test}
    common = {part: read_own(config, task, file, part) for part, file in files.items() if file is not None}
    own = {name: read_own(config, task, file, "train", name) for name, file in config.client_files().items()}
    rows = [row for found in own.values() for row in found.rows]
    ends = np.cumsum([len(found.rows) for found in own.values()])
    parts = np.split(np.arange(len(rows)), ends[:-1])
    left_out = {name: found.left_out for name, found in {**own, **common}.items() if found.left_out}
    validation, test = (common[part].rows if part in common else [] for part in files)
    return Splits(rows, validation, test, left_out), parts, task.settled(rows), None


@dataclass(frozen=True)
class OwnRows:
    """The rows of one file, and how many of it were left out for want of a label."""

    rows: list[Row]
    left_out: int


def read_own(config: RunConfig, task: Task, file: str, part: str, client: str | None = None) -> OwnRows:
    """Reads the file of a client, or of common rows, as the config's data section says.

    Args:
        config: of the run.
        task: says which field is the label.
        file: its path.
        part: "train", "validation" or "test", for `data.limit`.
        client: whose it is, for messages.

    Raises:
        ValueError, FileNotFoundError, ImportError: for a file that cannot be read, or has no rows.
    """
    data, whose = config.data, part if client is None else f"client {client!r}"
    given = load_rows(Path(file), fields=data.fields, in_files=task.path_fields())
    rows = without_empty(given, task.label_field(), data.empty, whose)
    _demand_fields(rows, task.text_fields(), file)
    limit = data.limit.get(part) if isinstance(data.limit, Mapping) else data.limit
    return OwnRows(subsample(rows, limit, config.seeds().data), len(given) - len(rows))


def _demand_fields(rows: Sequence[Row], fields: Sequence[str], file: str) -> None:
    """Raises ValueError, naming the file among several, for a row without a text that the task reads."""
    try:
        for index, row in enumerate(rows):
            for field in fields:
                value_of(row, index, field)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def row_digests(splits: Splits) -> dict[str, str]:
    """Returns a digest of the rows of each split that has any, by which a resumed run recognises its data."""
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {name: rows_digest(rows) for name, rows in parts.items() if rows}


def rows_digest(rows: Sequence[Row]) -> str:
    """Returns the sha256 of rows, in their order."""
    found = sha256()
    for row in rows:
        found.update(json.dumps(row, sort_keys=True, default=stand_in).encode() + b"\n")
    return found.hexdigest()


def warn_of_missing_rows(data: Data, dealt: Deal) -> None:
    """Warns of rows that were left out, and of parts that are too small to leave anything to evaluate on."""
    splits = dealt.splits
    for part, count in splits.left_out.items():
        logger.warning("%s: %d rows without a label are left out (data.empty = drop)", part, count)
    total = len(splits.train) + len(splits.validation) + len(splits.test)
    for part, rows, asked in (
        ("validation", splits.validation, data.validation_fraction),
        ("test", splits.test, data.test_fraction),
    ):
        if asked and not rows and data.clients is None:
            logger.warning("data.%s_fraction = %g of %d rows leaves 0 rows of %s", part, asked, total, part)
    tested = sum(len(part) > 0 for part in dealt.held_out)
    if data.client_test_fraction and tested < len(dealt.parts):
        logger.warning(
            "data.client_test_fraction = %g leaves %d of %d clients without rows to be tested by",
            data.client_test_fraction,
            len(dealt.parts) - tested,
            len(dealt.parts),
        )
    if not (splits.validation or splits.test or tested):
        logger.warning("0 of %d rows are left to evaluate on: the run will have no scores", total)


def hold_out(part: np.ndarray, fraction: float, seed: int, client: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits a client's rows into (to train on, to test by), each in the order of the data; one row at least is to train on."""
    count = min(round(fraction * len(part)), max(len(part) - 1, 0))
    # Drawn by the client's id, so that one client's rows do not depend on those of others.
    order = seeding.numpy_generator(seed, 0, client, "held out").permutation(part)
    return np.sort(order[count:]), np.sort(order[:count])


def ranks_for(rank: int | list[int] | RankChoice, clients: int, seed: int) -> Sequence[int]:
    """Returns the rank of each client."""
    if isinstance(rank, RankChoice):
        return assign_ranks(rank.choices, clients, how="draw", seed=seed, weights=rank.shares)
    return assign_ranks(rank, clients, how="list")
