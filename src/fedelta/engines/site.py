"""A site's side of every engine: it answers letters from its own data, and keeps what it remembers on its own disk.

A `Site` may be made anew for each message: what lasts is in its folder, one subfolder for each run.

    FOLDER/<run>/memory-<t>.safetensors     what the client remembers after round t
    FOLDER/<run>/base-<v>.safetensors       the sum of what was added to the frozen base, at version v

Of so many runs as `RUNS` it is kept, those of the last answers, since the ids of runs come from elsewhere.

The server says which round counts (`remembered`) and which version of the base it takes the site to hold. Of each the site
keeps two: the one that the server named last, and the one of its last answer. So an answer that came too late, was refused, or
was lost with its server never counts, without a second message. No byte of a memory is in a reply.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fedelta import tree
from fedelta.engines.guards import reason_of
from fedelta.engines.letters import Letter
from fedelta.engines.memories import NOTHING
from fedelta.engines.visits import answer
from fedelta.exchange import files, parcels, wire
from fedelta.exchange.channel import Channel
from fedelta.exchange.parcels import Parcel
from fedelta.method import Client, ClientState, Method
from fedelta.peers import Peer
from fedelta.tree import Adapter, BaseDelta, Message, find

logger = logging.getLogger("fedelta.site")

RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
"""The form of a run's id: it names a folder at the site, and comes from elsewhere."""

RUNS = 20
"""The runs of which something is kept, so that no number of ids fills a site's disk."""

Score = Callable[[Message], Mapping[str, float]]
"""Metrics of a deployed model on the site's own held-out rows."""


