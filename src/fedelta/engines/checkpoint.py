"""Checkpoints: the last two snapshots on the disk, each whole after a crash at any moment.

    DIR/<t>.json                      the manifest of the snapshot after t rounds
    DIR/state-<t>.safetensors         the snapshot, without what it knows of each client
    DIR/state-<t>.again.safetensors   the same, saved once more after that round: the first stays until the new manifest is in
    DIR/clients/<id>-<t>.memory       what it knows of one client, which took part last in round t: memory and base version

Writing the manifest is the commit. All that it names is written before it. What neither of the last two snapshots needs is
removed after it, and what a crash left over is removed by the next load. Equal snapshots give equal bytes.

A round costs what its cohort costs, however many clients there are: it writes the cohort's files, and no list of the others.
A snapshot's clients are the files of earlier rounds in the folder, except those that the manifest names as replaced. The next
load sees if one is missing, foreign or too old: the manifest has the number of the files and the exclusive or of their digests,
which a round brings up to date from the files that it replaces.

Every byte is covered by a digest, which is compared when a snapshot is read. A manifest and a client's file hold their own, and
the manifest holds that of the state. If the last snapshot is damaged, the one before serves.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from fedelta.engines import manifests
from fedelta.engines.guards import Size
from fedelta.engines.manifests import Manifest, VersionError
from fedelta.engines.rounds import Snapshot
from fedelta.exchange import files, wire

BEFORE_MANIFESTS = "state.safetensors"
"""The file of a checkpoint of the first version."""

CLIENTS = "clients"
"""The folder of the clients' files."""

DIGEST = 64
"""Characters of a sha256, with which a client's file begins."""

HALF_WRITTEN = re.compile(r"\.([0-9]+\.json|state-[0-9]+(\.again)?\.safetensors)\.tmp")
"""The names under which a kill may leave what a checkpoint commits."""

logger = logging.getLogger("fedelta.resume")


@dataclass(frozen=True)
class _Clients:
    """Holds a manifest's entries on clients: the number of their files, their digest, and the files they replaced."""

    count: int
    digest: int
    replaced: Sequence[str]


class _StaleError(Exception):
    """The checkpoint before is not one that this round could be added to, so that all clients have to be written."""


def save(folder: str | Path, snapshot: Snapshot) -> None:
    """Writes a snapshot; after a crash at any moment `load` gives this one or the one before, never a mixture.

    A folder belongs to one run: a client's file of the right name, from an earlier round, is taken to be the right one. It
    costs what the last round's cohort costs if the round before is in the folder, else what all clients cost.

    Raises:
        OSError: for a disk that cannot be written; the checkpoint before stands.
        TypeError: for a state with an entry that cannot be written, saying where.
    """
    folder = Path(folder)
    state = wire.encode(_main(snapshot))
    # A manifest of this round or a later one: its files may lie in the folder, and are not to be taken for this snapshot's.
    again = any(int(path.stem) >= snapshot.t for path in manifests.paths(folder))
    there = manifests.readable(folder)
    before = next((m for m in there if m.t < snapshot.t), None)
    # Asked before anything is written: afterwards a damaged snapshot might look whole, and its state would be spared.
    state_file = _free_state_file(folder, snapshot.t, there)
    try:
        if again or before is None:
            raise _StaleError
        clients = _save_cohort(folder, snapshot, before)
    except _StaleError:
        clients = _save_all(folder, snapshot, before)
    # The order of the writes: clients, state, manifest. Until the manifest is there, the checkpoint before is the last one.
    files.commit(folder / state_file, state)
    gone = before.replaced if before is not None else ()
    manifest = Manifest(snapshot.t, _digest(state), clients.count, f"{clients.digest:064x}", clients.replaced, gone)
    files.commit(folder / manifest.name, manifests.dump(manifest))
    _remove_older(folder, [manifest] if before is None else [manifest, before])
    _remove(folder / CLIENTS / name for name in gone)


def exists(folder: str | Path) -> bool:
    """Returns whether a round has been saved in a folder."""
    return (Path(folder) / BEFORE_MANIFESTS).is_file() or bool(manifests.paths(Path(folder)))


