"""Times, memory and the ceiling of a device. On CUDA work is timed by events: the host returns before it is done."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch

Run: TypeAlias = Callable[[], Any]


def timed(run: Run, device: torch.device) -> float:
    """The seconds of one run, its work on the device included."""
    if device.type != "cuda":
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1e3


def interleaved(runs: Mapping[str, Run], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """The seconds of each run in each repeat; every repeat starts with another run. Nothing is run to warm up."""
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(timed(runs[name], device))
    return seconds


def peak_gib(run: Run, device: torch.device) -> float | None:
    """The most memory that tensors took on the device during a run, in GiB; None on a CPU."""
    if device.type != "cuda":
        run()
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) / 2**30


def ceiling(device: torch.device, dtype: torch.dtype, size: int, repeats: int = 20) -> float:
    """FLOP/s of a product of random matrices (size, size): the median of single products, of 2 size^3 operations each."""
    x, y = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = partial(torch.mm, x, y)
    for _ in range(5):
        product()
    return 2 * size**3 / statistics.median(timed(product, device) for _ in range(repeats))


def name_of(device: torch.device) -> str:
    """What the device calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
