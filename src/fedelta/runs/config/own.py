"""Builds the method and the task of a config: by name, from a Python file that may run, or as given in Python.

method: flexlora                         a name
method: {path: ./mine.py, trim: 0.1}     a file; its own hyper-parameters stand beside the path
method: {name: "__main__:Mine", ...}     an object that a program gave; only a program can give it again
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from fedelta.code_files import CodeFile, digest_of_class, read_code
from fedelta.method import RESERVED, Method
from fedelta.methods import method_in, method_of, named_method
from fedelta.runs.config.allowed import CHOICES, TRAINER, Allowed, code_paths, demand_allowed, function_in
from fedelta.runs.config.schema import RunConfig
from fedelta.tasks import get_task, task_class, task_in, task_of
from fedelta.tasks.task import Task

OBJECT = ":"
"""Stands in the name of an object's class, between module and class, and in no other name."""


@dataclass(frozen=True)
class Own:
    """All that a caller brings beside a config.

    Attributes:
        allowed: digests of the Python files that may run.
        method, task: objects in place of what the config names.
    """

    allowed: Allowed = frozenset()
    method: Method | None = None
    task: Task | None = None

    def files_of(self, config: RunConfig, keys: Collection[str] = (*CHOICES, TRAINER)) -> dict[str, CodeFile]:
        """Returns, by key, the Python files that a config names, read once; an object takes the place of its file.

        Args:
            config: of the run.
            keys: those that are looked at.

        Raises:
            ValueError: for a file that may not run, or is no Python file.
            FileNotFoundError: for one that is not there.
        """
        given = {"method": self.method, "task": self.task}
        raw = {key: getattr(config, key) for key in CHOICES if given[key] is None}
        paths = code_paths({**raw, "training": config.training.model_dump()})
        found = {key: read_code(path) for key, path in paths.items() if key in keys}
        for key, code in found.items():
            demand_allowed(code, self.allowed, key)
        return found

    def method_of(self, config: RunConfig, files: Mapping[str, CodeFile]) -> Method:
        """Returns the method of a config, from the files that `files_of` has found.

        Raises:
            ValueError: for an unknown name or hyper-parameter, or a file that defines no method.
        """
        if self.method is not None:
            return self.method
        choice = config.method
        settings = {key: value for key, value in choice.items() if key not in RESERVED}
        _demand_no_object("method", choice)
        if "method" in files:
            return method_of(method_in(files["method"]), choice["name"], settings)
        return named_method(choice["name"], **settings)

    def task_of(self, config: RunConfig, files: Mapping[str, CodeFile]) -> Task:
        """Returns the task of a config, as `method_of` does its method."""
        if self.task is not None:
            return self.task
        choice = config.task
        settings = {key: value for key, value in choice.items() if key not in ("name", "path")}
        _demand_no_object("task", choice)
        if "task" in files:
            return task_of(task_in(files["task"]), choice["name"], settings)
        return task_of(task_class(choice["name"]), choice["name"], settings)

    def trainer_of(self, config: RunConfig, files: Mapping[str, CodeFile]) -> Callable[[Any], Any] | None:
        """Returns the function that makes a client's Trainer; None where the library's own loop trains."""
        if config.training.trainer is None:
            return None
        return files[TRAINER].function_of(function_in(config.training.trainer)[1])

    def task_alone(self, config: RunConfig) -> Task:
        """Returns the task of a config, for whoever needs no method; errors are those of `files_of` and `method_of`."""
        return self.task_of(config, self.files_of(config, ("task",)))

    def in_config(self, config: RunConfig) -> RunConfig:
        """Returns the config with the objects in the places of what it names, as far as they can be written down."""
        given = {"method": self.method, "task": self.task}
        choices = {key: _written(value) for key, value in given.items() if value is not None}
        return config.model_copy(update=choices)


NOTHING = Own()
"""A config alone."""


def is_own(config: RunConfig) -> bool:
    """Returns whether a config's method, task or Trainer is a file's, or was an object of a program."""
    return config.training.trainer is not None or any(
        "path" in choice or OBJECT in choice["name"] for choice in (config.method, config.task)
    )


def _demand_no_object(key: str, choice: Mapping[str, Any]) -> None:
    if OBJECT in choice["name"]:
        raise ValueError(
            f"{key} {choice['name']!r} was an object of a program: give it again in Python, as "
            f"fedelta.run(..., {key}=...), or write its class into a file of its own, which a config can name"
        )


def _written(value: Method | Task) -> dict[str, Any]:
    """Returns an object's class and settings, in the form that YAML has.

    An object of the library's own is written as a config would name it, where that gives the same object again.
    """
    cls = type(value)
    package, _, name = cls.__module__.rpartition(".")
    settings = {entry.name: _plain(getattr(value, entry.name)) for entry in fields(value) if entry.init}
    again = {"fedelta.methods": named_method, "fedelta.tasks": get_task}.get(package)
    try:
        same = again is not None and again(name, **settings) == value
    except (TypeError, ValueError):
        same = False
    return {"name": name if same else name_of(cls), **settings}


def name_of(cls: type) -> str:
    """Returns module and name of a class that is no choice by name; of a class that a Python file defines the file's name."""
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    where = Path(file).stem if digest_of_class(cls) and file else cls.__module__
    return f"{where}{OBJECT}{cls.__qualname__}"


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in cast("Iterable[Any]", value)]
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, Method | Task):
        return _written(value)
    return repr(value)
