"""Knows which cells are finished: those of the suite's folder and those of its store, each as a line."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedelta.runs.digests import Known, untrained_digest
from fedelta.runs.folder import RunFolder
from fedelta.runs.suite import play
from fedelta.runs.suite.cells import Task
from fedelta.runs.suite.lines import Line, encoded, known_of, parsed, untrained_line
from fedelta.runs.suite.store import Store

logger = logging.getLogger(__name__)


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
        known = self._stored(task.digest) or self.lines.get(task.digest)
        if known is None and (known := play.finished(task)) is not None:
            known = self._keep(known)
        return known

    def untrained(self, task: Task) -> Mapping[str, Mapping[str, float]]:
        """Returns the scores, by part and metric, of the model that a cell begins with; empty where they are not known yet."""
        digest = untrained_digest(task.config, self.known())
        known = self._stored(digest) or self.lines.get(digest)
        path = self.place.untrained(digest)
        if known is None and path.is_file() and (found := _untrained_in(path, digest)) is not None:
            known = self._keep(found)
        scores: Mapping[str, Mapping[str, float]] = {} if known is None else known["scores"]
        return scores

    def prune(self, task: Task) -> None:
        """Removes adapters and checkpoint of a finished cell; its records stay."""
        folder = RunFolder(task.folder)
        if play.is_done(task):
            for heavy in (folder.adapters, folder.checkpoint):
                shutil.rmtree(heavy, ignore_errors=True)

    def _stored(self, digest: str) -> Line | None:
        return None if self.store is None else self.store.lines.get(digest)

    def _keep(self, line: Line) -> Line:
        """Keeps a line, and returns the one that counts: tables are the store's, where another process may have been first."""
        if self.store is not None:
            self.store.add(line)
        kept = self._stored(line["digest"]) or line
        self.lines[line["digest"]] = kept
        return kept


def _untrained_in(path: Path, digest: str) -> Line | None:
    """Returns the line of the scores in a file; None for one that is damaged, which is said."""
    try:
        return parsed(encoded(untrained_line(digest, json.loads(path.read_bytes()))))
    except (ValueError, RecursionError):
        logger.warning("%s is damaged: tables go without the scores before any training; remove it", path)
        return None
