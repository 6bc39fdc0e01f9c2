"""What a round costs when the population grows and the cohort does not.

FedAvg on the tiny model with 10, 100, 1,000 and 10,000 clients, of whom ten take part in a round; batches of 4 x 16 random
tokens, two local steps. Every population runs in a process of its own, in turns. Given are the median seconds of a round
without the first, the memory that the rounds add to the peak, and, apart, what it takes to make the clients: their data is in
memory. Seconds and added memory of a round are wanted flat: at the largest population within 1.25 of those at the smallest
(memory: or 16 MiB).

    python benchmarks/scale.py [--quick] [--json] [--populations 10 1000] [--method fedavg]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from common.memory import forget_peak, peak_mib
from common.workloads import adapted_model, hush, make_clients

from fedelta import sampling
from fedelta.engines.server import federate
from fedelta.methods import get_method

COHORT, BATCH, LENGTH, STEPS = 10, 4, 16, 2
POPULATIONS, QUICK_POPULATIONS = (10, 100, 1_000, 10_000), (10, 1_000)
FLAT, SLACK_MIB = 1.25, 16.0


def measure_here(population: int, rounds: int, method: str) -> dict[str, float]:
    """One population in this process, which does nothing else."""
    adapted = adapted_model("tiny", "auto")
    empty, began = peak_mib(), time.perf_counter()
    clients = make_clients(adapted, population, batch=BATCH, length=LENGTH, steps=STEPS)
    made = time.perf_counter()
    forget_peak()
    loaded, seconds, cpu = peak_mib(), list[float](), list[float]()
    for done in federate(get_method(method), clients, rounds=rounds + 1, cohort=sampling.uniform(COHORT), engine="auto"):
        seconds.append(done.seconds)
        cpu.append(time.process_time())  # hardly feels what else the machine does
    return {
        "seconds_round": statistics.median(seconds[1:]),
        "cpu_seconds_round": statistics.median(after - before for before, after in pairwise(cpu)),
        "mib_added_by_rounds": peak_mib() - loaded,
        "seconds_making_clients": made - began,
        "mib_of_clients": loaded - empty,
    }


def measure(population: int, args: argparse.Namespace) -> dict[str, float]:
    """The same in a fresh process."""
    options = {"--population": population, "--rounds": args.rounds, "--method": args.method, "--threads": args.threads}
    command = [sys.executable, __file__, *(str(x) for pair in options.items() for x in pair)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def medians(taken: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Over the repeats."""
    return {name: statistics.median(row[name] for row in taken) for name in taken[0]}


def verdict(rows: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """Largest over smallest population."""
    small, large = rows[min(rows)], rows[max(rows)]
    seconds = large["seconds_round"] / small["seconds_round"]
    added, before = large["mib_added_by_rounds"], small["mib_added_by_rounds"]
    return {
        "seconds_ratio": seconds,
        "cpu_seconds_ratio": large["cpu_seconds_round"] / small["cpu_seconds_round"],
        f"seconds_within_{FLAT}": seconds <= FLAT,
        "memory_flat": added <= max(FLAT * before, before + SLACK_MIB),
    }


def report(rows: Mapping[int, Mapping[str, float]]) -> str:
    """The table as text."""
    lines = [f"{'clients':>8}{'s/round':>10}{'cpu':>10}{'MiB added':>11}{'s to make':>11}{'MiB made':>10}"]
    for population, row in rows.items():
        lines.append(
            f"{population:>8}{row['seconds_round']:>10.4f}{row['cpu_seconds_round']:>10.4f}{row['mib_added_by_rounds']:>11.1f}"
            f"{row['seconds_making_clients']:>11.2f}{row['mib_of_clients']:>10.1f}"
        )
    return "\n".join([*lines, *(f"{name:24} {value}" for name, value in verdict(rows).items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 and 1,000 clients, once; under 50 s")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--populations", nargs="+", type=int, help="of clients")
    parser.add_argument("--method", default="fedavg")
    parser.add_argument("--rounds", type=int, help="timed; 10 with --quick, else 20")
    parser.add_argument("--repeats", type=int, help="processes of each population; 1 with --quick, else 3")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--population", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.rounds = args.rounds or (10 if args.quick else 20)
    hush()
    torch.set_num_threads(args.threads)
    if args.population:
        print(json.dumps(measure_here(args.population, args.rounds, args.method)))
        return
    populations = args.populations or (QUICK_POPULATIONS if args.quick else POPULATIONS)
    repeats = args.repeats or (1 if args.quick else 3)
    taken = [{population: measure(population, args) for population in populations} for _ in range(repeats)]
    rows = {population: medians([repeat[population] for repeat in taken]) for population in populations}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "threads": args.threads}
    result = {"benchmark": "scale", **versions, "method": args.method, "cohort": COHORT, "rounds": args.rounds, "rows": rows}
    print(json.dumps(result | verdict(rows)) if args.json else report(rows))


if __name__ == "__main__":
    main()
