"""Reads clocks and counters of this machine, for the parts of a record in which equal runs differ (`records.TIMES`)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any


class Stopwatch:
    """Adds up seconds by the name of what they were spent on.

    Attributes:
        seconds: by name, rounded to milliseconds.
    """

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self.seconds = {name: round(value, 3) for name, value in seconds.items()}

    @contextmanager
    def measure(self, name: str) -> Generator[None]:
        """Counts the time of a `with` block."""
        began = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - began, 3)


def utc() -> str:
    """Returns the time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment() -> dict[str, Any]:
    """Returns `at`, the time; `load`, the processes that wanted a core in the last minute; and `memory`, by `memory`."""
    return {"at": utc(), **_load(), "memory": memory()}


def memory() -> dict[str, int]:
    """Returns the most bytes that this process had so far: `peak` in memory, and `cuda` on its GPU where it used one."""
    found: dict[str, int] = {}
    if sys.platform != "win32":
        import resource  # not there on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found["peak"] = peak if sys.platform == "darwin" else 1024 * peak
    import torch  # here, since `fedelta doctor` counts cores where torch may be broken

    if torch.cuda.is_initialized():
        found["cuda"] = torch.cuda.max_memory_allocated()
    return found


def cores() -> int:
    """Returns the number of cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _load() -> dict[str, float]:
    return {} if sys.platform == "win32" else {"load": round(os.getloadavg()[0], 2)}
