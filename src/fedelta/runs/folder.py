"""What a run leaves on disk, and in what order, so that it can be stopped at any moment and taken up again.

    config.yaml      the resolved config
    rounds.jsonl     one record for each round; why a diagnostic is null stands in the first that says so
    adapters/        PEFT folders: last, best, and at the end one for each rank (or client)
    checkpoint/      what the next round needs
    curves.png       the records as a picture

A round writes its adapters, then its record, then its checkpoint; the checkpoint is what makes it count. Whatever a killed
run wrote after the last checkpoint is dropped when the run is taken up, and comes again from the same numbers.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from fedelta.exchange.wire import commit
from fedelta.runs.config import RunConfig, dump_config, load_config

Record: TypeAlias = dict[str, Any]
"""One line of rounds.jsonl; plain JSON values."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def records_file(self) -> Path:
        return self.path / "rounds.jsonl"

    @property
    def adapters(self) -> Path:
        return self.path / "adapters"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def curves(self) -> Path:
        return self.path / "curves.png"

    def demand_empty(self) -> None:
        """Raises FileExistsError if a new run cannot start here."""
        if self.path.is_dir() and any(self.path.iterdir()):
            raise FileExistsError(
                f"{self.path} is not empty: take the run up with --resume {self.path}, give another --output, or drop the "
                "earlier run with --force"
            )

    def clear(self) -> None:
        """Removes what a run left here; other files stay, and are in the way of a new run."""
        for folder in (self.adapters, self.checkpoint):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.config_file, self.records_file, self.curves):
            file.unlink(missing_ok=True)

    def write_config(self, config: RunConfig) -> None:
        """Writes the resolved config, and makes the folder if it is not there."""
        self.path.mkdir(parents=True, exist_ok=True)
        commit(self.config_file, dump_config(config).encode())

    def config(self) -> RunConfig:
        """The resolved config of the run.

        Raises:
            FileNotFoundError: if this is not the folder of a run.
        """
        if not self.config_file.is_file():
            raise FileNotFoundError(f"{self.path} is not the folder of a run: it has no config.yaml")
        return load_config(self.config_file)

    def append(self, record: Record) -> None:
        """Adds one record, on disk before it returns."""
        with self.records_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def records(self) -> list[Record]:
        """The records so far; a last line that a kill cut off does not count."""
        if not self.records_file.is_file():
            return []
        lines = self.records_file.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def rewind(self, count: int) -> None:
        """Back to the last checkpoint: drops the records of rounds from `count` on, and files that a kill left half-written."""
        kept = [r for r in self.records() if r["t"] < count]
        text = "".join(json.dumps(r, allow_nan=False) + "\n" for r in kept)
        if not self.records_file.is_file() or self.records_file.read_text(encoding="utf-8") != text:
            commit(self.records_file, text.encode())
        for draft in self.adapters.glob(".*"):
            shutil.rmtree(draft)
        for draft in self.path.glob(".*.tmp"):
            draft.unlink()


def finite(tree: Any) -> Any:
    """A record's values with NaN and Inf as null, which is what JSON has for a number that is not defined."""
    if isinstance(tree, Mapping):
        return {str(k): finite(v) for k, v in tree.items()}
    if isinstance(tree, float) and not abs(tree) < float("inf"):
        return None
    return tree
