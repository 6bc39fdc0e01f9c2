"""Digests of the files of methods that are not the library's own, so that a run notices an edit of one."""

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
from fedelta.method import Method


def code_digests(method: Method) -> dict[str, str]:
    """Returns, by module, the sha256 of each user's own file that defines the method or a part of it.

    Only the file of a class itself counts, not what it imports. The library's own methods are left out: another version of the
    library is only warned about when a run is taken up.
    """
    modules = {type(part).__module__: type(part) for part in parts_of(method) if not is_catalogued(type(part))}
    return {module: sha256(Path(inspect.getfile(cls)).read_bytes()).hexdigest() for module, cls in sorted(modules.items())}


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