def load(folder: str | Path) -> Snapshot:
    """Returns the snapshot that was saved last, and removes what a crash left over.

    If it is damaged, that is said on the log, and the snapshot before is returned.

    Raises:
        FileNotFoundError: for a folder without a checkpoint.
        IsADirectoryError: for a folder in the place of a file.
        ValueError: for files that were cut or altered, or that another release wrote, naming them.
    """
    folder = Path(folder)
    if not exists(folder):
        raise FileNotFoundError(f"no checkpoint in {folder}: resume needs a run that finished a round")
    _demand_files(folder)
    paths = manifests.paths(folder)
    if not paths:
        raise VersionError(manifests.other_version(folder / BEFORE_MANIFESTS, 1))
    damages: list[str] = []
    for path in paths:
        try:
            manifest = manifests.read(path)
            snapshot = _load(folder, manifest)
        except VersionError:
            raise
        except (ValueError, OSError) as error:
            damages.append(str(error))
            continue
        # Damaged files stay for whoever wants to look at them, until their round is done again.
        if damages:
            logger.warning("the last checkpoint is damaged (%s): going on after round %d", "; ".join(damages), snapshot.t - 1)
        else:
            _remove_older(folder, manifests.readable(folder)[:2])
            _remove_leftovers(folder, manifest)
        return snapshot
    raise ValueError(f"no checkpoint of {folder} can be read: {'; '.join(damages)}; copy it from a backup, or start a new run")


def _load(folder: Path, manifest: Manifest) -> Snapshot:
    content = wire.decode(_read(folder / _kept_state_file(folder, manifest), manifest.state))
    names = _live(_names(folder), manifest)
    count, total = 0, 0
    memories: dict[int, Mapping[str, Any]] = {}
    rounds, versions, touched = dict[int, int](), dict[int, int](), dict[int, int]()
    for k, name in names.items():
        client, digest = _read_client(folder / CLIENTS / name)
        count, total = count + 1, total ^ digest
        touched[k] = client["touched"]
        if client["memory"]:
            memories[k] = client["memory"]
        if client["round"] is not None:
            rounds[k] = client["round"]
        if client["base_version"]:
            versions[k] = client["base_version"]
    if (count, f"{total:064x}") != (manifest.count, manifest.digest):
        raise ValueError(
            f"{folder / CLIENTS} was cut or altered: {manifest.name} has {manifest.count} clients' files, and the {count} that "
            "are here are not all of them the same"
        )
    return Snapshot(
        manifest.t,
        content["seed"],
        content["state"],
        memories,
        rounds,
        versions,
        touched=touched,
        notes=content["notes"],
        sizes=_sizes(content["sizes"]),
    )


def _sizes(stored: Mapping[str, Sequence[tuple[float, float]]]) -> dict[int, list[Size]]:
    return {int(k): [Size(*x) for x in sizes] for k, sizes in stored.items()}


def _main(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "t": snapshot.t,
        "seed": snapshot.seed,
        "state": snapshot.state,
        "notes": snapshot.notes,
        "sizes": {str(k): [tuple(x) for x in snapshot.sizes[k]] for k in sorted(snapshot.sizes)},
    }


# --- clients ---------------------------------------------------------------------------------------------------------


def _save_cohort(folder: Path, snapshot: Snapshot, before: Manifest) -> _Clients:
    """Writes the files of the clients that the last round touched; returns what the manifest says of all.

    Raises:
        _StaleError: before anything is written, if `before` is of another round, or files that it has are gone or damaged.
    """
    if before.t != snapshot.t - 1 or snapshot.before is None:
        raise _StaleError
    replaced = sorted(_client_file(k, t) for k, t in snapshot.before.items() if t is not None)
    touched = {k: snapshot.touched[k] for k in sorted(snapshot.before) if k in snapshot.touched}
    count = before.count - len(replaced) + len(touched)
    if count != len(snapshot.touched):
        raise _StaleError
    # The exclusive or takes a file out just as it puts one in, so that the others need not be read.
    digest = int(before.digest, 16)
    for name in replaced:
        digest ^= _old_digest(folder / CLIENTS / name)
    return _Clients(count, digest ^ _write_clients(folder, snapshot, touched), replaced)


