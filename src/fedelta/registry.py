"""Names: which files of a wing go by one, and what an error message says of a name that is not known.

Imports no torch, and none of the files that it lists.
"""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def nearest(word: str, known: Iterable[str], within: str = "", then: str = "") -> str:
    """Returns the part of an error message that names the likeliest spelling, if there is one, and goes on with `then`.

    Args:
        word: what was written.
        known: what may be meant.
        within: what stands before the name that is suggested, such as "lora.".
        then: the rest of the message, which begins a sentence of its own after a question.
    """
    by_letters = {_letters(name): name for name in known}
    match = difflib.get_close_matches(_letters(str(word)), by_letters, n=1)
    if not match:
        return f"; {then}" if then else ""
    question = f"; did you mean {within + by_letters[match[0]]!r}?"
    return f"{question} {then[0].upper()}{then[1:]}" if then else question


def listed(names: Iterable[str], most: int = 12) -> str:
    """Returns names for a message, in quotes: the first of them where there are many, and each cut where it is long."""
    every = [repr(name if len(name) <= 60 else f"{name[:59]}…") for name in map(str, names)]
    return ", ".join(every[:most]) + (f" and {len(every) - most:,} more" if len(every) > most else "")


def check_name(kind: str, name: str, known: Collection[str], also: Iterable[str] = ()) -> None:
    """Raises ValueError, with the nearest known name, for a name that is not among the known ones.

    Args:
        kind: what such a name stands for, such as "optimizer".
        name: the name that was given.
        known: the names that there are; all are listed.
        also: other names that the message may suggest, but does not list.
    """
    if name not in known:
        there = f"there are {', '.join(known)}"
        raise ValueError(f"no {kind} is called {name!r}{nearest(name, [*known, *also], then=there)}")


def check_settings(owner: str, given: Iterable[str], known: Collection[str], kind: str = "setting") -> None:
    """Raises ValueError, with the nearest known name, if one of the given names is no setting of the owner.

    Args:
        owner: whose settings they are, such as "optimizer 'adamw'".
        given: the names that were given.
        known: the names of all its settings.
        kind: what the owner's settings are called.
    """
    for name in given:
        if name not in known:
            has = ", ".join(known) or "none"
            raise ValueError(f"{owner} has no {kind} {name!r}{nearest(name, known, then=f'it has {has}')}")


@cache
def names_in(package: str) -> tuple[str, ...]:
    """Returns the names of a package's files, in alphabetical order; leaves out subpackages and names that start with "_"."""
    found = iter_modules([str(folder) for folder in _folders(package)])
    return tuple(sorted(module.name for module in found if not module.ispkg and not module.name.startswith("_")))


@cache
def aliases_in(package: str) -> dict[str, str]:
    """Returns the file's name by alias, from the lines `aliases = ("other_name",)` in the classes of a package's files."""
    found: dict[str, str] = {}
    for folder in _folders(package):
        for name in names_in(package):
            source = (folder / f"{name}.py").read_text(encoding="utf-8")
            # most files have no alias, and parsing all of them takes longer than a command line should
            aliases = _aliases(source) if "aliases" in source else ()
            found |= dict.fromkeys(aliases, name)
    return found


def file_named(package: str, name: str) -> str | None:
    """Returns the name of the file that a name or an alias means, however it is spelled; None if there is no such file."""
    spelled = one_spelling(package, name)
    return spelled if spelled in names_in(package) else aliases_in(package).get(spelled)


def is_name(package: str, name: str) -> bool:
    """Returns True for the name of a file, spelled as the file is, or with hyphens for underscores."""
    return name.replace("-", "_") in names_in(package)


def one_spelling(package: str, name: str) -> str:
    """Returns the name of a file, or an alias, as its package spells it; an unknown name as it is."""
    if name in names_in(package):  # the usual case reads no file
        return name
    known = {_letters(known): known for known in (*aliases_in(package), *names_in(package))}
    return known.get(_letters(name), name)


def is_code(value: object) -> bool:
    """Returns whether what stands in the place of a name is the path of a Python file."""
    return isinstance(value, str | PathLike) and str(value).endswith(".py")


def find_name(kind: str, package: str, name: str) -> str:
    """Returns the name of the file that a name or an alias means; case, hyphens and underscores do not matter.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    found = file_named(package, name)
    if found is None:
        check_name(kind, name, names_in(package), also=aliases_in(package))
    return found or name


def class_in(package: str, name: str, base: type[T]) -> type[T]:
    """Imports a file of a package and returns the one class of a kind that is defined there.

    Raises:
        ImportError: if the file defines no such class, or several.
    """
    module = import_module(f"{package}.{name}")
    found = classes_of(module, base)
    if len(found) != 1:
        defines = f"must define one {base.__name__}, and defines {len(found)}"
        raise ImportError(f"{module.__name__} {defines}: give each a file of its own")
    return found[0]


def classes_in(package: str, base: type[T]) -> list[type[T]]:
    """Imports all files of a package and returns the class of each, in the order of the files' names."""
    return [class_in(package, name, base) for name in names_in(package)]


def class_named(package: str, name: str, base: type[T]) -> type[T]:
    """Returns a class by its own name from whichever file of a package defines it; for a package's `__getattr__`.

    Raises:
        AttributeError: if no file does, as Python expects of an attribute that is not there.
    """
    for cls in classes_in(package, base):
        if cls.__name__ == name:
            return cls
    raise AttributeError(f"module {package!r} has no attribute {name!r}")


def classes_of(module: ModuleType, base: type[T]) -> list[type[T]]:
    """Returns the subclasses of `base` that a module defines and does not only import."""
    own = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
    return [c for c in own if issubclass(c, base)]


def _letters(name: str) -> str:
    """Returns a name without what people spell differently: "FlexLoRA", "flex-lora" and "flex_lora" are one."""
    return name.lower().replace("-", "").replace("_", "")


def _folders(package: str) -> list[Path]:
    # The specification is found without running the package's own `__init__`, which may import torch.
    spec = find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"{package} is no package")
    return [Path(folder) for folder in spec.submodule_search_locations]


def _aliases(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            for line in node.body:
                yield from _values_of_aliases(line)


def _values_of_aliases(line: ast.stmt) -> list[str]:
    """Returns the texts of `aliases = (...)`, with or without an annotation; nothing for any other line."""
    if isinstance(line, ast.Assign):
        target, value = line.targets[0], line.value
    elif isinstance(line, ast.AnnAssign):
        target, value = line.target, line.value
    else:
        return []
    named = isinstance(target, ast.Name) and target.id == "aliases"
    return list(ast.literal_eval(value)) if named and value is not None else []
