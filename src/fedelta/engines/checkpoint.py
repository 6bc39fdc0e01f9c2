"""Checkpoints: the last two snapshots on the disk, each whole after a crash at any moment.

    DIR/<t>.json                      the manifest of the snapshot after t rounds: its files, each with its sha256
    DIR/state-<t>.safetensors         the snapshot, all but the clients' own memories; state-<t>.again.safetensors, where it was
                                      saved anew after the same round, beside the file that the manifest named until then
    DIR/clients/<id>-<t>.safetensors  the memory of a client, as it was replaced in round t

Writing the manifest is the commit. The files that it names are written before, so what it names exists; those that neither of
the last two names are removed after, and those that a crash left over by the next save or load. A round so costs the writing of
its cohort's memories only, however many clients there are. Equal snapshots give equal bytes.

Every byte is covered by a digest, which is compared when a snapshot is read. If the last one is damaged, the one before serves.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from fedelta.engines.guards import Size
from fedelta.engines.rounds import Snapshot
from fedelta.exchange import files, wire

VERSION = 2
"""Of the manifest and of the entries below; a reader refuses any other."""

BEFORE_MANIFESTS = "state.safetensors"
"""The file of a checkpoint of version 1."""

logger = logging.getLogger("fedelta.resume")


class VersionError(ValueError):
    """A checkpoint that another release wrote."""


@dataclass(frozen=True)
class _Manifest:
    """The files of a snapshot by name, each with its sha256."""

    t: int
    digests: Mapping[str, str]

    @property
    def name(self) -> str:
        return f"{self.t}.json"


def save(folder: str | Path, snapshot: Snapshot) -> None:
    """Writes a snapshot; after a crash at any moment `load` gives this one or the one before, never a mixture.

    The one before may be of the same round, with other notes.

    A folder belongs to one run: a client file of the right name, from an earlier round, is taken to be the right one.

    Raises:
        OSError: for a disk that cannot be written; the checkpoint before stands.
        TypeError: for a state with an entry that cannot be written, saying where.
    """
    folder = Path(folder)
    found = _manifests(folder)
    before = next((m for m in found if m.t < snapshot.t), _Manifest(0, {}))
    taken = {name for m in found if m.t == snapshot.t and _is_whole(folder, m) for name in m.digests}
    digests: dict[str, str] = {}
    for k, name in _client_files(snapshot.client_rounds).items():
        path = folder / name
        if not path.exists() or snapshot.client_rounds[k] == snapshot.t - 1:
            digests[name] = _write(path, snapshot.client_states[k])
        else:
            digests[name] = before.digests.get(name) or _digest(path.read_bytes())
    name = next(name for name in _state_files(snapshot.t) if name not in taken)
    digests[name] = _write(folder / name, _main(snapshot))
    manifest = _Manifest(snapshot.t, digests)
    files.commit(folder / manifest.name, _dump(manifest))
    _remove_others(folder, [manifest, before])


def exists(folder: str | Path) -> bool:
    """Whether a round has been saved in a folder."""
    return (Path(folder) / BEFORE_MANIFESTS).is_file() or bool(_manifest_files(Path(folder)))


def load(folder: str | Path) -> Snapshot:
    """The snapshot that was saved last, and a folder without leftovers of a crash.

    If it is damaged, that is said on the log, and the snapshot before is returned.

    Raises:
        FileNotFoundError: for a folder without a checkpoint.
        ValueError: for files that were cut or altered, or that another release wrote, naming them.
    """
    folder = Path(folder)
    if not exists(folder):
        raise FileNotFoundError(f"no checkpoint in {folder}: resume needs a run that finished a round")
    paths = _manifest_files(folder)
    if not paths:
        raise VersionError(_other_version(folder / BEFORE_MANIFESTS, 1))
    damages: list[str] = []
    for path in paths:
        try:
            snapshot = _load(path)
        except VersionError:
            raise
        except (ValueError, OSError) as error:
            damages.append(str(error))
            continue
        if damages:  # the damaged files stay for whoever wants to look at them, until their round is done again
            logger.warning("the last checkpoint is damaged (%s): going on after round %d", "; ".join(damages), snapshot.t - 1)
        else:
            _remove_others(folder, _manifests(folder)[:2])
        return snapshot
    raise ValueError(f"no checkpoint of {folder} can be read: {'; '.join(damages)}; copy it from a backup, or start a new run")


def _load(path: Path) -> Snapshot:
    manifest = _read_manifest(path)
    contents = {name: _read(path.parent / name, digest) for name, digest in manifest.digests.items()}
    content = next(contents[name] for name in _state_files(manifest.t) if name in contents)
    rounds = {int(k): t for k, t in content["client_rounds"].items()}
    states = {k: contents[name] for k, name in _client_files(rounds).items()}
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


def _state_files(t: int) -> tuple[str, str]:
    """The two names that a state can have: a manifest names one, while a later one is written to the other."""
    return f"state-{t}.safetensors", f"state-{t}.again.safetensors"


# --- files and manifests ---------------------------------------------------------------------------------------------


def _write(path: Path, content: Mapping[str, Any]) -> str:
    data = wire.encode(content)
    files.commit(path, data)
    return _digest(data)


def _read(path: Path, digest: str) -> Mapping[str, Any]:
    data = path.read_bytes()
    if _digest(data) != digest:
        raise ValueError(f"{path} was cut or altered: its bytes are not those that the run wrote")
    return wire.decode(data)


def _is_whole(folder: Path, manifest: _Manifest) -> bool:
    """Whether the files that a manifest names are there, unaltered."""
    paths = [(folder / name, digest) for name, digest in manifest.digests.items()]
    return all(path.is_file() and _digest(path.read_bytes()) == digest for path, digest in paths)


def _digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def _dump(manifest: _Manifest) -> bytes:
    """JSON with a digest of its own content."""
    content = {"version": VERSION, "t": manifest.t, "files": dict(sorted(manifest.digests.items()))}
    return (json.dumps({**content, "sha256": _digest(json.dumps(content).encode())}, indent=1) + "\n").encode()


def _read_manifest(path: Path) -> _Manifest:
    """A manifest whose digest is right.

    Raises:
        VersionError: for one of another release.
        ValueError: for one that was cut or altered.
    """
    data = path.read_bytes()
    try:
        content = json.loads(data)
        digest = content.pop("sha256")
        if digest != _digest(json.dumps(content).encode()):
            raise ValueError("its digest is another")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} was cut or altered: {error}") from error
    if content["version"] != VERSION:
        raise VersionError(_other_version(path, content["version"]))
    manifest = _Manifest(content["t"], content["files"])
    if _dump(manifest) != data:
        raise ValueError(f"{path} was cut or altered: its layout is another")
    return manifest


def _other_version(path: Path, found: object) -> str:
    return (
        f"{path}: version {VERSION} of a checkpoint was expected, found {found}; take the run up with the release that wrote "
        "it, or start a new run"
    )


def _manifest_files(folder: Path) -> list[Path]:
    """The manifests, the last one first."""
    found = [p for p in folder.glob("*.json") if p.stem.isdecimal()]
    return sorted(found, key=lambda p: -int(p.stem))


def _manifests(folder: Path) -> list[_Manifest]:
    """Those that can be read, the last one first."""
    found: list[_Manifest] = []
    for path in _manifest_files(folder):
        try:
            found.append(_read_manifest(path))
        except (ValueError, OSError):
            continue
    return found


def _remove_others(folder: Path, keep: Iterable[_Manifest]) -> None:
    """Removes the files that no kept manifest names, and half-written ones; manifests go first, before what they name."""
    kept = {folder / name for manifest in keep for name in (manifest.name, *manifest.digests)}
    patterns = ("state-*.safetensors", "clients/*.safetensors", ".*.tmp", "clients/.*.tmp")
    others = sorted(path for pattern in patterns for path in folder.glob(pattern))
    for path in [*_manifest_files(folder), *others]:
        if path not in kept:
            os.unlink(path)