def _save_all(folder: Path, snapshot: Snapshot, before: Manifest | None) -> _Clients:
    """Makes the clients' files those of a snapshot, whatever lies in the folder; returns what the manifest says of them."""
    there = _names(folder)
    live = set[str]() if before is None else set(_live(there, before).values())
    known, digest, anew = snapshot.known(), 0, dict[int, int]()
    for k in sorted(known):
        name = _client_file(k, known[k])
        try:
            # A file of an earlier round cannot have changed since; one of the last round may be of an abandoned attempt.
            if name not in there or (known[k] == snapshot.t - 1 and not _lies_there(folder, snapshot, k, known[k])):
                raise _StaleError
            digest ^= _old_digest(folder / CLIENTS / name)
        except _StaleError:
            anew[k] = known[k]
    names = {_client_file(k, t) for k, t in known.items()}
    # A file that belongs to no checkpoint would be taken for a part of this one.
    of_nobody = there - names - live - set(() if before is None else before.replaced)
    _remove(folder / CLIENTS / name for name in sorted(of_nobody))
    return _Clients(len(known), digest ^ _write_clients(folder, snapshot, anew), sorted(live - names))


def _write_clients(folder: Path, snapshot: Snapshot, touched: Mapping[int, int]) -> int:
    """Writes the files of some clients, by id with the round of their names; returns the exclusive or of their digests."""
    total = 0

    def contents() -> Iterator[tuple[str, bytes]]:
        nonlocal total
        for k, t in touched.items():
            data = _client_bytes(snapshot, k, t)
            total ^= int(data[:DIGEST], 16)
            name = _client_file(k, t)
            if (folder / CLIENTS / name).is_symlink():  # it would be written where the link leads
                os.unlink(folder / CLIENTS / name)
            yield name, data

    if touched:
        files.write_all(folder / CLIENTS, contents())
    return total


def _lies_there(folder: Path, snapshot: Snapshot, k: int, t: int) -> bool:
    """Returns whether a client's file has the right bytes already: rewritten, it would be half-written for a moment."""
    path = folder / CLIENTS / _client_file(k, t)
    return not path.is_symlink() and path.read_bytes() == _client_bytes(snapshot, k, t)


def _client_bytes(snapshot: Snapshot, k: int, t: int) -> bytes:
    body = wire.encode(_client(snapshot, k, t))
    return _digest(body).encode() + body


def _client(snapshot: Snapshot, k: int, t: int) -> dict[str, Any]:
    """Returns all that a snapshot knows of a client. With its id and round in it, no two files have the same digest."""
    return {
        "client": k,
        "touched": t,
        "round": snapshot.client_rounds.get(k),
        "base_version": snapshot.base_versions.get(k, 0),
        "memory": snapshot.client_states.get(k, {}),
    }


def _read_client(path: Path) -> tuple[Mapping[str, Any], int]:
    """Returns what is known of a client, and the digest of its file.

    Raises:
        ValueError: for a file that was cut or altered.
    """
    data = manifests.bytes_of(path)
    digest = data[:DIGEST].decode("latin-1")
    if _digest(data[DIGEST:]) != digest:
        raise ValueError(_altered(path))
    client = wire.decode(data[DIGEST:])
    if _client_file(client["client"], client["touched"]) != path.name:
        raise ValueError(f"{path} was cut or altered: it is the file of client {client['client']}, round {client['touched']}")
    return client, int(digest, 16)


def _old_digest(path: Path) -> int:
    """Returns the digest of a client's file; raises _StaleError if it is not there, or damaged."""
    try:
        return _read_client(path)[1]
    except (ValueError, OSError) as error:
        raise _StaleError from error


def _client_file(k: int, t: int) -> str:
    return f"{k}-{t}.memory"


