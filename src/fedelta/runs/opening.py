"""All that a caller brings to a run beside its config: objects, the files that may run, and how its clients are built."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from fedelta.method import Client, Method
from fedelta.registry import is_code
from fedelta.runs.config import ConfigError, RunConfig
from fedelta.runs.config.allowed import CHOICES, allowed
from fedelta.runs.config.choices import Choices
from fedelta.runs.config.own import Own
from fedelta.runs.config.read import Overrides
from fedelta.runs.rounds import Experiment
from fedelta.runs.sinks import Sink
from fedelta.tasks.task import Task

if TYPE_CHECKING:
    from fedelta.runs.given import Evaluate, Given

Build: TypeAlias = Callable[[RunConfig, Choices, Mapping[str, Any]], Experiment]
"""Makes a run's experiment of its config, what that names, and the notes of the checkpoint that it goes on from, if any."""


class Options(TypedDict, total=False):
    """The options of a run that are no part of its config; `run` says what each is."""

    method: str | Method | None
    task: str | Task | None
    clients: Sequence[Client] | None
    evaluate: Evaluate | None
    resume: str | Path | None
    force: bool
    trust_remote_code: bool
    allow_files: Collection[str | PathLike[str]]
    sinks: Sequence[Sink]


@dataclass(frozen=True)
class Opening:
    """All that a caller brings beside a config.

    Attributes:
        build: makes the experiment.
        own: objects, and the files that may run.
        given: clients of the caller's program; None where the config says who they are.
    """

    build: Build
    own: Own
    given: Given | None = None

    def settled(self, config: RunConfig) -> RunConfig:
        """Returns the config with what was given as objects written into it."""
        told = config if self.given is None else self.given.in_config(config)
        return self.own.in_config(told)


def opening_of(options: Options, build: Build) -> Opening:
    """Returns what the options of a run bring.

    Args:
        options: as they were given.
        build: makes the experiment of a run whose config says who the clients are.

    Raises:
        ConfigError: for options that contradict each other.
        TypeError: for something else than a method, a task or clients.
        FileNotFoundError, ValueError: for a path to no Python file.
    """
    own, clients, evaluate = _own(options), options.get("clients"), options.get("evaluate")
    if clients is None:
        if evaluate is not None:
            raise ConfigError("evaluate belongs to clients that are given, too: else `data` and `task` say what is scored")
        return Opening(build, own)
    if options.get("task") is not None:
        raise ConfigError("the clients that are given have their task already: leave task out")
    from fedelta.runs.given import Given  # with PEFT, which a server of real sites does without

    given = Given(clients, evaluate)
    return Opening(given.experiment, own, given)


def _own(options: Options) -> Own:
    """Returns the objects among the options, and the digests of the files that may run: those named here are among them."""
    method, task = options.get("method"), options.get("task")
    _demand_kind("method", method, Method)
    _demand_kind("task", task, Task)
    named = [str(choice) for choice in (method, task) if is_code(choice)]
    return Own(
        allowed(options.get("allow_files", ())) | allowed(named),
        method if isinstance(method, Method) else None,
        task if isinstance(task, Task) else None,
    )


def _demand_kind(key: str, choice: object, kind: type) -> None:
    if choice is not None and not isinstance(choice, kind | str | PathLike):
        raise TypeError(f"{key} must be a name, the path of a Python file, or a {key}, not {choice!r:.60}")


def changes_of(options: Options, overrides: Overrides) -> Overrides:
    """Returns the changes of a config, with those that are options: before them method and task, after them the leave."""
    first: dict[str, Any] = {}
    for key in CHOICES:
        choice: object = options.get(key)
        if isinstance(choice, str | PathLike):
            first[key] = str(choice)
    last = {"model.trust_remote_code": True} if options.get("trust_remote_code") else {}
    if isinstance(overrides, Mapping):
        return {**first, **overrides, **last}
    return [*_texts(first), *overrides, *_texts(last)]


def _texts(changes: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]
