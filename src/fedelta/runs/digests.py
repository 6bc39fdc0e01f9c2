"""Digests of what a cell is asked to do: the same on any machine, in any folder, at any path of its files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias, cast

from fedelta.report.study import OF_THE_MACHINE
from fedelta.runs.config import RunConfig
from fedelta.runs.config.allowed import TRAINER, function_in
from fedelta.runs.config.paths import PARTS, holds_path
from fedelta.runs.config.read import flat
from fedelta.runs.config.resume import fixed_values, keep_choices

LEFT_OUT = OF_THE_MACHINE | {"name", "output"}
"""Keys that say where a run is, or how it is computed, and not what."""

SOURCE, ROUNDS = "data.source", "federation.rounds"

Files: TypeAlias = Mapping[str, Mapping[str, str]]
"""Digests of files and folders, by the key of a config that names them and by their name."""

CHANGED_DEFAULTS = 0
"""How often a key's default was changed: cells that were finished before are then others, since they left the key out."""

DEFAULTS = flat(RunConfig().model_dump(mode="json"))
"""By dotted key, what a config has that says nothing."""


@dataclass(frozen=True)
class Known:
    """Digests of files that a store's cells were made of, for a machine that has the store and not the files.

    Attributes:
        digests: by key of the config and name, of the file or the folder.
    """

    digests: Mapping[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])


NOTHING_KNOWN = Known()


def digest_of(config: RunConfig, known: Known = NOTHING_KNOWN) -> str:
    """Returns the sha256 of a config as a suite asks for it; files count by their content, not by their path.

    Args:
        config: of a cell.
        known: stands in for files that are not here.
    """
    return _sha256(_counted(config, known))


def files_of(config: RunConfig) -> Files:
    """Returns the digest of each file or folder that a config names and that is here."""
    found: dict[str, dict[str, str]] = {}
    for key, text, named in _places(_flat(config)):
        digest = _content(text, named)
        if digest is not None:
            found.setdefault(key, {})[_name(text, named)] = digest
    return found


def untrained_digest(config: RunConfig, known: Known = NOTHING_KNOWN) -> str:
    """Returns the digest of what the scores before any training depend on: model, adapter, task, data and seeds."""
    kept = ("seed", "model.", "lora.", "task.", "data.", "partition.clients")
    values = {key: value for key, value in _counted(config, known).items() if key.startswith(kept)}
    return _sha256({"untrained": values})


def is_same_cell(there: RunConfig, asked: RunConfig, files: Files = MappingProxyType({})) -> bool:
    """Returns whether a run's own config is the asked one, but for choices that it left open, and fewer rounds.

    Args:
        there: the config of the run.
        asked: of a cell.
        files: of the run when it began, from `files_of`: what both configs name may have been edited since.
    """
    if _edited(files, files_of(asked)):
        return False
    settled = keep_choices(fixed_values(there), asked)
    now, before = _counted(settled), _counted(there)
    now.pop(ROUNDS, None)
    before.pop(ROUNDS, None)
    return asked.federation.rounds >= there.federation.rounds and _sha256(now) == _sha256(before)


def _edited(before: Files, now: Files) -> bool:
    """Returns whether a file of the same key and name has another content than it had."""
    return any(before.get(key, {}).get(name, digest) != digest for key, named in now.items() for name, digest in named.items())


def _sha256(values: Mapping[str, Any]) -> str:
    return sha256(json.dumps(values, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()


def _flat(config: RunConfig) -> dict[str, Any]:
    values = {key: value for key, value in flat(config.model_dump(mode="json")).items() if key not in LEFT_OUT}
    # A key at its default counts for nothing, so that a key which a later version adds makes no finished cell another one.
    return {key: value for key, value in values.items() if key not in DEFAULTS or DEFAULTS[key] != value}


def _counted(config: RunConfig, known: Known = NOTHING_KNOWN) -> dict[str, Any]:
    values = _flat(config)
    values |= {"changed defaults": CHANGED_DEFAULTS} if CHANGED_DEFAULTS else {}
    contents: dict[str, list[str]] = {}
    for key, text, named in _places(values):
        found = _content(text, named) or known.digests.get((key, _name(text, named)))
        contents.setdefault(key, []).append(found or text)
    if TRAINER in contents:
        contents[TRAINER].append(function_in(values[TRAINER])[1])
        contents[TRAINER] = [":".join(contents[TRAINER])]
    return values | {key: found if isinstance(values[key], list) else found[0] for key, found in contents.items()}


def _places(values: Mapping[str, Any]) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Yields key and text of all that may be the path of a file or a folder, and the names that count within a folder."""
    named = [str(values[f"data.{part}"]) for part in PARTS if values.get(f"data.{part}")]
    for key, value in values.items():
        for text in cast("list[object]", value) if isinstance(value, list) else [value]:
            if isinstance(text, str) and holds_path(key, text):
                yield key, function_in(text)[0] if key == TRAINER else text, named if key == SOURCE else ()


def _name(text: str, named: Sequence[str]) -> str:
    """Returns what a file or a folder is called wherever it lies, with what counts within it."""
    return "/".join([Path(text).name, *sorted(Path(part).name for part in named)])


def _content(text: str, named: Sequence[str]) -> str | None:
    """Returns the digest of the file or folder at a path; None where there is none.

    Args:
        text: what the config says.
        named: the files that count if it is a folder; all where none is named.
    """
    path = Path(text)
    if not path.is_absolute():
        return None  # a config's paths are: anything else is a name
    if path.is_file():
        return _file_digest(path)
    if not path.is_dir():
        return None
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
