"""Builds what a config chooses by name, and the settings of its run."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from fedelta.client import Training
from fedelta.code_files import CodeFile
from fedelta.engines.settings import RunSettings
from fedelta.exchange.channel import Channel
from fedelta.exchange.codecs import get_codec
from fedelta.method import Method
from fedelta.optim import get_optimizer
from fedelta.runs.config.own import NOTHING, Own
from fedelta.runs.config.schema import Federation, LocalTraining, Partition, RunConfig
from fedelta.sampling import uniform
from fedelta.split.partition import Scheme, get_scheme
from fedelta.tasks.task import Task
from fedelta.topology import Topology, get_topology


@dataclass(frozen=True)
class Choices:
    """The objects that a config names, built once.

    Attributes:
        method: with its hyper-parameters.
        task: its labels may still have to be read from the data.
        training: what a client does in a round.
        topology: the graph; None with a server.
        settings: of the whole run, from its first round.
        files: by key, the Python files of the method, the task and the Trainer, as they were run.
        trainer: makes a client's Trainer; None where the library's own loop trains.
    """

    method: Method
    task: Task
    training: Training
    topology: Topology | None
    settings: RunSettings
    files: Mapping[str, CodeFile] = field(default_factory=dict[str, CodeFile])
    trainer: Callable[[Any], Any] | None = None


def choices_of(config: RunConfig, own: Own = NOTHING) -> Choices:
    """Returns what the config names, built.

    Args:
        config: of the run.
        own: the files that may run, and objects that take the place of what the config names.

    Raises:
        ValueError: for a name or a setting that is not known, a value that does not fit, or a file that may not run.
        FileNotFoundError: for a file of a method or a task that is not there.
    """
    graph, files = config.federation.topology, own.files_of(config)
    with naming("method", config.method):
        method = own.method_of(config, files)
    with naming("task", config.task):
        task = own.task_of(config, files)
    with naming("federation.topology", graph or {}):
        topology = None if graph is None else get_topology(**graph)
    training, settings = training_of(config.training), settings_of(config.federation, config.seeds().schedule)
    return Choices(method, task, training, topology, settings, files, own.trainer_of(config, files))


def training_of(section: LocalTraining) -> Training:
    """Returns the settings of local training, with the optimizer that they name."""
    with naming("training.optimizer", section.optimizer), within("training.optimizer: "):
        optimizer = get_optimizer(**section.optimizer)
    with within("training."):
        return Training(
            batch_size=section.batch_size,
            learning_rate=section.learning_rate,
            learning_rate_decay=section.learning_rate_decay,
            local_steps=section.local_steps,
            local_epochs=section.local_epochs,
            max_grad_norm=section.max_grad_norm,
            optimizer=optimizer,
        )


def scheme_of(section: Partition) -> Scheme:
    """Returns the scheme of a split, with its own settings."""
    given = {"concentration": section.concentration, "shards_per_client": section.shards_per_client}
    return get_scheme(section.scheme, **{key: value for key, value in given.items() if value is not None})


def channel_of(section: Federation) -> Channel:
    """Returns the codecs between method and wire, in their order."""
    with naming("federation.channel"), within("federation.channel: "):
        return Channel(tuple(get_codec(**choice) for choice in section.channel))


def settings_of(section: Federation, seed: int) -> RunSettings:
    """Returns the settings of a run; the engine and the score of uploads are added where the run is played."""
    channel = channel_of(section)
    with within("federation."):  # the error begins with the name of the option
        return RunSettings(
            rounds=section.rounds,
            seed=seed,
            cohort=uniform(section.participation),
            weights=section.weights,
            max_share=section.max_share,
            quorum=section.quorum,
            link_drop=section.link_drop,
            spool=section.spool,
            channel=channel,
        )


@contextmanager
def naming(key: str, choice: Mapping[str, Any] = MappingProxyType({})) -> Generator[None]:
    """Names the key in the error of a setting of another type than the key's choice takes, and the settings of `choice`."""
    try:
        yield
    except (TypeError, OverflowError) as error:
        given = {name: value for name, value in choice.items() if name not in ("name", "path", "label")}
        shown = ", ".join(f"{name} = {value!r:.60}" for name, value in given.items())
        where = f"{key}.{shown}" if len(given) == 1 else f"{key}: one of {shown}" if given else f"{key}: a setting"
        raise ValueError(f"{where} has the wrong type ({error})") from None


@contextmanager
def within(key: str) -> Generator[None]:
    """Puts a key before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{key}{error}") from None
