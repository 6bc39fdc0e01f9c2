"""Builds what a config chooses by name: method, task, local training, graph and scheme of the split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from fedelta.client import Training
from fedelta.method import Method
from fedelta.methods import get_method
from fedelta.optim import get_optimizer
from fedelta.runs.config.schema import LocalTraining, Partition, RunConfig
from fedelta.split.partition import Scheme, get_scheme
from fedelta.tasks import get_task
from fedelta.tasks.task import Task
from fedelta.topology import Topology, get_topology

T = TypeVar("T")


@dataclass(frozen=True)
class Choices:
    """The objects that a config names, built once.

    Attributes:
        method: with its hyper-parameters.
        task: its labels may still have to be read from the data.
        training: what a client does in a round.
        topology: the graph; None with a server.
    """

    method: Method
    task: Task
    training: Training
    topology: Topology | None


def choose(config: RunConfig) -> Choices:
    """Returns what the config names.

    Raises:
        ValueError: for a name or a setting that is not known, or a value that does not fit.
    """
    graph = config.federation.topology
    return Choices(
        method=_built("method", lambda: get_method(**config.method)),
        task=_built("task", lambda: get_task(**config.task)),
        training=_built("training.optimizer", lambda: training_of(config.training)),
        topology=None if graph is None else _built("federation.topology", lambda: get_topology(**graph)),
    )


def training_of(section: LocalTraining) -> Training:
    """Returns the settings of local training, with the optimizer that they name."""
    return Training(
        batch_size=section.batch_size,
        learning_rate=section.learning_rate,
        learning_rate_decay=section.learning_rate_decay,
        local_steps=section.local_steps,
        local_epochs=section.local_epochs,
        max_grad_norm=section.max_grad_norm,
        optimizer=get_optimizer(**section.optimizer),
    )


def scheme_of(section: Partition) -> Scheme:
    """Returns the scheme of a split, with its own settings."""
    given = {"concentration": section.concentration, "shards_per_client": section.shards_per_client}
    return get_scheme(section.scheme, **{key: value for key, value in given.items() if value is not None})


def wrong_type(key: str, error: Exception) -> ValueError:
    """Returns the error of a setting of another type than the key's choice takes."""
    return ValueError(f"{key}: a setting has the wrong type ({error})")


def _built(key: str, build: Callable[[], T]) -> T:
    try:
        return build()
    except (TypeError, OverflowError) as error:
        raise wrong_type(key, error) from None
