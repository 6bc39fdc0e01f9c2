"""Reads series out of records: means and bands over seeds, bytes so far, and the clients of the last evaluated round."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean
from typing import Any

from fedelta.report.numerals import DASH
from fedelta.report.statistics import t_interval
from fedelta.report.study import LARGEST, REFERENCES, Group, Run, Study
from fedelta.report.words import Record

FEWEST_FOR_T = 5
"""Seeds from which a band is a t-interval; below, it is the range of the seeds."""

Number = Callable[[Record], Any]


@dataclass(frozen=True)
class Point:
    """The mean over seeds at one round, and its band.

    Attributes:
        t: the round, from 0.
        mean: over all seeds of the method.
        low, high: the range of the seeds, or from five on the 95 % t-interval; the mean itself for one seed.
    """

    t: int
    mean: float
    low: float
    high: float


def series(runs: Sequence[Run], number: Number) -> list[Point]:
    """Returns a number by round, over the rounds in which every run has it: nothing is interpolated."""
    columns = [{r["t"]: float(x) for r in run.records if is_number(x := number(r))} for run in runs if run.records]
    common = sorted(set.intersection(*(set(column) for column in columns))) if columns else []
    return [_point(t, [column[t] for column in columns]) for t in common]


def is_number(value: object) -> bool:
    """Returns whether a value of a record can be drawn; null, a text or an absurd size cannot."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def _point(t: int, values: Sequence[float]) -> Point:
    interval = t_interval(values) if len(values) >= FEWEST_FOR_T else None
    if interval is not None:
        return Point(t, interval.mean, interval.low, interval.high)
    return Point(t, fmean(values), min(values), max(values))


def runs_of(study: Study, group: Group) -> list[Run]:
    """Returns the runs of a group whose curves are drawn and whose costs are counted: those that did not diverge.

    All that have rounds, if none is left. A run that diverged may have ended early, so that its bytes and times are no cost of
    the method; its score counts all the same (`Study.score`), and so do its clients (`worst_clients`).
    """
    alive = [run for run in group.runs.values() if run.records and not run.diverged]
    return alive or [run for run in group.runs.values() if run.records]


def at(*keys: str) -> Number:
    """Returns what reads the number under nested keys of a record; None where there is none."""

    def read(record: Record) -> Any:
        found: Any = record
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    return read


def sent(run: Run, way: str | None = None) -> dict[int, int]:
    """Returns the bytes of all rounds so far, by round; one way or both."""
    ways = [way] if way else ["down", "up"]
    each = [sum(record["bytes"][w] for w in ways) for record in run.records]
    return dict(zip([record["t"] for record in run.records], accumulate(each), strict=True))


def total(run: Run, way: str | None = None) -> int:
    """Returns the bytes of a whole run."""
    return max(sent(run, way).values(), default=0)


def seconds(run: Run) -> float:
    """Returns the time of all rounds, without evaluation."""
    return sum(_round_seconds(record["seconds"]) for record in run.records)


def _round_seconds(stages: Mapping[str, Any]) -> float:
    return float(stages["round"] if "round" in stages else stages.get("train", 0.0) + stages.get("aggregate", 0.0))


def steps(run: Run) -> int | None:
    """Returns the optimiser steps of all participants in a whole run; None where nothing says how many there were.

    They are those of the records, else of the clients' own lines, else the config's steps a round for all that took part.
    """
    logged = [record.get("steps") for record in run.records]
    if logged and all(isinstance(count, int) for count in logged):
        return sum(int(count) for count in logged if count is not None)
    return _steps_of_clients(run) or _steps_of_config(run)


def _steps_of_clients(run: Run) -> int | None:
    lines = {line.get("t"): line.get("clients") for line in run.clients or ()}
    found = [lines.get(record["t"]) for record in run.records]
    if not found or not all(isinstance(clients, Mapping) for clients in found):
        return None
    return sum(int(entry.get("steps", 0)) for clients in found if clients for entry in clients.values())


def _steps_of_config(run: Run) -> int | None:
    a_round = (run.config.get("training") or {}).get("local_steps")
    if not isinstance(a_round, int) or run.method in REFERENCES:  # a line to compare with has steps of its own
        return None
    return a_round * sum(len(record["cohort"]) - len(record["dropped"]) for record in run.records)


def rows_seen(run: Run) -> int | None:
    """Returns the training rows of all steps of a run, a row as often as it was seen; a step counts as a whole batch."""
    taken, batch = steps(run), (run.config.get("training") or {}).get("batch_size")
    return taken * batch if taken is not None and isinstance(batch, int) else None


def seconds_of(run: Run, stage: str) -> float | None:
    """Returns the time of a stage in all rounds; None where no record has it."""
    found = [record["seconds"][stage] for record in run.records if is_number(record["seconds"].get(stage))]
    return sum(float(x) for x in found) if found else None


def peak_memory(run: Run, of: str = "peak") -> float | None:
    """Returns the largest peak of the process's memory that a record has, or that of its GPU, `cuda`, in bytes."""
    peaks = [record["memory"].get(of) for record in run.records if isinstance(record.get("memory"), Mapping)]
    found = [float(x) for x in peaks if is_number(x)]
    return max(found) if found else None


def was_busy(run: Run) -> bool:
    """Returns whether a round had more load than the machine has cores; False where one of the two is not known."""
    cores = run.facts.get("cores")
    loads = [float(record["load"]) for record in run.records if is_number(record.get("load"))]
    return is_number(cores) and any(load > float(cores or 0) for load in loads)


def clients_of(run: Run, metric: str) -> dict[str, float] | None:
    """Returns a metric of each client on its own rows, in the last round that has it.

    None where clients.jsonl is missing or says nothing of single clients.
    """
    for line in reversed(run.clients or ()):
        entries: Mapping[str, Any] = line.get("clients", {})
        scores = {k: entry.get("scores", {}).get(metric) for k, entry in entries.items()}
        found = {k: float(value) for k, value in scores.items() if is_number(value)}
        if found:
            return found
    return None


def called(run: Run, client: str) -> str:
    """Returns a client's name, or `client 3` where it has none."""
    return name_of(run, client) or f"client {client}"


def name_of(run: Run, client: str) -> str | None:
    """Returns a client's name as split.json or clients.jsonl has it; None where it has none."""
    entries = [(run.split or {}).get("clients", {}).get(client, {})]
    entries += [line.get("clients", {}).get(client, {}) for line in run.clients or ()]
    return next((entry["name"] for entry in entries if isinstance(entry.get("name"), str)), None)


def worst_clients(runs: Iterable[Run], metric: str) -> list[tuple[float, float, object]]:
    """Returns what `worst_client` says of each run; nothing where one diverged, without which its method would look better."""
    given = list(runs)
    if any(run.diverged for run in given):
        return []
    return [found for run in given if (found := worst_client(run, metric)) is not None]


def worst_client(run: Run, metric: str) -> tuple[float, float, object] | None:
    """Returns the worst client's value, the spread and the worst one's name or id, at the last evaluated round."""
    for record in reversed(run.records):
        found = (record.get("clients") or {}).get(metric)
        if found:
            client = found.get("worst_client", DASH)
            return float(found["worst"]), float(found["spread"]), name_of(run, str(client)) or client
    return None
