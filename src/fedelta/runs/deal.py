"""Loads the data of a run and deals them to the clients; touches no model."""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from fedelta import seeding
from fedelta.data.rows import Row
from fedelta.data.sources import Splits, load_splits, pinned_revision
from fedelta.runs.config import Data, RankChoice, RunConfig
from fedelta.runs.config.choices import scheme_of
from fedelta.split.partition import assign_ranks, partition
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
    """

    task: Task
    splits: Splits
    parts: Sequence[np.ndarray]
    held_out: Sequence[np.ndarray]
    ranks: Sequence[int]
    revision: str | None = None

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
    data, split, seed = config.data, config.partition, config.seed
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
        seed=seed,
        revision=revision,
    )
    task = task.settled(splits.train)
    # The task's label is what skews the parts, unless the config names a field of the rows.
    labels = splits.train if split.by else [task.label_of(row) for row in splits.train]
    parts = partition(labels, scheme_of(split), split.clients, by=split.by, seed=seed, min_examples=split.min_examples)
    kept = [_hold_out(part, data.client_test_fraction, seed, k) for k, part in enumerate(parts)]
    ranks = _ranks(config.lora.rank, len(parts), seed)
    return Deal(task, splits, [train for train, _ in kept], [test for _, test in kept], ranks, revision)


def row_digests(splits: Splits) -> dict[str, str]:
    """Returns a digest of the rows of each split that has any, by which a resumed run recognises its data."""
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {name: _digest(rows) for name, rows in parts.items() if rows}


def _digest(rows: Sequence[Row]) -> str:
    found = sha256()
    for row in rows:
        found.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
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
        if asked and not rows:
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


def _hold_out(part: np.ndarray, fraction: float, seed: int, client: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits a client's rows into (to train on, to test by), each in the order of the data; one row at least is to train on."""
    count = min(round(fraction * len(part)), max(len(part) - 1, 0))
    # Drawn by the client's id, so that one client's rows do not depend on those of others.
    order = seeding.numpy_generator(seed, 0, client, "held out").permutation(part)
    return np.sort(order[count:]), np.sort(order[:count])


def _ranks(rank: int | list[int] | RankChoice, clients: int, seed: int) -> Sequence[int]:
    if isinstance(rank, RankChoice):
        return assign_ranks(rank.choices, clients, how="draw", seed=seed, weights=rank.shares)
    return assign_ranks(rank, clients, how="list")
