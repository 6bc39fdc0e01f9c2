"""What a thousand to ten million clients cost a server, in bytes, seconds and memory, by family of methods.

Measured are a round of 100 of up to 10^6 toy clients (`scale.py`; once of 10^7, to try the model); the server's own work on
cohorts of 100 and 1,000 clients that answer at once, with the adapter of MiniLM (rank 8 on query and value, float32) and no
training; and the tables of a server that has seen up to 10^6 clients. What more cost follows from the model that is printed.

    python benchmarks/costs.py [--quick] [--json] [--write]

`--write` keeps what was measured in results/costs.json; the tables of docs/explanation/scale.md are made of that file, by
`python benchmarks/costs.py --tables`, which measures nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from common.cost_tables import FAMILIES, tables, with_tables
from common.memory import resident_mib

from fedelta import sampling, seeding, tree
from fedelta.engines.federation import Federation
from fedelta.engines.memories import InMemory
from fedelta.engines.rounds import Round, Snapshot
from fedelta.engines.server import federate
from fedelta.engines.settings import RunSettings
from fedelta.exchange import wire
from fedelta.lowrank import LoRA
from fedelta.method import TrainResult
from fedelta.methods import get_method
from fedelta.models.toy import toy_population
from fedelta.peers import Peer, template_for
from fedelta.population import ClientsOnDemand, Population
from fedelta.tree import Adapter

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "costs.json", HERE.parent / "docs" / "explanation" / "scale.md"

LAYERS, WIDTH, RANK, LABELS, VARIANTS = 12, 384, 8, 6, 16
COHORTS, QUICK_COHORTS, ROUNDS = (100, 1_000), (10, 100), 3
SEEN, QUICK_SEEN = 10**6, 10**4
REMEMBERED = 10**5  # of clients with a memory of their own, whose tensors take the room of many numbers
POPULATIONS, QUICK_POPULATIONS = (10**3, 10**4, 10**5, 10**6, 10**7), (10**3, 10**5)


# --- clients that answer at once -------------------------------------------------------------------------------------


def minilm_adapter(seed: int | None = None) -> Adapter:
    """The adapter of MiniLM with a head of six labels: as training begins, or moved a little by training of a seed."""
    common = seeding.generator(0, 0, seeding.SERVER, "costs")
    own = seeding.generator(seed or 0, 0, 0, "costs")
    size = 0.0 if seed is None else 1e-3

    def moved(*shape: int) -> torch.Tensor:
        return size * torch.randn(*shape, generator=own)

    layers = {}
    for k in range(LAYERS):
        rows = torch.rand(RANK, WIDTH, generator=common) - 0.5
        layers[f"layer.{k}"] = LoRA(moved(WIDTH, RANK), rows + moved(RANK, WIDTH))
    return Adapter(layers, {"head": moved(LABELS, WIDTH)})


@dataclass(eq=False)
class Instant:
    """A client that answers with an adapter that was trained before."""

    peer: Peer
    template: Adapter
    trained: Adapter
    num_steps: int = 1
    copies_start: bool = True

    def train(self, t: int, start: Adapter, *, gradient: Any = None, **_: Any) -> TrainResult:
        if gradient is not None:
            params = tree.parameters(self.trained)
            gradient({n: torch.zeros_like(x) for n, x in params.items()}, params, 0)
        layers = {n: LoRA(x.B, x.A, start.layers[n].scale) for n, x in self.trained.layers.items()}
        return TrainResult(Adapter(layers, self.trained.dense), 1, 0.5, 1e-3)


def instant_clients(count: int) -> ClientsOnDemand:
    template, trained = minilm_adapter(), [minilm_adapter(seed) for seed in range(1, VARIANTS + 1)]

    def make(peer: Peer) -> Any:
        return Instant(peer, template_for(peer, template), trained[peer.id % VARIANTS])

    return ClientsOnDemand(Population(Peer(0, RANK), np.full(count, 10)), make)


# --- measurements, each in a process of its own ----------------------------------------------------------------------


def cohort_here(method: str, cohort: int) -> dict[str, float]:
    """The median of the rounds of instant clients without the first, in which the base is still bare."""
    seconds, cpu, done = list[float](), list[float](), None
    before = time.process_time()
    for done in federate(get_method(method), instant_clients(cohort), rounds=ROUNDS + 1, spool=False):
        seconds.append(done.seconds)
        cpu.append(time.process_time() - before)
        before = time.process_time()
    assert done is not None
    memories = [wire.size(memory) for memory in done.client_states.values()]
    return {
        "seconds": statistics.median(seconds[1:]),
        "cpu_seconds": statistics.median(cpu[1:]),
        "down": statistics.fmean(done.bytes.down.values()),
        "up": statistics.fmean(done.bytes.up.values()),
        "state": wire.size(done.state),
        "memory": statistics.fmean(memories) if memories else 0.0,
    }


def seen_here(method: str, seen: int) -> dict[str, float]:
    """The resident bytes for each client of a server and its clients' memories once `seen` toy clients took part."""
    clients = toy_population(Population(Peer(0, 2), np.full(seen, 4)))
    last = list(federate(get_method(method), clients, rounds=2, cohort=sampling.uniform(min(20, seen))))[-1]
    federation = Federation.prepare(last.method, clients, last.template, RunSettings(rounds=3))
    memories = InMemory()
    gc.collect()
    before = resident_mib()
    start = as_if_all_had_taken_part(last, seen)
    federation.take_over(start)
    memories.restore(start.client_states, start.client_rounds)
    of_numbers = [wire.size(x) for x in last.client_states.values()]
    del start
    gc.collect()
    found = (resident_mib() - before) * 2**20 / seen
    return {"clients": seen, "bytes": found, "of_which_memory": statistics.fmean(of_numbers) if of_numbers else 0.0}


