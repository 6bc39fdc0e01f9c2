"""The peak of this process's memory."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path


def forget_peak() -> None:
    """Starts the record of the peak anew where the system can; else loading the model may hide the round's own peak."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """The largest resident size of this process on record; pages of mapped files count."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024  # pyright: ignore[reportOptionalSubscript]
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def resident_mib() -> float:
    """The resident size of this process now, where the system says it; else the largest on record."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return peak_mib()
    return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
