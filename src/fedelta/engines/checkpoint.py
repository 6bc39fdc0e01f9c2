"""Checkpoints: a snapshot on the disk, whole after a crash at any moment.

    DIR/state.safetensors             the snapshot, all but the clients' own memories
    DIR/clients/<id>-<t>.safetensors  the memory of a client, as it was replaced in round t

Replacing `state.safetensors` is the commit: it names the client files that belong to it. They are written before, so what it
names exists; those that it no longer names are removed after, and those that a crash left over by the next save or load. A
round so costs the writing of its cohort's memories only, however many clients there are. Equal snapshots give equal bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedelta.engines.guards import Size
from fedelta.engines.rounds import Snapshot
from fedelta.exchange import wire

VERSION = 1
"""Of the entries below; a reader refuses any other."""

MAIN = "state.safetensors"


def save(folder: str | Path, snapshot: Snapshot) -> None:
    """Writes a snapshot; after a crash at any moment `load` gives this one or the one before, never a mixture.

    A folder belongs to one run: a client file of the right name, from an earlier round, is taken to be the right one.

    Raises:
        OSError: for a disk that cannot be written; the checkpoint before stands.
        TypeError: for a state with an entry that cannot be written, saying where.
    """
    folder = Path(folder)
    names = _client_files(snapshot.client_rounds)
    for k, name in names.items():
        path = folder / name
        if not path.exists() or snapshot.client_rounds[k] == snapshot.t - 1:
            wire.write_file(path, snapshot.client_states[k])
    wire.write_file(folder / MAIN, _main(snapshot))
    _remove_others(folder, names.values())


def exists(folder: str | Path) -> bool:
    """Whether a round has been saved in a folder."""
    return (Path(folder) / MAIN).is_file()


def load(folder: str | Path) -> Snapshot:
    """The snapshot that was saved last, and a folder without leftovers of a crash.

    Raises:
        FileNotFoundError: for a folder without a checkpoint.
        ValueError: for files that were cut, that are pickles or of another format or version, naming them.
    """
    path = Path(folder) / MAIN
    if not exists(folder):
        raise FileNotFoundError(f"no checkpoint in {folder}: {MAIN} is missing; resume needs a run that finished a round")
    content = wire.read_file(path)
    if content.get("version") != VERSION:
        found = content.get("version", "no checkpoint at all")
        raise ValueError(
            f"{path}: version {VERSION} of a checkpoint was expected, found {found}; use the release that wrote it"
        )
    rounds = {int(k): t for k, t in content["client_rounds"].items()}
    names = _client_files(rounds)
    states = {k: wire.read_file(path.parent / name) for k, name in names.items()}
    _remove_others(path.parent, names.values())
    versions = {int(k): v for k, v in content["base_versions"].items()}
    sizes = {int(k): [Size(*x) for x in found] for k, found in content.get("sizes", {}).items()}
    return Snapshot(content["t"], content["seed"], content["state"], states, rounds, versions, content["notes"], sizes)


def _main(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "version": VERSION,
        "t": snapshot.t,
        "seed": snapshot.seed,
        "state": snapshot.state,
        "client_rounds": _by_name(snapshot.client_rounds),
        "base_versions": _by_name(snapshot.base_versions),
        "notes": snapshot.notes,
        "sizes": {str(k): [tuple(x) for x in snapshot.sizes[k]] for k in sorted(snapshot.sizes)},
    }


def _by_name(table: Mapping[int, int]) -> dict[str, int]:
    """Keys as strings, ascending: equal snapshots must give equal bytes, whatever the order in which clients came."""
    return {str(k): table[k] for k in sorted(table)}


def _client_files(client_rounds: Mapping[int, int]) -> dict[int, str]:
    return {k: f"clients/{k}-{t}.safetensors" for k, t in client_rounds.items()}


def _remove_others(folder: Path, keep: Iterable[str]) -> None:
    """Removes client files that the checkpoint does not name, and half-written files."""
    kept = {folder / name for name in keep}
    found = [*folder.glob("clients/*.safetensors"), *folder.glob("clients/.*.tmp"), *folder.glob(f".{MAIN}.tmp")]
    for path in sorted(set(found) - kept):
        os.unlink(path)