def _names(folder: Path) -> set[str]:
    """Returns the names of clients' files in a folder; what a person put beside them is left alone."""
    with suppress(FileNotFoundError):
        return {name for name in os.listdir(folder / CLIENTS) if manifests.CLIENT_FILE.fullmatch(name)}
    return set()


def _demand_files(folder: Path) -> None:
    """Raises IsADirectoryError where a folder lies in the place of a file."""
    places = [*manifests.paths(folder), *folder.glob("state-*.safetensors")]
    with suppress(FileNotFoundError), os.scandir(folder / CLIENTS) as found:
        own = (entry for entry in found if manifests.CLIENT_FILE.fullmatch(entry.name))
        places += [Path(entry) for entry in own if entry.is_symlink() or entry.is_dir()]
    for path in places:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder, where a checkpoint has a file: move it elsewhere, and try again")


def _live(names: Iterable[str], manifest: Manifest) -> dict[int, str]:
    """Returns by client id, ascending, each client's latest file of a round before the manifest's that was not replaced."""
    found: dict[int, int] = {}
    for name in set(names).difference(manifest.replaced, manifest.gone):
        k, _, t = name.removesuffix(".memory").partition("-")
        if k.isdecimal() and t.isdecimal() and name == _client_file(int(k), int(t)) and int(t) < manifest.t:
            found[int(k)] = max(int(t), found.get(int(k), 0))
    return {k: _client_file(k, found[k]) for k in sorted(found)}


def _state_files(t: int) -> tuple[str, str]:
    """Returns the two names that a state may have: a snapshot that is saved once more is written beside the first."""
    return f"state-{t}.safetensors", f"state-{t}.again.safetensors"


def _named_state_file(folder: Path, manifest: Manifest) -> str | None:
    """Returns which of the two names the manifest means, by its digest; None where neither has it."""
    names = (name for name in _state_files(manifest.t) if (folder / name).is_file())
    return next((name for name in names if _digest((folder / name).read_bytes()) == manifest.state), None)


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    try:
        _load(folder, manifest)
    except (ValueError, OSError):
        return False
    return True


def _free_state_file(folder: Path, t: int, there: Sequence[Manifest]) -> str:
    """Returns a name for the state that no readable checkpoint uses: a crash before the commit then leaves that one whole."""
    taken = {_named_state_file(folder, m) for m in there if m.t == t and _is_whole(folder, m)}
    return next(name for name in _state_files(t) if name not in taken)


# --- files ---------------------------------------------------------------------------------------------------------


def _read(path: Path, digest: str) -> bytes:
    data = manifests.bytes_of(path)
    if _digest(data) != digest:
        raise ValueError(_altered(path))
    return data


def _altered(path: Path) -> str:
    return f"{path} was cut or altered: its bytes are not those that the run wrote"


def _digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def _remove_older(folder: Path, keep: Sequence[Manifest]) -> None:
    """Removes half-written files, and all manifests and states but those to keep; a manifest before its state."""
    kept: set[Path] = set()
    for manifest in keep:
        kept |= {folder / manifest.name, folder / _kept_state_file(folder, manifest)}
    half_written = [path for path in folder.glob(".*.tmp") if HALF_WRITTEN.fullmatch(path.name)]
    others = sorted([*folder.glob("state-*.safetensors"), *half_written])
    _remove(path for path in [*manifests.paths(folder), *others] if path not in kept)


def _kept_state_file(folder: Path, manifest: Manifest) -> str:
    """Returns the name of a manifest's state; reads bytes only if both names are there: they may be many."""
    there = [name for name in _state_files(manifest.t) if (folder / name).is_file()]
    named = _named_state_file(folder, manifest) if len(there) > 1 else None
    return named or (there or _state_files(manifest.t))[0]


def _remove_leftovers(folder: Path, manifest: Manifest) -> None:
    """Removes the clients' files that belong neither to the snapshot nor to the one before it."""
    there = _names(folder)
    kept = {*_live(there, manifest).values(), *manifest.replaced}
    _remove(folder / CLIENTS / name for name in sorted(there - kept))


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(FileNotFoundError):
            os.unlink(path)
