"""The methods, one module each; the registry's key is the module's name.

A new file in this folder with one subclass of `Method` in it is a new method: nothing else is to be edited. Modules whose
name starts with an underscore are not methods; `_template.py` is one to copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from os import PathLike
from typing import Any

from fedelta.code_files import CodeFile, read_code
from fedelta.method import Method, demand_free_names
from fedelta.registry import check_settings, class_in, class_named, classes_in, find_name, is_code, names_in


def list_methods() -> list[str]:
    """Returns the names that `get_method` knows, without aliases, in alphabetical order."""
    return list(names_in(__name__))


def method_class(name: str) -> type[Method]:
    """Returns a method's class by its name or an alias, spelled in any way; the class attributes say what it can do.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    return class_in(__name__, find_name("method", __name__, name), Method)


def get_method(name: str | PathLike[str], **hyper: Any) -> Method:
    """Returns a method by its name, an alias, or the path of a Python file that defines it, with these hyper-parameters.

    A file's code runs: give no path that came from somebody else.

    Raises:
        ValueError: for an unknown name or hyper-parameter, with the nearest known one, for a value out of range, or for a
            file that cannot be imported or does not define one method.
        FileNotFoundError: if there is no such file.
    """
    if is_code(name):
        return method_of(method_in(read_code(name)), str(name), hyper)
    return named_method(str(name), **hyper)


def named_method(name: str, **hyper: Any) -> Method:
    """Returns a method that came with the library, by its name or an alias; a path is an unknown name.

    So is a method built whose name a config, or a server, has chosen: no file of theirs runs.

    Raises:
        ValueError: as `get_method`.
    """
    return method_of(method_class(name), name, hyper)


def method_in(code: CodeFile) -> type[Method]:
    """Runs a Python file and returns the one method that it defines.

    Raises:
        ValueError: for a file that cannot be imported, or does not define one method, or one with a field of a reserved name.
    """
    cls: type[Method] = code.class_of(Method)
    demand_free_names(cls)
    return cls


def method_of(cls: type[Method], name: str, hyper: Mapping[str, Any]) -> Method:
    """Returns a method of a class, called `name` in messages; raises ValueError for hyper-parameters that it does not have."""
    check_settings(f"method {name!r}", hyper, [f.name for f in fields(cls)], kind="hyper-parameter")
    return cls(**hyper)


def __getattr__(name: str) -> Any:
    # Classes by their own names (fedelta.methods.FlexLoRA), so that a new file needs no line here.
    return class_named(__name__, name, Method)


def __dir__() -> list[str]:
    return sorted([*globals(), *(cls.__name__ for cls in classes_in(__name__, Method))])
