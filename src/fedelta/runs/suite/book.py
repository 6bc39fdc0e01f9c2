"""Knows which cells are finished: those of the suite's folder and those of its store, each as a line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedelta.runs.digests import Known, untrained_digest
from fedelta.runs.folder import RunFolder
from fedelta.runs.suite import play
from fedelta.runs.suite.cells import Task
from fedelta.runs.suite.lines import Line, encoded, known_of, parsed, untrained_line
from fedelta.runs.suite.store import Store


@dataclass
class Book:
    """Finished cells.

    Attributes:
        place: of the suite's runs.
        store: None for a suite without one.
        lines: by digest, what was found in folders.
    """

    place: play.Place
    store: Store | None = None
    lines: dict[str, Line] = field(default_factory=dict[str, Line])

    def refresh(self) -> None:
        """Reads what other processes added to the store."""
        if self.store is not None:
            self.store.refresh()

    def known(self) -> Known:
        """Returns digests of files that the store's cells were made of."""
        return known_of(() if self.store is None else self.store.lines.values())

    def find(self, task: Task) -> Line | None:
        """Returns the line of a finished cell; None for one that is not finished.

        A line that comes from a folder is added to the store.
        """
        known = self.lines.get(task.digest) or self._stored(task.digest)
        if known is None and (known := play.finished(task)) is not None:
            self._keep(known)
        return known

    def untrained(self, task: Task) -> Mapping[str, Mapping[str, float]]:
        """Returns the scores, by part and metric, of the model that a cell begins with; empty where they are not known yet."""
        digest = untrained_digest(task.config, self.known())
        known = self.lines.get(digest) or self._stored(digest)
        path = self.place.untrained(digest)
        if known is None and path.is_file():
            known = parsed(encoded(untrained_line(digest, json.loads(path.read_bytes()))))
            self._keep(known)
        scores: Mapping[str, Mapping[str, float]] = {} if known is None else known["scores"]
        return scores

    def prune(self, task: Task) -> None:
        """Removes adapters and checkpoint of a finished cell; its records stay."""
        folder = RunFolder(task.folder)
        if play.is_done(task):
            for heavy in (folder.adapters, folder.checkpoint):
                shutil.rmtree(heavy, ignore_errors=True)

    def _stored(self, digest: str) -> Any:
        return None if self.store is None else self.store.lines.get(digest)

    def _keep(self, line: Line) -> None:
        self.lines[line["digest"]] = line
        if self.store is not None:
            self.store.add(line)
