"""Keeps the files of a run, in an order of writing that lets it be stopped at any moment and taken up again.

    config.yaml      the resolved config
    run.json         rows, versions and device, written once
    split.json       what each client has, written once
    rounds.jsonl     one record for each round; the first in which a diagnostic is null says why
    clients.jsonl    what each round says of each client: see `client_lines`
    code/            copies of the user's own files that define the method or the task; none of them runs by itself
    adapters/        PEFT folders: last, best, and at the end one for each rank (or client)
    checkpoint/      what the next round needs, and what the last round needed
    curves.png       the records as a picture
    report.html      the records as a page
    tensorboard/     the records as event files, where `report_to` asks for them
    cell.json        of a suite's cell: the digests of the files that its config names, as they were when it began
    failed.json      of a suite's cell that failed: the error; the next try removes it
    diverged.json    of a suite's cell whose numbers became infinite: all that its tables need, as in a store
    .lock            locked by the process that writes here

A round writes its adapters, then its clients' line and its record, then its checkpoint; the checkpoint is what makes it
count. Whatever a killed run wrote after the last checkpoint is dropped when the run is taken up, and comes again from the same
numbers.

A new run in the place of an old one begins in `.<name>.new` beside it. Once its first round is done, it takes the folder's
name, and the old run is called `<name>.old`. Until then the old run is as it was.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fedelta.code_files import CodeFile
from fedelta.engines import checkpoint
from fedelta.exchange import files
from fedelta.runs import client_lines
from fedelta.runs.config import RunConfig, dump_config, read_config
from fedelta.runs.config.allowed import TRAINER, function_in
from fedelta.runs.config.checks import checked_alone
from fedelta.runs.records import Record, read_record

logger = logging.getLogger("fedelta.resume")

CONFIG, RECORDS, DAMAGED = "config.yaml", "rounds.jsonl", "rounds.damaged.jsonl"
RUN, SPLIT, CLIENTS = "run.json", "split.json", "clients.jsonl"
ADAPTERS, CHECKPOINT, CURVES, REPORT, CODE = "adapters", "checkpoint", "curves.png", "report.html", "code"
FAILED, DIVERGED, CELL, EVENTS = "failed.json", "diverged.json", "cell.json", "tensorboard"

COMMITTED = (CONFIG, RECORDS, DAMAGED, RUN, SPLIT, CLIENTS, REPORT, FAILED, DIVERGED, CELL)
"""The files that are written by `files.commit`, which a kill may leave under its temporary name."""

TEMPORARY = tuple(f".{name}.tmp" for name in COMMITTED)

DRAFT = re.compile(r"\.(last|best|rank-[0-9]+|client-[0-9]+)\.(draft|swap|[a-z0-9_]{8})")
"""The names under which a kill may leave an adapter's folder half-written; the last kind is one that `tempfile` makes."""

OWN = frozenset({*COMMITTED, *TEMPORARY, ADAPTERS, CHECKPOINT, CURVES, CODE, EVENTS, files.LOCK})
"""All that a run may leave in its folder."""

