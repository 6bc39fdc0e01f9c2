"""What fedelta costs on top of PEFT: the time of a round, and the memory of ten clients; and how far a round is from the floor.

Time: a sequential FedAvg round of ten clients through `federate`, against the same steps on the same batches in a loop written
by hand with PEFT and torch.optim: load the adapter's state dict, train, take the state dict, average. Passes are full and
products torch's own, as in the loop. At most 1.05 is wanted.

Floor: the same rows through one plain LoRA training without a federation, with the fastest of a few batch sizes. A round of the
engine, products and passes that a user gets without asking is given as a multiple of it; at most 1.3 is wanted. The floor is
taken twice: with torch's own products, as a plain training has them, and with those of `gemm="auto"`; its passes are full.

All run in one process, in turns; ratios are medians over the repeats.

Memory: the peak resident size, during a round, of a process with ten clients against one with a single client, one after
another (within 5 % is wanted), and of 32 clients in joint passes against the same one after another (below 2 is wanted). What
the round adds to the loaded model is given as well, since most of a process is libraries.

    python benchmarks/overhead.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from common.memory import forget_peak, peak_mib
from common.timing import cpus, interleaved, ratios, summary, walls
from common.workloads import Gemm, adapted_model, hush, make_clients, work_of, write_start
from rivals import bare
from rivals.work import Work

from fedelta.client import LocalClient
from fedelta.engines.server import federate
from fedelta.methods import get_method
from fedelta.models.fast.frozen_gemm import FrozenProducts, resolve

MODEL, CLIENTS, BATCH, LENGTH = "minilm", 10, 4, 64
MANY = 32
"""Clients of the joint passes of which memory is taken."""

FLOOR_BATCHES, QUICK_FLOOR_BATCHES = (4, 8, 16, 32), (20,)
FLOORS: dict[str, Gemm] = {"plain": "default", "fast": "auto"}


def clients_of(count: int, steps: int, gemm: Gemm = "default", *, compact: bool = True) -> list[LocalClient]:
    """Clients, all on one model."""
    return make_clients(adapted_model(MODEL, gemm, compact), count, batch=BATCH, length=LENGTH, steps=steps)


# --- time ------------------------------------------------------------------------------------------------------------


def federated_round(clients: Sequence[LocalClient], engine: str = "sequential") -> None:
    for _ in federate(get_method("fedavg"), clients, rounds=1, engine=engine):
        pass


def bare_model(clients: Sequence[LocalClient], gemm: Gemm = "default") -> Any:
    """A PEFT model with the clients' initial adapter, that knows nothing of fedelta but its frozen products."""
    with tempfile.TemporaryDirectory() as folder:
        write_start(Path(folder), MODEL, clients)
        model = bare.load_model(Path(folder))
    FrozenProducts(model, resolve(gemm))
    return model


def measure_time(repeats: int, steps: int) -> dict[str, Any]:
    clients = clients_of(CLIENTS, steps, compact=False)
    model, work = bare_model(clients), work_of(clients, LENGTH)
    runs = {
        "fedelta": partial(federated_round, clients),
        "bare": partial(bare.one_round, model, work, bare.state_of(model)),
    }
    warm_up(runs.values())
    seconds = interleaved(runs, repeats)
    ratio = summary(ratios(walls(seconds["fedelta"]), walls(seconds["bare"])))
    return {
        "pairs": repeats,
        "local_steps": steps,
        "seconds_fedelta": summary(walls(seconds["fedelta"]))["median"],
        "seconds_bare": summary(walls(seconds["bare"]))["median"],
        "ratio": ratio["median"],
        "ratio_quartiles": ratio["quartiles"],
        "ratio_of_cpu_time": summary(ratios(cpus(seconds["fedelta"]), cpus(seconds["bare"])))["median"],
        "ratio_within_1.05": ratio["median"] <= 1.05,
    }


def warm_up(runs: Iterable[Callable[[], Any]]) -> None:
    for run in runs:
        run()


# --- floor -----------------------------------------------------------------------------------------------------------


