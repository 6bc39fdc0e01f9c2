"""How long an exact aggregation takes, and how much memory: thin factors against a dense SVD.

    python benchmarks/aggregate.py [--quick] [--json]

One layer of d x d, 10 clients of rank r in float32, one thread: `fedelta.aggregate(..., method="flexlora")` against forming the
mean of the deltas as a matrix and calling `torch.linalg.svd`. `--quick` measures d = 4096 alone, with the dense SVD made once.
Peak memory is that of a fresh process: the high-water mark after the aggregation less that before it.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import fedelta
from fedelta.lowrank import LoRA
from fedelta.tree import Adapter

CLIENTS, RANK, LORA_ALPHA = 10, 16, 16.0


def adapters(d: int) -> list[Adapter]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return [Adapter({"layer": LoRA(draw(d, RANK), draw(RANK, d), LORA_ALPHA / RANK)}) for _ in range(CLIENTS)]


def ours(given: list[Adapter]) -> LoRA:
    return fedelta.aggregate(given, method="flexlora")[0].layers["layer"]


def dense_mean(given: list[Adapter]) -> torch.Tensor:
    first, *rest = (a.layers["layer"].dense() for a in given)
    for delta in rest:
        first += delta
    return first / len(given)


def by_dense_svd(given: list[Adapter]) -> LoRA:
    U, S, Vh = torch.linalg.svd(dense_mean(given), full_matrices=False)
    return LoRA(U[:, :RANK] * S[:RANK], Vh[:RANK])


def timed(fn: Callable[[list[Adapter]], LoRA], given: list[Adapter], repeats: int) -> tuple[float, LoRA]:
    """The median time in seconds, and the last result."""
    times, results = list[float](), list[LoRA]()
    for _ in range(repeats):
        began = time.perf_counter()
        results = [fn(given)]
        times.append(time.perf_counter() - began)
    return statistics.median(times), results[0]


def peak_bytes(d: int) -> int:
    """Extra peak memory of our aggregation, measured in a process that does nothing else."""
    command = [sys.executable, __file__, "--peak-of", str(d)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def own_peak(d: int) -> int:
    ours(adapters(64))  # what is loaded and allocated at a first call is not the aggregation's
    given = adapters(d)
    before = high_water()
    ours(given)
    return high_water() - before


def high_water() -> int:
    """Peak resident bytes of this process; on Linux not by getrusage, which counts the parent's before exec as well."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(d: int, dense_repeats: int) -> dict[str, float]:
    given = adapters(d)
    ours(given)
    fast, found = timed(ours, given, 7)
    slow, best = timed(by_dense_svd, given, dense_repeats)
    exact, peak = dense_mean(given), peak_bytes(d)
    return {
        "d": d,
        "ours_s": fast,
        "dense_s": slow,
        "ratio": slow / fast,
        "peak_bytes": peak,
        "peak_of_dense": peak / (d * d * 4),
        "error_over_best": float((found.dense() - exact).norm() / (best.dense() - exact).norm()),
    }


def report(rows: list[dict[str, float]]) -> None:
    print(f"{CLIENTS} clients, rank {RANK}, float32, {torch.get_num_threads()} thread, torch {torch.__version__}")
    print(f"{'d':>6} {'ours':>10} {'dense SVD':>10} {'ratio':>8} {'peak':>10} {'of one d x d':>13}")
    for r in rows:
        print(
            f"{r['d']:>6} {r['ours_s'] * 1e3:>8.1f}ms {r['dense_s']:>9.2f}s {r['ratio']:>7.0f}x "
            f"{r['peak_bytes'] / 1e6:>8.1f}MB {r['peak_of_dense']:>13.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="d = 4096 only, dense SVD once")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak_of:
        print(own_peak(options.peak_of))
        return
    sizes = {4096: 1} if options.quick else {768: 5, 1024: 5, 2048: 3, 4096: 1}
    rows = [measure(d, repeats) for d, repeats in sizes.items()]
    if options.json:
        print(json.dumps({"benchmark": "aggregate", "clients": CLIENTS, "rank": RANK, "rows": rows}))
    else:
        report(rows)


if __name__ == "__main__":
    main()
