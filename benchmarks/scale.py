"""What a round costs when the population grows and the cohort does not.

`toy`: 1,000 to 1,000,000 toy clients in columns, made on demand, of whom a hundred take part in a round. At the largest
population a round is wanted within 0.2 s of one at the smallest, and the whole process under 700 MiB at its peak.

`tiny`: 10 to 10,000 clients of the tiny model in a list, of whom ten take part; batches of 4 x 16 random tokens, two local
steps. Seconds and added memory of a round are wanted flat: at the largest population within 1.25 of those at the smallest
(memory: or 16 MiB).

FedAvg, unless another method is named. Every population runs in a process of its own, in turns. Given are the median seconds of
a round without the first, by the clock and of the processor, the memory that the rounds add to the peak, the peak itself, and,
apart, what it takes to make the clients.

    python benchmarks/scale.py [--quick] [--json] [--clients toy] [--populations 1000 1000000] [--method fedavg]
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

import numpy as np
import torch
import transformers
from common.memory import forget_peak, peak_mib
from common.workloads import adapted_model, hush, make_clients

from fedelta import sampling
from fedelta.engines.server import federate
from fedelta.method import Client
from fedelta.methods import get_method
from fedelta.models.toy import toy_population
from fedelta.peers import Peer
from fedelta.population import Population

BATCH, LENGTH, STEPS, EXAMPLES = 4, 16, 2, 12
COHORT = {"toy": 100, "tiny": 10}
POPULATIONS = {"toy": (1_000, 10_000, 100_000, 1_000_000), "tiny": (10, 100, 1_000, 10_000)}
QUICK_POPULATIONS = {"toy": (1_000, 1_000_000), "tiny": (10, 1_000)}
FLAT, SLACK_MIB = 1.25, 16.0
WITHIN_SECONDS, MOST_MIB = 0.2, 700.0


def tiny_clients(population: int) -> Sequence[Client]:
    """A list of clients with rows of their own on the tiny model."""
    return make_clients(adapted_model("tiny", "auto"), population, batch=BATCH, length=LENGTH, steps=STEPS)


def toy_clients(population: int) -> Sequence[Client]:
    """Toy clients of rank 2 that are made on demand."""
    return toy_population(Population(Peer(0, 2), np.full(population, EXAMPLES)))


def measure_here(kind: str, population: int, rounds: int, method: str) -> dict[str, float]:
    """One population in this process, which does nothing else."""
    empty, began = peak_mib(), time.perf_counter()
    clients = tiny_clients(population) if kind == "tiny" else toy_clients(population)
    made, peak = time.perf_counter(), peak_mib()
    forget_peak()
    loaded, seconds, cpu = peak_mib(), list[float](), list[float]()
    for done in federate(get_method(method), clients, rounds=rounds + 1, cohort=sampling.uniform(COHORT[kind]), engine="auto"):
        seconds.append(done.seconds)
        cpu.append(time.process_time())  # hardly feels what else the machine does
    return {
        "seconds_round": statistics.median(seconds[1:]),
        "cpu_seconds_round": statistics.median(after - before for before, after in pairwise(cpu)),
        "mib_added_by_rounds": peak_mib() - loaded,
        "seconds_making_clients": made - began,
        "mib_of_clients": loaded - empty,
        "mib_peak": max(peak, peak_mib()),
    }


def measure(kind: str, population: int, args: argparse.Namespace) -> dict[str, float]:
    """The same in a fresh process."""
    options = {
        "--clients": kind,
        "--population": population,
        "--rounds": args.rounds,
        "--method": args.method,
        "--threads": args.threads,
    }
    command = [sys.executable, __file__, *(str(x) for pair in options.items() for x in pair)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def medians(taken: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Over the repeats."""
    return {name: statistics.median(row[name] for row in taken) for name in taken[0]}


def verdict(kind: str, rows: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """The largest population beside the smallest."""
    small, large = rows[min(rows)], rows[max(rows)]
    if kind == "toy":
        more = large["seconds_round"] - small["seconds_round"]
        return {
            "seconds_more": more,
            "cpu_seconds_more": large["cpu_seconds_round"] - small["cpu_seconds_round"],
            f"seconds_more_within_{WITHIN_SECONDS}": more <= WITHIN_SECONDS,
            f"peak_under_{MOST_MIB:g}_mib": large["mib_peak"] < MOST_MIB,
        }
    seconds = large["seconds_round"] / small["seconds_round"]
    added, before = large["mib_added_by_rounds"], small["mib_added_by_rounds"]
    return {
        "seconds_ratio": seconds,
        "cpu_seconds_ratio": large["cpu_seconds_round"] / small["cpu_seconds_round"],
        f"seconds_within_{FLAT}": seconds <= FLAT,
        "memory_flat": added <= max(FLAT * before, before + SLACK_MIB),
    }


def report(kind: str, rows: Mapping[int, Mapping[str, float]]) -> str:
    """The table as text."""
    lines = [f"{kind:>9}{'s/round':>10}{'cpu':>10}{'MiB added':>11}{'s to make':>11}{'MiB made':>10}{'MiB peak':>10}"]
    for population, row in rows.items():
        lines.append(
            f"{population:>9}{row['seconds_round']:>10.4f}{row['cpu_seconds_round']:>10.4f}{row['mib_added_by_rounds']:>11.1f}"
            f"{row['seconds_making_clients']:>11.2f}{row['mib_of_clients']:>10.1f}{row['mib_peak']:>10.1f}"
        )
    return "\n".join([*lines, *(f"{name:24} {value}" for name, value in verdict(kind, rows).items())])


def race(kind: str, args: argparse.Namespace) -> dict[int, dict[str, float]]:
    """The medians of each population of a kind of clients."""
    populations = args.populations or (QUICK_POPULATIONS if args.quick else POPULATIONS)[kind]
    repeats = args.repeats or (1 if args.quick else 3)
    taken = [{population: measure(kind, population, args) for population in populations} for _ in range(repeats)]
    return {population: medians([repeat[population] for repeat in taken]) for population in populations}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two populations of each kind, once; under 50 s")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--clients", choices=tuple(COHORT), help="of one kind; both without it")
    parser.add_argument("--populations", nargs="+", type=int, help="of clients; with --clients")
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
        print(json.dumps(measure_here(args.clients, args.population, args.rounds, args.method)))
        return
    found = {kind: race(kind, args) for kind in ([args.clients] if args.clients else COHORT)}
    if not args.json:
        print("\n\n".join(report(kind, rows) for kind, rows in found.items()))
        return
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "threads": args.threads}
    of_kind = {kind: {"cohort": COHORT[kind], "rows": rows, **verdict(kind, rows)} for kind, rows in found.items()}
    print(json.dumps({"benchmark": "scale", **versions, "method": args.method, "rounds": args.rounds, **of_kind}))


if __name__ == "__main__":
    main()
