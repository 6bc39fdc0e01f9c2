"""A cohort's round over two processes, against one process.

FedAvg of MiniLM, rank 8 on query and value, eight clients of batches of 4 x 64 random tokens. Each way is started afresh in
each repeat, in turns, beginning with another one; given are median and quartiles of ratios that are formed within a repeat:

    sequential   1 process of one thread / 2 processes of one thread, one client after another; wanted: 1.4 on two quiet cores
    batched      1 process of two threads / 2 processes of one thread, joint passes; 1.0 to 1.1 is expected

All rounds but the first count. Beside seconds by the clock stand those of the processor, of the rank that takes most, which
hardly feel what else the machine does, but hide what waits. The states after the last round are compared to the bit, for the
sequential engine. What each start measured goes to stderr as it comes.

    python benchmarks/shards.py [--quick] [--json] [--model tiny] [--shape 4x16]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from common.timing import ratios, summary
from common.workloads import MODELS, Shape, adapted_model, hush, make_clients

from fedelta.engines.choice import runner_of
from fedelta.engines.rounds import Round
from fedelta.engines.runners.sharded.leader import sharded
from fedelta.engines.runners.sharded.ranks import Crew
from fedelta.engines.runners.sharded.worker import serve, shard_of
from fedelta.engines.server import federate
from fedelta.engines.settings import Choice
from fedelta.exchange import wire
from fedelta.exchange.channel import Channel
from fedelta.method import Client
from fedelta.methods import get_method

CLIENTS = 8


@dataclass(frozen=True)
class Way:
    """One way to play the rounds."""

    engine: str
    processes: int
    threads: int


WAYS = {
    "sequential": (Way("sequential", 1, 1), Way("sequential", 2, 1)),
    "batched": (Way("batched", 1, 2), Way("batched", 2, 1)),
}
"""By the name of the gain, what is divided by what."""


def play(args: argparse.Namespace) -> None:
    """One rank of a run, or a whole one, in this process; prints what it measured."""
    torch.set_num_threads(args.threads)
    shape, choice, method = Shape.read(args.shape), Choice(args.engine), get_method("fedavg")
    adapted = adapted_model(args.model)
    clients: list[Client] = [*make_clients(adapted, CLIENTS, batch=shape.batch, length=shape.length, steps=args.steps)]
    here = runner_of(choice)
    rounds = partial(federate, method, clients, rounds=args.rounds + 1)
    began = time.process_time()
    if "RANK" not in os.environ:
        found = _timed(rounds(engine=here))
    elif os.environ["RANK"] == "0":
        with Crew() as crew:
            crew.settle("")
            found = _timed(rounds(engine=sharded(crew, here)))
    else:
        serve(lambda _: shard_of(method, clients, Channel(), here, {}))
        found = {"cpu_seconds_round": (time.process_time() - began) / (args.rounds + 1)}
    print(json.dumps(found))


def _timed(rounds: Iterator[Round]) -> dict[str, Any]:
    seconds, cpu, state = list[float](), list[float](), ""
    for done in rounds:
        seconds.append(done.seconds)
        cpu.append(time.process_time())
        state = hashlib.sha256(wire.encode({"state": done.state})).hexdigest()
    of_rounds = (after - before for before, after in pairwise(cpu))
    return {
        "seconds_round": statistics.median(seconds[1:]),
        "cpu_seconds_round": statistics.median(of_rounds),
        "state": state,
    }


def measured(way: Way, args: argparse.Namespace) -> dict[str, Any]:
    """The same in fresh processes."""
    options = {"--engine": way.engine, "--threads": way.threads, "--rounds": args.rounds, "--steps": args.steps}
    options |= {"--model": args.model, "--shape": args.shape}
    command = [sys.executable, __file__, *(str(x) for pair in options.items() for x in pair)]
    ranks = [{}] if way.processes == 1 else _addresses(way.processes)
    environments = [{**os.environ, "OMP_NUM_THREADS": str(way.threads), **rank} for rank in ranks]
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for environment in environments]
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"{way} failed")
    found = [json.loads(text.splitlines()[-1]) for text in said]
    row = {**found[0], "cpu_seconds_round": max(row["cpu_seconds_round"] for row in found)}
    print(f"{way} {row} load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    return row


def _addresses(count: int) -> list[dict[str, str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**shared, "RANK": str(rank)} for rank in range(count)]


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """All ways, in turns."""
    gains = {name: WAYS[name] for name in args.gains}
    ways = [way for pair in gains.values() for way in pair]
    taken: dict[Way, list[dict[str, Any]]] = {way: [] for way in ways}
    loads = [os.getloadavg()[0]]
    for repeat in range(args.repeats):
        first = repeat % len(ways)
        for way in ways[first:] + ways[:first]:
            taken[way].append(measured(way, args))
        loads.append(os.getloadavg()[0])
    seconds = {way: [row["seconds_round"] for row in rows] for way, rows in taken.items()}
    cpu = {way: [row["cpu_seconds_round"] for row in rows] for way, rows in taken.items()}
    states = {row["state"] for way in ways if way.engine == "sequential" for row in taken[way]}
    return {
        "model": args.model,
        "shape": args.shape,
        "gains": {name: summary(ratios(seconds[one], seconds[two])) for name, (one, two) in gains.items()},
        "cpu_gains": {name: summary(ratios(cpu[one], cpu[two])) for name, (one, two) in gains.items()},
        "seconds_round": {f"{w.engine}, {w.processes} x {w.threads}": statistics.median(seconds[w]) for w in ways},
        "all_seconds_round": {f"{w.engine}, {w.processes} x {w.threads}": seconds[w] for w in ways},
        "same_bits": len(states) < 2,
        "load_before_and_after_each_repeat": loads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the tiny model, once")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--model", choices=MODELS, default="minilm")
    parser.add_argument("--shape", default="4x64")
    parser.add_argument("--gains", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--steps", type=int, default=3, help="of a client in a round")
    parser.add_argument("--rounds", type=int, default=2, help="that count")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    hush()
    if args.engine:
        play(args)
        return
    if args.quick:
        args.model, args.repeats, args.rounds = "tiny", 1, 1
    found = compare(args)
    if args.json:
        print(json.dumps(found))
        return
    for kind in ("gains", "cpu_gains"):
        for name, gain in found[kind].items():
            low, high = gain["quartiles"]
            print(f"{kind:<10} {name:<12} {gain['median']:.2f} ({low:.2f} - {high:.2f})")
    for name, value in found["seconds_round"].items():
        print(f"{name:<20} {value:.2f} s a round")
    print(f"same bits: {found['same_bits']}; load {', '.join(f'{x:.1f}' for x in found['load_before_and_after_each_repeat'])}")


if __name__ == "__main__":
    main()
