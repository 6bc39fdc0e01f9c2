"""A suite on the tiny model, and what runs it in this process."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedelta.report.comparison import Comparison
from fedelta.runs.suite.gather import comparison_of
from fedelta.runs.suite.play import Event
from fedelta.runs.suite.start import Wanted, ready
from fedelta.runs.suite.work import Options, Work


@dataclass
class Bench:
    """A folder with a suite file; runs it, and keeps what happened."""

    path: Path
    base: Mapping[str, Any]

    def write(self, **keys: Any) -> Path:
        """Writes the suite file with the tiny config as its base."""
        suite = {"base": self.base, "methods": ["flexlora", "zeropad"], "seeds": 2, **keys}
        file = self.path / "mine.yaml"
        file.write_text(yaml.safe_dump(suite, sort_keys=False), encoding="utf-8")
        return file

    def work(self, options: Options | None = None, **keys: Any) -> Work:
        """Returns the suite, ready to be run."""
        wanted = {key: keys.pop(key) for key in ("changes", "store") if key in keys}
        made = ready(str(self.write(**keys)), Wanted(output=self.path / "runs", **wanted))
        return Work(made.plan, made.book, options or Options())

    def run(self, options: Options | None = None, **keys: Any) -> tuple[Comparison, list[Event]]:
        """Runs the suite to its end; returns what came out, and what happened."""
        work, events = self.work(options, **keys), []
        work.run(lambda: False, events.append)
        return comparison_of(work, ""), events


@pytest.fixture
def bench(tmp_path: Path, tiny_config: Mapping[str, Any]) -> Bench:
    """A suite of two methods and two seeds, one round each."""
    return Bench(tmp_path, {**tiny_config, "federation": {"rounds": 1}})


@pytest.fixture
def trained() -> Callable[[list[Event]], list[str]]:
    """Lists the cells that were run, of some events."""
    return lambda events: [event.task.title for event in events if event.what == "done"]


def snapshot(folder: Path) -> dict[str, int]:
    """The time of change of every file."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}
