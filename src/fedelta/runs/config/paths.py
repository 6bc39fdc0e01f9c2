"""Says which keys of a config hold paths, and places them: a config's own paths are relative to the file that holds them.

A path that comes by `--set`, or in a mapping, is relative to the working directory. What is placed is absolute, so that a config
may be written down elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

from fedelta.registry import is_code

Rule: TypeAlias = Callable[[Any, Path], Any]
"""(value, folder) -> the value with its path placed in the folder; a value that holds no path comes back as it is."""


def place(value: Any, folder: Path) -> Any:
    """Returns a path as an absolute one; `~` is the user's home."""
    return os.path.abspath(folder / Path(value).expanduser()) if isinstance(value, str | os.PathLike) else value


def place_code(value: Any, folder: Path) -> Any:
    """Returns the path of a Python file as an absolute one, and a name as it is."""
    return place(value, folder) if is_code(value) else value


RULES: Mapping[str, Rule] = {
    # a method or a task: `method: ./mine.py`, `method: {name: ./mine.py}` (which `--set method.trim=1` makes of it), and `path`
    "method": place_code,
    "method.name": place_code,
    "method.path": place,
    "task": place_code,
    "task.name": place_code,
    "task.path": place,
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
        value = {name: placed(f"{key}.{name}" if key else str(name), part, folder) for name, part in inner.items()}
    rule = RULES.get(key)
    return value if rule is None else rule(value, folder)