def as_if_all_had_taken_part(last: Round, seen: int) -> Snapshot:
    """The snapshot of a round, with what it knows of one client written for every one."""
    snapshot, ids = last.snapshot, [int(k) for k in range(seen)]
    one = next(iter(snapshot.client_states.values()), None)
    return Snapshot(
        snapshot.t,
        snapshot.seed,
        snapshot.state,
        {k: {n: tree.map_tensors(torch.clone, x) for n, x in one.items()} for k in ids} if one else {},
        dict.fromkeys(ids, 1),
        dict.fromkeys(ids, snapshot.t) if snapshot.base_versions else {},
        touched=dict.fromkeys(ids, 1) if one or snapshot.base_versions else {},
    )


PARTS: Mapping[str, Callable[[str, int], dict[str, float]]] = {"cohort": cohort_here, "seen": seen_here}
"""Measurements by the name under which `measure` starts a process for one."""


def in_a_fresh_process(kind: str, method: str, number: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--part", kind, "--method", method, "--number", str(number)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def measure(quick: bool) -> dict[str, Any]:
    """All that the tables are made of."""
    cohorts, seen = (QUICK_COHORTS, QUICK_SEEN) if quick else (COHORTS, SEEN)
    populations = QUICK_POPULATIONS if quick else POPULATIONS
    scale = [sys.executable, str(HERE / "scale.py"), "--json", "--clients", "toy", "--repeats", "1", "--rounds", "10"]
    scale += ["--populations", *map(str, populations)]
    families: dict[str, Any] = {}
    for method in list(FAMILIES)[: 2 if quick else None]:
        of_cohorts = {str(c): in_a_fresh_process("cohort", method, c) for c in cohorts}
        number = min(seen, REMEMBERED) if of_cohorts[str(cohorts[0])]["memory"] else seen
        families[method] = {"cohorts": of_cohorts, "seen": in_a_fresh_process("seen", method, number)}
    rows = json.loads(subprocess.run(scale, check=True, capture_output=True, text=True).stdout)["toy"]["rows"]
    return {"torch": torch.__version__, "threads": 1, "families": families, "populations": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two families, small cohorts and populations; under 50 s")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--write", action="store_true", help="keep what was measured in results/costs.json")
    parser.add_argument("--tables", action="store_true", help="make the page's tables of results/costs.json; measures nothing")
    parser.add_argument("--part", choices=tuple(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--method", help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.part:
        print(json.dumps(PARTS[args.part](args.method, args.number)))
        return
    found = json.loads(RESULTS.read_text()) if args.tables else measure(args.quick)
    if args.write:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    if args.tables:
        PAGE.write_text(with_tables(PAGE.read_text(), found))
    print(json.dumps({"benchmark": "costs", **found}) if args.json else tables(found))


if __name__ == "__main__":
    main()
