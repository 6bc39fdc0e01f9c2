"""Keeps what a round says of each client, in `clients.jsonl`: apart from rounds.jsonl, so that it can be withheld whole.

A line is one round. Of up to 1,000 clients it holds each:

    {"t": 3, "clients": {"0": {"name": "north", "weight": 0.4, "steps": 8, "loss": 1.2, "scores": {"accuracy": 0.5}}, ...}}

`name` is there where the config names the clients; `weight`, `steps` and `loss` are of those whose update counted, `scores` (on
the client's own held-out rows) of those that were scored. Of more clients it holds quantiles, and the ten worst by loss and by
each score:

    {"t": 3, "count": 5000, "quantiles": {"loss": {"0.25": 1.1, ...}, ...}, "worst": {"loss": {"17": 3.2, ...}, ...}}

The file is written before the record of its round, and goes back to a checkpoint with the records. A run goes on without it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np

from fedelta.engines.rounds import Round
from fedelta.exchange import files
from fedelta.runs.evaluation import Scores
from fedelta.tasks.metrics import LOWER_IS_BETTER

logger = logging.getLogger("fedelta.resume")

ClientLine: TypeAlias = Mapping[str, Any]
"""One line of clients.jsonl; plain JSON values."""

EACH = 1000
"""Clients of a round up to which each has its own entry."""

WORST = 10
"""Clients that are named where not each is."""

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def client_line(done: Round, scores: Mapping[int, Scores], names: Sequence[str] = ()) -> ClientLine:
    """Returns what a round says of each client, or of more than 1,000 of them together.

    Args:
        done: the round, before the next one is asked for.
        scores: of clients on their own rows, by id; empty where the round was not evaluated.
        names: of all clients, in the order of ids; empty where they have none.
    """
    clients = _entries(done, scores)
    if names:
        clients = {k: {"name": names[k], **entry} for k, entry in clients.items()}
    if len(clients) <= EACH:
        return {"t": done.t, "clients": {str(k): clients[k] for k in sorted(clients)}}
    columns = _columns(clients)
    quantiles = {name: _quantiles(list(values.values())) for name, values in columns.items()}
    worst = {name: _worst(name, values) for name, values in columns.items() if name != "weight"}
    return {"t": done.t, "count": len(clients), "quantiles": quantiles, "worst": worst}


def _entries(done: Round, scores: Mapping[int, Scores]) -> dict[int, dict[str, Any]]:
    clients: dict[int, dict[str, Any]] = {}
    for update in done.updates:
        entry: dict[str, Any] = {"weight": update.weight}
        if "num_steps" in update.metrics:
            entry["steps"] = int(update.metrics["num_steps"])
        if "loss" in update.metrics:
            entry["loss"] = update.metrics["loss"]
        clients[update.sender.id] = entry
    for k, own in scores.items():
        clients.setdefault(k, {})["scores"] = dict(own)
    return clients


def _columns(clients: Mapping[int, Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """Returns weight, loss and each score by client; scores are called `scores.<metric>`, since one of them is a loss, too."""
    columns: dict[str, dict[int, float]] = {}
    for k, entry in clients.items():
        numbers = {name: entry[name] for name in ("weight", "loss") if name in entry}
        numbers |= {f"scores.{metric}": value for metric, value in entry.get("scores", {}).items()}
        for name, value in numbers.items():
            columns.setdefault(name, {})[k] = value
    return columns


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    found = np.quantile(np.asarray(values, dtype=np.float64), QUANTILES)
    return {str(q): float(value) for q, value in zip(QUANTILES, found, strict=True)}


def _worst(name: str, values: Mapping[int, float]) -> dict[str, float]:
    """Returns the ten worst values by client, the worst first; of equal ones the lower ids."""
    lower_is_better = name.removeprefix("scores.") in LOWER_IS_BETTER
    ordered = sorted(values, key=lambda k: (-values[k] if lower_is_better else values[k], k))
    return {str(k): values[k] for k in ordered[:WORST]}


def append(path: Path, line: ClientLine) -> None:
    """Adds one line, which is on the disk when this returns."""
    files.append_line(path, json.dumps(line, allow_nan=False))


def read(path: Path) -> list[ClientLine]:
    """Returns the lines that can be read, in the order of rounds; empty where there is no file.

    A last line that a kill cut off does not count, and of two lines of a round the later one does.
    """
    return [line for line, _ in _survey(path)]


def rewind(path: Path, count: int) -> None:
    """Drops the lines of rounds from `count` on, and lines that cannot be read, which are named on the log."""
    if not path.is_file():
        return
    found = path.read_bytes()
    kept = [raw for line, raw in _survey(path) if line["t"] < count]
    damaged = sum(_parsed(raw) is None for raw in found.split(b"\n")[:-1])
    if damaged:
        logger.warning("%s: %d damaged lines are dropped; the run itself is whole", path, damaged)
    text = b"".join(raw + b"\n" for raw in kept)
    if text != found:
        files.commit(path, text)


def _survey(path: Path) -> Iterable[tuple[ClientLine, bytes]]:
    found: dict[int, tuple[ClientLine, bytes]] = {}
    for raw in path.read_bytes().split(b"\n")[:-1] if path.is_file() else []:
        line = _parsed(raw)
        if line is not None:
            found[line["t"]] = (line, raw)
    return [found[t] for t in sorted(found)]


def _parsed(raw: bytes) -> ClientLine | None:
    """Returns the line, or None where it is none that a reader could use."""
    try:
        line: object = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", line) if is_line(line) else None


def is_line(found: object) -> bool:
    """Returns whether a value is a line that its readers could use."""
    if not isinstance(found, dict):
        return False
    known = cast("dict[str, Any]", found)
    t, parts = known.get("t"), [known.get(key, {}) for key in ("clients", "quantiles", "worst")]
    counts = isinstance(t, int) and not isinstance(t, bool) and t >= 0
    return counts and all(isinstance(part, dict) and all(map(_is_entry, part.values())) for part in parts)


def _is_entry(value: object) -> bool:
    return isinstance(value, dict) and isinstance(cast("dict[str, Any]", value).get("scores", {}), dict)
