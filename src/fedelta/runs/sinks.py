"""Hands the record of each round on once it is on disk: to functions of a program, and to TensorBoard where a config says so.

A `Sink` is any function of a record. Weights & Biases, trackio and MLflow are ten lines each, in docs/how-to/track.md.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from fedelta.engines.rounds import Snapshot
from fedelta.runs.config import ConfigError, RunConfig
from fedelta.runs.folder import EVENTS
from fedelta.runs.records import Record

if TYPE_CHECKING:
    from fedelta.runs.open_run import OpenRun

Sink: TypeAlias = Callable[[Record], None]
"""Takes the record of a round, as in rounds.jsonl. What it raises ends the run, after a round that is on disk."""

OF_CLIENTS = ("mean", "spread")
"""What is said of the clients' own scores: nothing that is one client's."""


def scalars(record: Record) -> dict[str, float]:
    """Returns the numbers of a record by names such as `test/accuracy`; none of them is that of one client or one layer.

    Left out are the ids of the cohort, the worst client and each node's scores, the table by layer and the spectrum.
    """
    found: dict[str, Any] = {"train_loss": record.get("train_loss")}
    found |= {"cohort/asked": len(record["cohort"]), "cohort/left_out": len(record.get("dropped", {}))}
    for part in ("validation", "test", "bytes", "seconds"):
        found |= _under(part, record.get(part) or {})
    for metric, spread in (record.get("clients") or {}).items():
        found |= _under(f"clients/{metric}", {name: spread.get(name) for name in OF_CLIENTS})
    for name, value in (record.get("diagnostics") or {}).items():
        if name != "layers":
            found |= _under(f"diagnostics/{name}", value) if isinstance(value, Mapping) else {f"diagnostics/{name}": value}
    return {name: float(value) for name, value in found.items() if _is_number(value)}


def _under(prefix: str, values: object) -> dict[str, Any]:
    return {f"{prefix}/{name}": value for name, value in cast("Mapping[str, Any]", values).items()}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class TensorBoard:
    """Writes the scalars of records as event files, which `tensorboard --logdir runs` shows.

    Args:
        folder: of the run, when a record has come; a run may begin under another name than it ends.
        start: the first round to come. What the event files have of it and of later ones counts no longer.
    """

    def __init__(self, folder: Callable[[], Path], start: int = 0) -> None:
        self._folder, self._start = folder, start
        self._writer: Any = None

    def __call__(self, record: Record) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder() / EVENTS), purge_step=self._start)
        for name, value in scalars(record).items():
            self._writer.add_scalar(name, value, record["t"])
        self._writer.flush()  # a run may be killed in the next round

    def close(self) -> None:
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()


def demand_functions(sinks: Sequence[object]) -> None:
    """Raises TypeError for a sink that is no function."""
    if other := [sink for sink in sinks if not callable(sink)]:
        raise TypeError(f"sinks must be functions of a record, not {other[0]!r:.60}")


def demand_installed(config: RunConfig) -> None:
    """Raises ConfigError for a tracker that is not installed."""
    if missing := [name for name in config.report_to if find_spec(name) is None]:
        raise ConfigError(
            f'report_to = {", ".join(missing)}, which is not installed: pip install "fedelta[track]", or leave report_to out'
        )


@contextmanager
def trackers(config: RunConfig, folder: Callable[[], Path], start: Snapshot | None) -> Generator[Sequence[Sink]]:
    """Gives the sinks that a config asks for, for the block of a `with`.

    Args:
        config: of the run.
        folder: of the run, when a record has come.
        start: the snapshot that it goes on from.
    """
    boards = [TensorBoard(folder, 0 if start is None else start.t) for _ in config.report_to]
    try:
        yield boards
    finally:
        for board in boards:
            board.close()


@contextmanager
def reporting(going: OpenRun, sinks: Sequence[Sink]) -> Generator[None]:
    """Gives a run its sinks, those that were given and those of its config, for the block of a `with`."""
    with trackers(going.experiment.config, lambda: going.folder.path, going.start) as own:
        going.sinks = [*sinks, *own]
        yield