class Site:
    """One client of a run behind messages.

    Args:
        method: the server's, with the same hyper-parameters.
        client: the door to data and model.
        channel: the run's stages.
        folder: where memories are kept.
        score: scores a deployed model; None where the site has nothing to score by.
        num_tests: the rows that `score` reads.
        about: further entries of the census: name, labels, choices, layout.
    """

    def __init__(
        self,
        method: Method,
        client: Client,
        channel: Channel,
        folder: Path,
        *,
        score: Score | None = None,
        num_tests: int = 0,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.method, self.client, self.channel, self.folder = method, client, channel, folder
        self.score, self.num_tests, self.about = score, num_tests, dict(about or {})

    def handle(self, parcel: Parcel) -> Parcel:
        """Answers a parcel by its kind; an error becomes a refusal with its reason, which is also logged here."""
        try:
            match parcel.kind:
                case "census":
                    return self.census(bool(parcel.header.get("want_template")))
                case "train":
                    return self.train(parcel)
                case "evaluate":
                    return self.evaluate(parcel)
                case _:
                    raise ValueError(f"a site does not answer a parcel of kind {parcel.kind!r}")
        except Exception as error:
            reason = reason_of(error)
            logger.warning("refused %s: %s", _described(parcel), reason)
            logger.debug("refused %s", _described(parcel), exc_info=error)
            return parcels.refusal(reason)

    def census(self, want_template: bool) -> Parcel:
        """Says who the site is; with `want_template` the body holds its initial adapter."""
        template = self.client.template
        header = {
            "name": str(self.client.peer.id),
            "labels": None,
            "choices": {},
            **self.about,
            "peer": _peer_entries(self.client.peer),
            "digest": digest_of(template),
            "base": template.base,
            "versions": versions(),
        }
        if not want_template:
            return Parcel("census", {**header, "layout": None})
        return Parcel("census", {"layout": None, **header}, wire.encode({"template": template}))

    def train(self, parcel: Parcel) -> Parcel:
        """Carries out a round's local update; what it remembers is on the disk before the answer is returned.

        Raises:
            LookupError: if the base that the server builds on is not on this disk.
            OSError: for a disk that is full or cannot be written; what was remembered before stands.
            Exception: whatever the method or the client raises.
        """
        kept, letter = self._opened(parcel)
        base = self._base_of(kept, letter)
        reply, memory = answer(self.method, self.client, self.channel, letter, kept.memory(letter.remembered))
        if base is not None:
            kept.keep_base(base, assumed=letter.peer.base_version)
        kept.keep_memory(letter.t, memory, remembered=letter.remembered)
        header = {"run": kept.run, "t": letter.t, "metrics": dict(reply.metrics), "base_version": reply.base_version}
        return Parcel("train", header, wire.encode(reply.content))

    def evaluate(self, parcel: Parcel) -> Parcel:
        """Scores the model that this participant runs on its own held-out rows; it trains and remembers nothing.

        Raises:
            ValueError: where the site has no rows to score by.
        """
        if self.score is None:
            raise ValueError("this site has no rows to score by: give it a test file, or hold rows out for it")
        kept, letter = self._opened(parcel)
        self._base_of(kept, letter, arrived=letter.message)
        deployed = self.method.deploy(letter.message, kept.memory(letter.remembered), self.client.template)
        scores = {name: float(value) for name, value in self.score(deployed).items()}
        return Parcel("evaluate", {"run": kept.run, "t": letter.t, "scores": scores, "examples": self.num_tests})

    def _opened(self, parcel: Parcel) -> tuple[Kept, Letter]:
        """Returns the run's folder, and the letter that a parcel holds."""
        kept = Kept(self.folder, parcel.header.get("run"))
        t, remembered = _whole(parcel, "t"), _whole(parcel, "remembered", optional=True)
        held = _whole(parcel, "base_version", optional=True) or 0
        peer = replace(self.client.peer, base_version=held)
        return kept, Letter(t or 0, peer, wire.decode(parcel.body), len(parcel.body), remembered)

    def _base_of(self, kept: Kept, letter: Letter, arrived: Message | None = None) -> BaseDelta | None:
        """Returns the whole base that a letter leads to, once the client has what the letter builds on; None without one."""
        if arrived is None:
            arrived = self.channel.arrived(letter.t, letter.peer, letter.message)
        base = max(find(arrived, BaseDelta), key=lambda found: found.version, default=None)
        if base is None or base.version == 0:
            return None
        if base.since == 0:
            return tree.catch_up(BaseDelta(0, {}), base)
        held = kept.base(base.since)
        restore = getattr(self.client, "restore", None)
        if restore is not None:
            restore(held)
        return tree.catch_up(held, base)


class Kept:
    """Keeps what one run leaves at a site, on its disk: files and folder are their owner's alone.

    Raises:
        ValueError: for an id of a run that is no plain name.
    """

    def __init__(self, folder: Path, run: object) -> None:
        if not isinstance(run, str) or not RUN.fullmatch(run):
            raise ValueError(f"the id of a run is a name of letters, digits, '_', '.' and '-', not {run!r:.80}")
        self.run, self.folder = run, folder / run

    def memory(self, t: int | None) -> ClientState:
        """Returns what was remembered after round t; nothing, with a warning, if that was lost."""
        if t is None:
            return NOTHING
        try:
            return wire.decode(self._memory_file(t).read_bytes())
        except (FileNotFoundError, wire.MalformedError) as error:
            logger.warning("run %s: the memory of round %s is lost (%s): this site begins anew", self.run, t, reason_of(error))
            return NOTHING

    def keep_memory(self, t: int, memory: ClientState, *, remembered: int | None) -> None:
        """Writes what is remembered after round t, then removes all but it and that of the round that counts."""
        files.commit_private(self._memory_file(t), wire.encode(memory))
        self._remove_others("memory", (t, remembered))
        self._remove_old_runs()

    def base(self, wanted: int) -> BaseDelta:
        """Returns the whole base of a version.

        Raises:
            LookupError: if it is not here, or damaged.
        """
        try:
            base = wire.decode(self._base_file(wanted).read_bytes())["base"]
        except (FileNotFoundError, wire.MalformedError, KeyError) as error:
            base = error
        if not isinstance(base, BaseDelta) or base.version != wanted:
            raise LookupError(
                f"version {wanted} of the base is not at this site, whose disk may be another one: it is sent the whole next"
            )
        return base

    def keep_base(self, base: BaseDelta, *, assumed: int) -> None:
        """Writes the whole base, then removes all but it and the version that the server takes this site to hold."""
        path = self._base_file(base.version)
        if assumed != base.version or not path.is_file():
            files.commit_private(path, wire.encode({"base": base}))
        self._remove_others("base", (base.version, assumed))

    def _memory_file(self, t: int) -> Path:
        return self.folder / f"memory-{t}.safetensors"

    def _base_file(self, number: int) -> Path:
        return self.folder / f"base-{number}.safetensors"

    def _remove_old_runs(self) -> None:
        """Removes what is kept of all runs but the last `RUNS`, and nothing else that lies in their folders."""
        written: dict[Path, list[Path]] = {}
        for path in self.folder.parent.glob("*/*.safetensors"):
            written.setdefault(path.parent, []).append(path)
        newest = {folder: max(path.stat().st_mtime_ns for path in paths) for folder, paths in written.items()}
        for old in sorted(newest, key=lambda folder: newest[folder], reverse=True)[RUNS:]:
            logger.warning("run %s: what is remembered of it is removed: %d later runs are kept", old.name, RUNS)
            for path in written[old]:
                path.unlink(missing_ok=True)
            with suppress(OSError):  # there may be something of somebody else's
                old.rmdir()

    def _remove_others(self, kind: str, numbers: Iterable[int | None]) -> None:
        kept = {f"{kind}-{n}.safetensors" for n in numbers}
        for path in self.folder.glob(f"{kind}-*.safetensors"):
            if path.name not in kept:
                path.unlink(missing_ok=True)


def digest_of(template: Adapter) -> str:
    """Returns 32 hexadecimal digits that name an initial adapter, to the last bit."""
    return wire.digest({"adapter": template}).hex()


def versions() -> dict[str, Any]:
    """Returns the versions of what two ends must have in common."""
    return {"fedelta": version("fedelta"), "parcels": parcels.VERSION, "wire": wire.FORMAT, "torch": torch.__version__}


def _peer_entries(peer: Peer) -> dict[str, Any]:
    names = ("id", "rank", "num_examples", "lora_alpha", "rslora", "rank_pattern", "alpha_pattern", "scale")
    values = {name: getattr(peer, name) for name in names}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}


def _whole(parcel: Parcel, name: str, *, optional: bool = False) -> int | None:
    """Returns an entry of the header that counts something; raises ValueError for what is no such number."""
    value = parcel.header.get(name)
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"the header's {name} must be a whole number of at least 0, got {value!r:.40}")
    return value


def _described(parcel: Parcel) -> str:
    """Returns a parcel in words, for the log."""
    t = parcel.header.get("t")
    return parcel.kind if t is None else f"{parcel.kind} of round {t!r:.20}"
