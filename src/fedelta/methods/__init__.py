"""The methods, one module each; the registry's key is the module's name.

A new file in this folder with one subclass of `Method` in it is a new method: nothing else is to be edited. Modules whose
name starts with an underscore are not methods; `_template.py` is one to copy.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from fedelta.method import Method
from fedelta.registry import check_settings, class_in, class_named, classes_in, find_name, names_in


def list_methods() -> list[str]:
    """Returns the names that `get_method` knows, without aliases, in alphabetical order."""
    return list(names_in(__name__))


def method_class(name: str) -> type[Method]:
    """Returns a method's class by its name or an alias, spelled in any way; the class attributes say what it can do.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    return class_in(__name__, find_name("method", __name__, name), Method)


def get_method(name: str, **hyper: Any) -> Method:
    """Returns a method by its name or an alias, with these hyper-parameters.

    Raises:
        ValueError: for an unknown name or hyper-parameter, with the nearest known one, or for a value out of range.
    """
    cls = method_class(name)
    check_settings(f"method {name!r}", hyper, [f.name for f in fields(cls)], kind="hyper-parameter")
    return cls(**hyper)


def __getattr__(name: str) -> Any:
    # Classes by their own names (fedelta.methods.FlexLoRA), so that a new file needs no line here.
    return class_named(__name__, name, Method)


def __dir__() -> list[str]:
    return sorted([*globals(), *(cls.__name__ for cls in classes_in(__name__, Method))])
