"""The methods, one module each; the registry's key is the module's name.

A new file in this folder with one subclass of `Method` in it is a new method: nothing else is to be edited. Modules whose
name starts with an underscore are not methods; `_template.py` is one to copy.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import fields
from functools import cache
from typing import Any

from fedelta.method import Method
from fedelta.naming import nearest


@cache
def _registry() -> dict[str, type[Method]]:
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    found = {n: _only_method(n) for n in names}
    return {n: cls for n, cls in found.items() if cls is not None}


def _only_method(name: str) -> type[Method] | None:
    module = importlib.import_module(f"{__name__}.{name}")
    own = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
    methods = [c for c in own if issubclass(c, Method)]
    if len(methods) > 1:
        raise ImportError(f"{module.__name__} defines {len(methods)} methods; give each a module of its own")
    return methods[0] if methods else None


def list_methods() -> list[str]:
    """The names that `get_method` knows, without aliases, in alphabetical order."""
    return list(_registry())


def method_class(name: str) -> type[Method]:
    """The class of a method, by its name or an alias; the class attributes say what it can do.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    aliases = {alias: cls for cls in _registry().values() for alias in cls.aliases}
    known = {**aliases, **_registry()}
    if name not in known:
        raise ValueError(f"unknown method {name!r}{nearest(name, known)}; the methods are {', '.join(_registry())}")
    return known[name]


def get_method(name: str, **hyper: Any) -> Method:
    """A method by its name or an alias, with these hyper-parameters.

    Raises:
        ValueError: for an unknown name or hyper-parameter, with the nearest known one, or for a value out of range.
    """
    cls = method_class(name)
    known = [f.name for f in fields(cls)]
    for given in hyper:
        if given not in known:
            valid = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"method {name!r} has no hyper-parameter {given!r}{nearest(given, known)}; {valid}")
    return cls(**hyper)


def __getattr__(name: str) -> Any:
    # Classes by their own names (fedelta.methods.FlexLoRA), so that a new file needs no line here.
    for cls in _registry().values():
        if cls.__name__ == name:
            return cls
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *(cls.__name__ for cls in _registry().values())])
