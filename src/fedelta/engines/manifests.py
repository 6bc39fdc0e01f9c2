"""Reads and writes the manifests of checkpoints: small files that say which snapshot a folder holds, with their own digest."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

VERSION = 2
"""Of the manifest and of the files that belong to it; a reader refuses any other."""

CLIENT_FILE = re.compile(r"[0-9]+-[0-9]+\.memory")
"""The name of a client's file: its id, and the round in which it took part."""

DIGEST = re.compile(r"[0-9a-f]{64}")


class VersionError(ValueError):
    """A checkpoint that another release wrote."""


@dataclass(frozen=True)
class Manifest:
    """The snapshot after t rounds.

    Attributes:
        t: the rounds.
        state: the sha256 of the state's file.
        count: of the clients' files.
        digest: the exclusive or of their sha256, so that files can join and leave in any order.
        replaced: names of clients' files that the checkpoint before has and this one has not; they go when that one goes.
        gone: those that the checkpoint before replaced; they go once this one is there.
    """

    t: int
    state: str
    count: int
    digest: str
    replaced: Sequence[str]
    gone: Sequence[str]

    @property
    def name(self) -> str:
        return f"{self.t}.json"


def dump(manifest: Manifest) -> bytes:
    """Returns JSON with a digest of its own content."""
    content = {"version": VERSION, **vars(manifest), "replaced": list(manifest.replaced), "gone": list(manifest.gone)}
    return (json.dumps({**content, "sha256": _digest(content)}, indent=1) + "\n").encode()


def bytes_of(path: Path) -> bytes:
    """Returns a file's content.

    Raises:
        ValueError: for a link that leads in circles, which is a damage like others.
        OSError: for what else cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise ValueError(f"{path} was cut or altered: it is a link that leads in circles") from error


def read(path: Path) -> Manifest:
    """Returns a manifest whose digest is right.

    Raises:
        VersionError: for one of another release.
        ValueError: for one that was cut or altered.
    """
    data = bytes_of(path)
    try:
        content = json.loads(data)
        digest = content.pop("sha256")
        if digest != _digest(content):
            raise ValueError("its digest is another")
        version = content.pop("version")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} was cut or altered: {error}") from error
    if version != VERSION:
        raise VersionError(other_version(path, version))
    with suppress(TypeError):  # fields of other names
        manifest = Manifest(**content)
        # It must be written just as `dump` writes it: JSON can spell one content in many ways.
        if dump(manifest) == data and manifest.name == path.name and _has_right_types(manifest):
            return manifest
    raise ValueError(f"{path} was cut or altered: its layout is another")


def other_version(path: Path, found: object) -> str:
    return (
        f"{path}: version {VERSION} of a checkpoint was expected, found {found}; take the run up with the release that wrote "
        "it, or start a new run"
    )


def paths(folder: Path) -> list[Path]:
    """Returns the paths of the manifests in a folder, the last one first."""
    found = [p for p in folder.glob("*.json") if p.stem.isdecimal()]
    return sorted(found, key=lambda p: -int(p.stem))


def readable(folder: Path) -> list[Manifest]:
    """Returns the manifests that can be read, the last one first."""
    found: list[Manifest] = []
    for path in paths(folder):
        with suppress(ValueError, OSError):
            found.append(read(path))
    return found


def _has_right_types(manifest: Manifest) -> bool:
    """Returns whether the fields are of the right types. A name that leads out of the clients' folder is not accepted."""
    counts: list[object] = [manifest.t, manifest.count]
    digests: list[object] = [manifest.state, manifest.digest]
    names: list[object] = [*manifest.replaced, *manifest.gone]
    return (
        all(type(count) is int for count in counts)
        and all(isinstance(digest, str) and DIGEST.fullmatch(digest) for digest in digests)
        and all(isinstance(name, str) and CLIENT_FILE.fullmatch(name) for name in names)
    )


def _digest(content: object) -> str:
    return sha256(json.dumps(content).encode()).hexdigest()