def pooled(work: Work, batch: int) -> Work:
    """All rows of a round as the epoch of one client, in larger batches; what is left over from the last one is dropped."""
    rows = work.labels.numel()
    return replace(
        work,
        input_ids=work.input_ids.reshape(1, rows, -1),
        lengths=work.lengths.reshape(1, rows),
        labels=work.labels.reshape(1, rows),
        order=torch.randperm(rows)[: rows // batch * batch].view(1, 1, -1, batch),
    )


def measure_floor(repeats: int, steps: int, batches: Sequence[int]) -> dict[str, Any]:
    """The seconds of a row, since batches that do not divide the rows drop some."""
    clients = clients_of(CLIENTS, steps, "auto")
    work = work_of(clients, LENGTH)
    rows = {"round": work.labels.numel()}
    runs: dict[str, Callable[[], Any]] = {"round": partial(federated_round, clients, "auto")}
    for label, gemm in FLOORS.items():
        model = bare_model(clients, gemm)
        for batch in batches:
            one = pooled(work, batch)
            rows[f"{label}_{batch}"] = one.order.numel()
            runs[f"{label}_{batch}"] = partial(bare.one_round, model, one, bare.state_of(model))
    warm_up(runs.values())
    by_row = {name: [s / rows[name] for s in walls(taken)] for name, taken in interleaved(runs, repeats).items()}
    found = {label: floor_of(by_row["round"], {b: by_row[f"{label}_{b}"] for b in batches}) for label in FLOORS}
    return found["plain"] | {f"{name}_same_gemm": value for name, value in found["fast"].items()}


def floor_of(of_round: Sequence[float], tried: Mapping[int, Sequence[float]]) -> dict[str, Any]:
    """The round as a multiple of the batch size that is fastest by its median; seconds of a row."""
    best = min(tried, key=lambda batch: summary(tried[batch])["median"])
    ratio = summary(ratios(of_round, tried[best]))
    return {
        "floor_batch": best,
        "floor_milliseconds_row": 1e3 * summary(tried[best])["median"],
        "floor_ratio": ratio["median"],
        "floor_ratio_quartiles": ratio["quartiles"],
        "floor_ratio_within_1.3": ratio["median"] <= 1.3,
    }


# --- memory ----------------------------------------------------------------------------------------------------------


def report_peak(count: int, steps: int, engine: str) -> dict[str, float]:
    """Runs one round in this process, which does nothing else."""
    clients = clients_of(count, steps)
    forget_peak()
    loaded = peak_mib()
    federated_round(clients, engine)
    return {"loaded": loaded, "peak": peak_mib()}


def measure_memory(steps: int) -> dict[str, Any]:
    def child(count: int, engine: str = "sequential") -> dict[str, float]:
        options = {"--peak": count, "--steps": steps, "--threads": torch.get_num_threads(), "--engine": engine}
        command = [sys.executable, __file__, *(str(part) for option in options.items() for part in option)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])

    one, ten = child(1), child(CLIENTS)
    alone, joint = child(MANY), child(MANY, "batched")
    return {
        "peak_mib_one_client": one["peak"],
        "peak_mib_ten_clients": ten["peak"],
        "added_mib_one_client": one["peak"] - one["loaded"],
        "added_mib_ten_clients": ten["peak"] - ten["loaded"],
        "memory_ratio": ten["peak"] / one["peak"],
        "memory_within_5_percent": ten["peak"] <= 1.05 * one["peak"],
        f"peak_mib_{MANY}_sequential": alone["peak"],
        f"peak_mib_{MANY}_batched": joint["peak"],
        "memory_ratio_of_joint_passes": joint["peak"] / alone["peak"],
        "memory_of_joint_passes_below_2": joint["peak"] < 2 * alone["peak"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats and steps; under 50 s")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--pairs", type=int, help="3 with --quick, else 15; of the floor 1 and 7")
    parser.add_argument("--steps", type=int, help="local steps; 1 with --quick, else 3")
    parser.add_argument("--threads", type=int, default=1, help="of torch; one gives the steadiest times")
    parser.add_argument("--peak", type=int, metavar="CLIENTS", help=argparse.SUPPRESS)
    parser.add_argument("--engine", default="sequential", help=argparse.SUPPRESS)
    args = parser.parse_args()
    hush()
    torch.set_num_threads(args.threads)
    pairs, steps = args.pairs or (3 if args.quick else 15), args.steps or (1 if args.quick else 3)
    if args.peak:
        print(json.dumps(report_peak(args.peak, steps, args.engine)))
        return
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "threads": args.threads}
    result = {"benchmark": "overhead", **versions, **measure_time(pairs, steps)}
    batches, repeats = (QUICK_FLOOR_BATCHES, 1) if args.quick else (FLOOR_BATCHES, max(1, pairs // 2))
    result |= measure_floor(repeats, steps, batches) | measure_memory(steps)
    print(json.dumps(result) if args.json else "\n".join(f"{k:34} {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
