"""Times of several ways to do one thing, taken in turns in one process, so that a busy machine slows all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Seconds:
    """Of one run: by the clock, and of the processor, which hardly feels what else the machine does."""

    wall: float
    cpu: float


def interleaved(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[Seconds]]:
    """The seconds of each run in each repeat; every repeat starts with another run. Nothing is run to warm up.

    Args:
        runs: what to time, by name.
        repeats: of all of them.
    """
    names = list(runs)
    seconds: dict[str, list[Seconds]] = {name: [] for name in names}
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(timed(runs[name]))
    return seconds


def timed(run: Callable[[], Any]) -> Seconds:
    """The seconds of one run."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def walls(seconds: Sequence[Seconds]) -> list[float]:
    """By the clock."""
    return [s.wall for s in seconds]


def cpus(seconds: Sequence[Seconds]) -> list[float]:
    """Of the processor."""
    return [s.cpu for s in seconds]


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Of the pairs of each repeat."""
    return [a / b for a, b in zip(over, under, strict=True)]


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles; a single value is its own."""
    quartiles = statistics.quantiles(values, n=4)[::2] if len(values) > 1 else [values[0]] * 2
    return {"median": statistics.median(values), "quartiles": quartiles}
