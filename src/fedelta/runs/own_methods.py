"""Digests of the files of methods and tasks that are not the library's own, so that a run notices an edit of one."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator
from dataclasses import fields
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import cast

from fedelta import methods
from fedelta.code_files import digest_of_class
from fedelta.method import Method
from fedelta.tasks.task import Task


def code_digests(method: Method, task: Task | None = None) -> dict[str, str]:
    """Returns, by module, the sha256 of each user's own file that defines the method, a part of it, or the task.

    Only the file of a class itself counts, not what it imports; of a program or a notebook, which says more than that, the text
    of the class. The library's own are left out: another version of the library is only warned about when a run is taken up.
    """
    own: list[type] = [type(part) for part in parts_of(method) if not is_catalogued(type(part))]
    if task is not None and not type(task).__module__.startswith("fedelta.tasks."):
        own.append(type(task))
    found = {_place(cls): digest for cls in own if (digest := _digest(cls)) is not None}
    return dict(sorted(found.items()))


def _place(cls: type) -> str:
    kind = "method" if issubclass(cls, Method) else "task"
    if digest_of_class(cls) is not None:
        # Of a file that a config names: its copy in the run's folder has another name, and an edit may rename the class.
        return f"the {kind}"
    return f"the {kind} {cls.__qualname__}" if cls.__module__ == "__main__" else cls.__module__


def _digest(cls: type) -> str | None:
    """Returns the digest of a class's code; None for one that was typed where nothing keeps it."""
    if (known := digest_of_class(cls)) is not None:
        return known
    try:
        if cls.__module__ == "__main__":
            return sha256(inspect.getsource(cls).encode()).hexdigest()
        return sha256(Path(inspect.getfile(cls)).read_bytes()).hexdigest()
    except (OSError, TypeError):
        return None


def parts_of(value: object) -> Iterator[Method]:
    """Yields a method and those that it combines, which stand in its hyper-parameters or in lists there."""
    if isinstance(value, Method):
        yield value
        for field in fields(value):
            yield from parts_of(getattr(value, field.name))
    elif isinstance(value, list | tuple):
        for inner in cast("Iterable[object]", value):
            yield from parts_of(inner)


def is_catalogued(cls: type[Method]) -> bool:
    """Returns whether a method came with the library."""
    package, _, name = cls.__module__.rpartition(".")
    return package == methods.__name__ and name in _catalogued()


@cache
def _catalogued() -> frozenset[str]:
    """Returns the names of the methods that came with the library."""
    text = files("fedelta").joinpath("methods/catalogue.json").read_text(encoding="utf-8")
    return frozenset(entry["name"] for entry in json.loads(text))
