"""The rows of one site: those of its own file, or its share of a source that every node deals alike."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedelta.data.rows import Row
from fedelta.runs.config import ConfigError, RunConfig
from fedelta.runs.config.node import Node
from fedelta.runs.deal import deal, hold_out, read_own
from fedelta.tasks.task import Task

logger = logging.getLogger("fedelta.site")


@dataclass(frozen=True)
class SiteRows:
    """A site's own rows to train on and to score by, and its id."""

    client: int
    train: Sequence[Row]
    test: Sequence[Row]


def rows_of(config: RunConfig, node: Node, task: Task) -> SiteRows:
    """Returns a site's own rows: those of its file, or its share of a source that every node deals alike from the seed.

    Raises:
        ConfigError: for a site that has no place in the run, naming the remedy.
        ValueError, OSError, ImportError: for rows that cannot be read.
    """
    k = client_of(config, node)
    file = node.data or config.client_files().get(node.name)
    if file is None:
        logger.warning(
            "site %s deals itself share %d of %s from the seed, for trials: every node so reads all rows. Name its own file in "
            "the node file (`data`), or all files by site in data.clients",
            node.name,
            k,
            config.data.source,
        )
        dealt = deal(config, task)
        train, held = ([dealt.splits.train[i] for i in part] for part in (dealt.parts[k], dealt.held_out[k]))
    else:
        own = read_own(config, task, file, "train", node.name)
        if own.left_out:
            logger.warning("%s: %d rows without a label are left out (data.empty = drop)", file, own.left_out)
        parts = hold_out(np.arange(len(own.rows)), config.data.client_test_fraction, config.seeds().data, k)
        train, held = ([own.rows[i] for i in part] for part in parts)
    test = held if node.test is None else read_own(config, task, node.test, "test", node.name).rows
    return SiteRows(k, train, test)


def client_of(config: RunConfig, node: Node) -> int:
    """Returns a site's id in the run.

    Raises:
        ConfigError: for one that has none, or that is not among the clients.
    """
    names, count = list(config.client_files()), config.num_clients()
    if node.client is None and node.name not in names:
        known = f"data.clients names {', '.join(names)}" if names else "the config has no data.clients"
        raise ConfigError(f"site {node.name!r} has no id in the run ({known}): set `client` in its node file, or name it there")
    k = names.index(node.name) if node.client is None else node.client
    if count is not None and k >= count:
        raise ConfigError(f"client = {k} in the node file of site {node.name!r}: the run has clients 0 to {count - 1}")
    return k