FOLDERS = frozenset({ADAPTERS, CHECKPOINT, CODE, EVENTS})
"""Those of them that are folders."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / CONFIG

    @property
    def records_file(self) -> Path:
        return self.path / RECORDS

    @property
    def adapters(self) -> Path:
        return self.path / ADAPTERS

    @property
    def checkpoint(self) -> Path:
        return self.path / CHECKPOINT

    @property
    def run_file(self) -> Path:
        return self.path / RUN

    @property
    def split_file(self) -> Path:
        return self.path / SPLIT

    @property
    def clients_file(self) -> Path:
        return self.path / CLIENTS

    @property
    def curves(self) -> Path:
        return self.path / CURVES

    @property
    def report(self) -> Path:
        return self.path / REPORT

    @property
    def failed_file(self) -> Path:
        return self.path / FAILED

    @property
    def diverged_file(self) -> Path:
        return self.path / DIVERGED

    @property
    def cell_file(self) -> Path:
        return self.path / CELL

    @property
    def old(self) -> RunFolder:
        """Returns the folder for the run whose place a new one takes."""
        path = self.path.resolve()
        return RunFolder(path.with_name(f"{path.name}.old"))

    @property
    def draft(self) -> RunFolder:
        """Returns the folder in which a run begins that is to take the place of the one here."""
        path = self.path.resolve()
        return RunFolder(path.with_name(f".{path.name}.new"))

    # --- who may write here ------------------------------------------------------------------------------------------

    def locked(self) -> AbstractContextManager[None]:
        """Keeps other runs out, in the block of a `with`; raises BlockingIOError if one is going on here."""
        return files.locked(self.path)

    def holds_results(self) -> bool:
        """Returns True if a run has left anything here that somebody could want: an adapter, a checkpoint or a record."""
        complete = [p for p in self.adapters.glob("*") if not p.name.startswith(".")]
        return bool(complete) or checkpoint.exists(self.checkpoint) or b"\n" in _bytes(self.records_file)

    def demand_room(self, *, force: bool) -> None:
        """Raises where a new run may not start.

        Raises:
            FileExistsError: over files that no run wrote, or without `force` over a run.
            BlockingIOError: if the run that `force` would remove, `<name>.old`, is going on.
        """
        _demand_own(self.path)
        if not self.holds_results():
            return
        if not force:
            goes = f"; {self._loss()}" if self.old.path.exists() else ""
            resume = f"take it up with --resume {self.path}, " if self.config_file.is_file() else ""
            raise FileExistsError(
                f"{self.path} is not empty, it holds a run: {resume}give the new run another --output, or with --force the "
                f"place of this one, which then becomes {self.old.path.name}{goes}"
            )
        _demand_own(self.old.path)
        # Taken and let go: to find out now, and not after the first round, that the run to be removed is still going on.
        if self.old.path.is_dir():
            with self.old.locked():
                pass

    def say_what_goes(self) -> None:
        """Warns that a run which takes the place of this one removes an earlier one, `<name>.old`."""
        if self.old.path.exists():
            logger.warning("%s: rename it now if you want to keep it", self._loss())

    def _loss(self) -> str:
        return f"the {self.old.path} that is there is removed once the first round of the new run is done"

    def demand_kinds(self) -> None:
        """Raises IsADirectoryError or NotADirectoryError where a folder lies in the place of a file, or a file of a folder."""
        for name in sorted(OWN):
            _demand_kind(self.path / name)

    def clear(self) -> None:
        """Removes what a run left here, but for its lock."""
        for name in FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in sorted(OWN - FOLDERS - {files.LOCK}):
            (self.path / name).unlink(missing_ok=True)

    def remove_if_unused(self) -> None:
        """Removes a folder that holds nothing but its lock, which must be held."""
        if self.path.is_dir() and {p.name for p in self.path.iterdir()} <= {files.LOCK}:
            shutil.rmtree(self.path)

    def take_place_of(self, target: RunFolder) -> None:
        """Gives this folder the name of `target`; what had that name is called `target.old`, in place of an earlier one.

        A death at any point leaves the old run whole, under one of the two names. Where the system cannot exchange names in one
        step it may have a third, from which `bring_back` takes it.

        Raises:
            BlockingIOError: if the run that would be removed, `target.old`, is going on.
        """
        target, old = RunFolder(target.path.resolve()), target.old
        if old.path.exists():
            with old.locked():
                shutil.rmtree(old.path)
        # This folder gets the name `.old` first, so that one exchange of names gives both runs their right one.
        os.replace(self.path, old.path)
        files.swap(old.path, target.path)
        files.sync_folder(target.path.parent)

    def bring_back(self) -> None:
        """Gives a run that a death in `take_place_of` left under a third name its own again, or the name `<name>.old`.

        Raises:
            BlockingIOError: if the change of names is still going on.
        """
        path = self.path.resolve()
        spare, free = files.spare_of(path), next((p for p in (path, self.old.path) if not p.exists()), None)
        if free is not None and spare.is_dir():
            with files.locked(spare):  # a process that changes the names holds the lock, and it moves with the folder
                os.replace(spare, free)
                files.sync_folder(free.parent)

    # --- what is here ------------------------------------------------------------------------------------------------

    def write_config(self, config: RunConfig, code: Mapping[str, CodeFile] = MappingProxyType({})) -> None:
        """Writes the resolved config, and makes the folder if it is not there.

        Args:
            config: of the run.
            code: by key, the Python files that it names: they are copied, and the config that is written names the copies.
        """
        for key, file in code.items():
            files.commit(self.path / CODE / f"{key}.py", file.source)
            if key == TRAINER and config.training.trainer is not None:
                place = f"{CODE}/{key}.py:{function_in(config.training.trainer)[1]}"
                config = config.model_copy(update={"training": config.training.model_copy(update={"trainer": place})})
                continue
            copied = {**getattr(config, key), "path": f"{CODE}/{key}.py"}
            config = config.model_copy(update={key: copied})
        files.commit(self.config_file, dump_config(config).encode())

    def config(self) -> RunConfig:
        """Returns the resolved config of the run.

        Raises:
            FileNotFoundError: if this is not the folder of a run, or its config is gone.
            IsADirectoryError: if a folder lies in the place of the config.
        """
        _demand_kind(self.config_file)
        if not self.config_file.is_file():
            if self.holds_results():
                raise FileNotFoundError(
                    f"{self.path} has the rounds of a run, but its {CONFIG} is gone: bring it back, from a backup or by hand"
                )
            raise FileNotFoundError(
                f"{self.path} is not the folder of a run: it has no {CONFIG}; a run that was stopped before it wrote one "
                "has done nothing yet, start it again"
            )
        return checked_alone(read_config(self.config_file))

    def append(self, record: Record) -> None:
        """Adds one record, which is on the disk when this returns."""
        # Appended and not committed whole, so that a round costs the same however many there were. A line that a kill cut off
        # has no end, and does not count.
        files.append_line(self.records_file, json.dumps(record, allow_nan=False))

    def records(self) -> list[Record]:
        """Returns the records so far; a last line that a kill cut off does not count.

        Raises:
            ValueError: for a line that is no record, by file and number.
        """
        records, damages = self.survey()
        if damages:
            raise ValueError(f"{damages[0]}; `fedelta run --resume {self.path}` mends what can be mended")
        return records

    def survey(self) -> tuple[list[Record], list[str]]:
        """Returns the records that can be read, in the order of rounds, and the place of each line that cannot."""
        records: dict[int, Record] = {}
        damages: list[str] = []
        for number, line in enumerate(_bytes(self.records_file).split(b"\n")[:-1], start=1):
            record = read_record(line)
            if record is None:
                damages.append(f"{self.records_file}, line {number}: damaged, not the record of a round")
            else:
                records[record["t"]] = record  # of two records of a round the later one counts
        return [records[t] for t in sorted(records)], damages

    def rewind(self, count: int, last: Record | None = None, *, skipping: bool = False) -> None:
        """Goes back to a checkpoint: drops the records of rounds from `count` on, and files that a kill left half-written.

        Records that are damaged or gone are named on the log; the damaged file is kept as rounds.damaged.jsonl.

        Args:
            count: the rounds that are done.
            last: the record of the last of them, as the checkpoint has it, for a log that lost it.
            skipping: the run may have gone on without some rounds, as a node does that was away.
        """
        records, damages = self.survey()
        kept = {record["t"]: record for record in records if record["t"] < count}
        lost = [] if skipping else sorted(set(range(count)) - kept.keys())
        if lost and last is not None and lost[-1] == last["t"]:
            kept[lost.pop()] = last
            damages.append(f"{self.records_file}: the record of round {last['t']} was gone and comes from the checkpoint")
        if lost:
            gone = f"records of rounds {_spans(lost)} are" if len(lost) > 1 else f"record of round {lost[0]} is"
            damages.append(f"{self.records_file}: the {gone} gone; the run itself is whole")
        if damages:
            logger.warning("%s", "; ".join(damages))
        self._rewrite([kept[t] for t in sorted(kept)], keep_damaged=bool(damages))
        client_lines.rewind(self.clients_file, count)
        drafts = [path for path in self.adapters.glob(".*") if DRAFT.fullmatch(path.name)]
        for path in [*drafts, *(self.path / name for name in TEMPORARY if (self.path / name).exists())]:
            files.remove(path)

    def _rewrite(self, records: Sequence[Record], *, keep_damaged: bool) -> None:
        found = _bytes(self.records_file)
        text = "".join(json.dumps(r, allow_nan=False) + "\n" for r in records).encode()
        if found == text and self.records_file.is_file():
            return
        if keep_damaged and found:
            files.commit(self.path / DAMAGED, found)
        files.commit(self.records_file, text)


def _demand_kind(path: Path) -> None:
    wants_folder = path.name in FOLDERS
    if not wants_folder and path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, where a run has a file: move it elsewhere, and try again")
    if wants_folder and path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file, where a run has a folder: move it elsewhere, and try again")


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _spans(numbers: Sequence[int]) -> str:
    """Writes ascending numbers for a reader: `0 to 3, 7`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], number]
        else:
            spans.append([number])
    return ", ".join(" to ".join(map(str, span)) for span in spans)


def _demand_own(path: Path) -> None:
    there = list(path.iterdir()) if path.is_dir() else []
    foreign = sorted(p.name for p in there if p.name not in OWN or p.is_dir() != (p.name in FOLDERS))
    if foreign or (path.exists() and not path.is_dir()):
        what = (
            f"holds {', '.join(foreign[:5])}{', ...' if len(foreign) > 5 else ''}, which no run wrote"
            if foreign
            else "is a file"
        )
        raise FileExistsError(f"{path} {what}: move that elsewhere, or give another --output")


def finite(tree: Any) -> Any:
    """Returns a record's values with null for NaN and Inf, which JSON does not have."""
    if isinstance(tree, Mapping):
        return {str(k): finite(v) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(v) for v in tree]
    if isinstance(tree, float) and not abs(tree) < float("inf"):
        return None
    return tree
