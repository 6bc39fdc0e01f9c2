"""Digests of what a cell is asked to do: the same on any machine, in any folder, at any path of its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

from fedelta.report.study import OF_THE_MACHINE
from fedelta.runs.config import RunConfig
from fedelta.runs.config.read import flat
from fedelta.runs.config.resume import fixed_values, keep_choices

LEFT_OUT = OF_THE_MACHINE | {"name", "output"}
"""Keys that say where a run is, or how it is computed, and not what."""

FILES = ("data.source", "data.validation", "data.test", "model.name", "lora.start", "method.path", "task.path")
"""Keys that may name a file or a folder, which counts by its content."""

ROUNDS = "federation.rounds"


def digest_of(config: RunConfig) -> str:
    """Returns the sha256 of a config as a suite asks for it; files count by their content, not by their path."""
    return _sha256(_counted(config))


def untrained_digest(config: RunConfig) -> str:
    """Returns the digest of what the scores before any training depend on: model, adapter, task, data and seeds."""
    kept = ("seed", "model.", "lora.", "task.", "data.", "partition.clients")
    values = {key: value for key, value in _counted(config).items() if key.startswith(kept)}
    return _sha256({"untrained": values})


def is_same_cell(there: RunConfig, asked: RunConfig) -> bool:
    """Returns whether a run's own config is the asked one, but for choices that it left open, and fewer rounds."""
    settled = keep_choices(fixed_values(there), asked)
    now, before = _counted(settled), _counted(there)
    return now.pop(ROUNDS) >= before.pop(ROUNDS) and _sha256(now) == _sha256(before)


def _sha256(values: Mapping[str, Any]) -> str:
    return sha256(json.dumps(values, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()


def _counted(config: RunConfig) -> dict[str, Any]:
    values = {key: value for key, value in flat(config.model_dump(mode="json")).items() if key not in LEFT_OUT}
    named = [str(values[f"data.{part}"]) for part in ("train", "validation", "test") if values.get(f"data.{part}")]
    for key in FILES:
        if isinstance(values.get(key), str):
            values[key] = _by_content(values[key], named if key == "data.source" else [])
    for key, value in values.items():
        if key == "data.clients" and isinstance(value, list):
            values[key] = [_by_content(str(file), []) for file in cast("list[object]", value)]
        elif key.startswith("data.clients."):
            values[key] = _by_content(str(value), [])
    return values


def _by_content(text: str, named: list[str]) -> str:
    """Returns the digest of the file or folder at a path; a text that is no path as it is.

    Args:
        text: what the config says.
        named: the files that count if it is a folder; all where none is named.
    """
    path = Path(text).expanduser()
    if path.is_file():
        return _file_digest(path)
    if not path.is_dir():
        return text
    chosen = [path / name for name in named if (path / name).is_file()]
    within = chosen or sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    return _sha256({p.relative_to(path).as_posix(): _file_digest(p) for p in within})


def _file_digest(path: Path) -> str:
    found = path.stat()
    return _read_digest(str(path.resolve()), found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=4096)
def _read_digest(path: str, size: int, changed: int) -> str:
    """Returns the sha256 of a file; read once for each state of it."""
    found = sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return f"sha256:{found.hexdigest()}"
