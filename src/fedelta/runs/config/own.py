"""Builds the method and the task of a config: by name, from a Python file that may run, or as given in Python.

method: flexlora                         a name
method: {path: ./mine.py, trim: 0.1}     a file; its own hyper-parameters stand beside the path
method: {name: "__main__:Mine", ...}     an object that a program gave; only a program can give it again
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fedelta.code_files import CodeFile, read_code
from fedelta.method import RESERVED, Method
from fedelta.methods import method_in, method_of, named_method
from fedelta.runs.config.allowed import CHOICES, Allowed, code_paths, demand_allowed
from fedelta.runs.config.schema import RunConfig
from fedelta.tasks import get_task, task_in, task_of
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

    def method_of(self, config: RunConfig) -> Method:
        """Returns the method of a config.

        Raises:
            ValueError: for an unknown name or hyper-parameter, or a file that may not run or defines no method.
            FileNotFoundError: for a file that is not there.
        """
        choice = config.method
        settings = {key: value for key, value in choice.items() if key not in RESERVED}
        if self.method is not None:
            return self.method
        _demand_no_object("method", choice)
        code = self._code("method", config)
        if code is None:
            return named_method(choice["name"], **settings)
        return method_of(method_in(code), choice["name"], settings)

    def task_of(self, config: RunConfig) -> Task:
        """Returns the task of a config; errors are those of `method_of`."""
        choice = config.task
        settings = {key: value for key, value in choice.items() if key not in ("name", "path")}
        if self.task is not None:
            return self.task
        _demand_no_object("task", choice)
        code = self._code("task", config)
        if code is None:
            return get_task(choice["name"], **settings)
        return task_of(task_in(code), choice["name"], settings)

    def files_of(self, config: RunConfig) -> dict[str, CodeFile]:
        """Returns, by key, the Python files that a config names and that are used: an object takes the place of its file."""
        given = {"method": self.method, "task": self.task}
        found = {key: self._code(key, config) for key in CHOICES if given[key] is None}
        return {key: code for key, code in found.items() if code is not None}

    def in_config(self, config: RunConfig) -> RunConfig:
        """Returns the config with the objects in the places of what it names, as far as they can be written down."""
        given = {"method": self.method, "task": self.task}
        choices = {key: _written(value) for key, value in given.items() if value is not None}
        return config.model_copy(update=choices)

    def _code(self, key: str, config: RunConfig) -> CodeFile | None:
        path = code_paths({key: getattr(config, key)}).get(key)
        if path is None:
            return None
        code = read_code(path)
        demand_allowed(code, self.allowed, key)
        return code


NOTHING = Own()
"""A config alone."""


def is_own(config: RunConfig) -> bool:
    """Returns whether a config's method or task is a file's, or was an object of a program."""
    return any("path" in choice or OBJECT in choice["name"] for choice in (config.method, config.task))


def _demand_no_object(key: str, choice: Mapping[str, Any]) -> None:
    if OBJECT in choice["name"]:
        raise ValueError(
            f"{key} {choice['name']!r} was an object of a program: give it again in Python, as "
            f"fedelta.run(..., {key}=...), or write its class into a file of its own, which a config can name"
        )


def _written(value: Method | Task) -> dict[str, Any]:
    """Returns an object's class and settings, in the form that YAML has."""
    cls = type(value)
    settings = {entry.name: _plain(getattr(value, entry.name)) for entry in fields(value) if entry.init}
    return {"name": _name_of(cls), **settings}


def _name_of(cls: type) -> str:
    package, _, name = cls.__module__.rpartition(".")
    return name if package in ("fedelta.methods", "fedelta.tasks") else f"{cls.__module__}{OBJECT}{cls.__qualname__}"


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, Method | Task):
        return _written(value)
    return repr(value)
