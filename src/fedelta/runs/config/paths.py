"""Says which keys of a config hold paths, and places them: a config's own paths are relative to the file that holds them.

A path that comes by `--set`, or in a mapping, is relative to the working directory. What is placed is absolute, so that a
config may be written down elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

from fedelta.data.client_files import by_name, matching
from fedelta.data.endings import is_place, looks_like_path
from fedelta.models.aliases import ALIASES
from fedelta.registry import is_code
from fedelta.runs.config.section import ConfigError

Rule: TypeAlias = Callable[[Any, Path], Any]
"""(value, folder) -> the value with its path placed in the folder; a value that holds no path comes back as it is."""


def place(value: Any, folder: Path) -> Any:
    """Returns a path as an absolute one; `~` is the user's home."""
    return os.path.abspath(folder / Path(value).expanduser()) if isinstance(value, str | os.PathLike) else value


def place_code(choice: Any, folder: Path) -> Any:
    """Returns a choice by name or by a Python file, in any of its forms, with the path of the file as an absolute one."""
    if not isinstance(choice, Mapping):
        return place(choice, folder) if is_code(choice) else choice
    given = cast("Mapping[str, Any]", choice)
    if given.get("path") is None and is_code(given.get("name")):
        return {**given, "name": place(given["name"], folder)}
    return {**given, "path": place(given["path"], folder)} if "path" in given else choice


def place_source(value: Any, folder: Path) -> Any:
    """Returns the path of a data source as an absolute one; the name of a source, or of a data set on the Hub, as it is."""
    return place(value, folder) if isinstance(value, str) and is_place(value, folder) else value


def place_model(value: Any, folder: Path) -> Any:
    """Returns a model's folder as an absolute path; an alias, or the name of a model on the Hub, as it is."""
    if not isinstance(value, str) or value in ALIASES:
        return value
    return place(value, folder) if looks_like_path(value) or (folder / value).is_dir() else value


def place_clients(value: Any, folder: Path) -> Any:
    """Returns the files of clients by name, each as an absolute path; a pattern is looked up in the folder.

    Raises:
        ConfigError: for a pattern that does not mean several files.
    """
    if isinstance(value, str):
        try:
            return by_name(matching(value, folder))
        except ValueError as error:
            raise ConfigError(f"data.clients: {error}") from None
    if isinstance(value, Mapping):
        return {name: place(file, folder) for name, file in cast("Mapping[str, Any]", value).items()}
    return [place(file, folder) for file in cast("list[Any]", value)] if isinstance(value, list) else value


def place_part(value: Any, folder: Path) -> Any:
    """Returns the path of a file of rows, given alone by `--set data.test=...`, as an absolute one if it is there.

    Else it may be the name of a split, or of a file in the source's folder.
    """
    return place(value, folder) if isinstance(value, str) and (folder / value).is_file() else value


def place_data(section: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the section `data` with its paths placed: its parts are paths where the source is a file, or clients have files.

    In a source that is a folder they are names of files in it; on the Hub, names of splits.
    """
    rules = {"source": place_source, "path": place, "clients": place_clients}
    found = {key: rules[key](value, folder) if key in rules else value for key, value in section.items()}
    source = found.get("source")
    of_files = isinstance(source, str) and os.path.isabs(source) and not os.path.isdir(source)
    if of_files or found.get("clients") is not None:
        found |= {part: place(found[part], folder) for part in PARTS if part in found}
    return found


PARTS = ("train", "validation", "test")

SECTIONS: Mapping[str, Callable[[Mapping[str, Any], Path], dict[str, Any]]] = {"data": place_data}
"""Sections in which it takes several keys to tell what is a path."""

RULES: Mapping[str, Rule] = {
    "data.source": place_source,
    "data.path": place,
    "data.clients": place_clients,
    **{f"data.{part}": place_part for part in PARTS},
    "model": place_model,
    "model.name": place_model,
    "lora.start": place,
    "method": place_code,  # `./mine.py`, `{path: ./mine.py}`, or `{name: ./mine.py}`, which `--set method.trim=1` makes of it
    "method.path": place,
    "task": place_code,
    "task.path": place,
    "training.trainer": place,  # with the name of a function behind the path, which stays
}
"""By dotted key, what places its path. A new key with a path needs one line here."""


def resolved(raw: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the keys and values of a config with every path placed.

    Args:
        raw: as it was read, of any form: what is wrong with a value is said where it is validated.
        folder: in which the file lies that holds them.
    """
    return cast("dict[str, Any]", placed("", raw, folder))


def placed(key: str, value: Any, folder: Path) -> Any:
    """Returns the value of one dotted key, with all that it holds, with every path placed."""
    if isinstance(value, Mapping):
        inner = cast("Mapping[str, Any]", value)
        if key in SECTIONS:
            return SECTIONS[key](inner, folder)
        value = {name: placed(f"{key}.{name}" if key else str(name), part, folder) for name, part in inner.items()}
    rule = RULES.get(key)
    return value if rule is None else rule(value, folder)


def holds_path(key: str, value: object) -> bool:
    """Returns whether a value of a dotted key may be a path, once it is placed; lists and mappings of paths are no value."""
    return key in RULES or key.startswith("data.clients.") or (key in ("method.name", "task.name") and is_code(value))


def relative(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns a config with its placed paths relative to a folder, so that it is the same wherever both lie."""
    return with_paths(config, lambda path: Path(os.path.relpath(path, folder)).as_posix())


def with_paths(config: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Returns a config, or values by dotted key, with each absolute path changed; a text of any other key is no path.

    A prompt or a label may begin with a slash, too.
    """
    return cast("dict[str, Any]", _changed("", config, change))


def _changed(key: str, value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, Mapping):
        inner = cast("Mapping[str, Any]", value)
        return {name: _changed(f"{key}.{name}" if key else name, part, change) for name, part in inner.items()}
    if isinstance(value, list):
        return [_changed(key, part, change) for part in cast("list[Any]", value)]
    return change(value) if isinstance(value, str) and holds_path(key, value) and os.path.isabs(value) else value


def shortened(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config, or values by dotted key, in which of an absolute path the name alone is left."""
    return with_paths(values, lambda path: Path(path).name)
