"""How much memory a server needs, by the number of clients, with large adapters whose updates wait on disk.

FedAvg; each client sends back what it was sent. The server runs in a process of its own, whose anonymous pages are looked at
from outside, a thousand times a second: pages of mapped files, such as spooled updates, can be dropped and do not count. Given
is the most of them above what the process has before the census, in adapters.

A server over Flower cannot do without five adapters: the template, the state before and after, one letter and one reply. In
one process a letter is the state itself: four.

    flower       over a grid in place of the SuperLink, which keeps bodies on disk
    sequential   the engine of one process

    python benchmarks/server_memory.py [--quick] [--json] [--mib 100] [--clients 4 8] [--engines flower sequential]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import torch

from fedelta import tree
from fedelta.engines.census import enrol, survey
from fedelta.engines.rounds import Round
from fedelta.engines.server import federate
from fedelta.engines.site import Site
from fedelta.exchange import wire
from fedelta.exchange.channel import Channel
from fedelta.lowrank import LoRA
from fedelta.method import TrainResult
from fedelta.methods import get_method
from fedelta.peers import Peer
from fedelta.tree import Adapter

WIDTH, RANK, LORA_ALPHA = 4096, 16, 32
LAYER = 2 * WIDTH * RANK * 4  # bytes in float32
LAYOUTS = ("layers", "head")
HELD = {"flower": 5, "sequential": 4}
"""Adapters that an engine's server cannot do without."""


# --- the server, in a process of its own -----------------------------------------------------------------------------


def serve(args: argparse.Namespace) -> None:
    """Plays the rounds; prints the anonymous bytes that the process had before."""
    torch.set_num_threads(1)
    play = over_flower if args.serve == "flower" else in_one_process
    rounds = play(args.folder, args.clients[0], args.rounds)
    before = anonymous(os.getpid())
    count = sum(1 for _ in rounds)
    print(json.dumps({"before": before, "rounds": count}))


def over_flower(folder: Path, clients: int, rounds: int) -> Iterator[Round]:
    """The rounds over a grid, the census first."""
    from common.echo_grid import EchoGrid

    from fedelta.engines.runners.flower.sites import FlowerCarrier, FlowerSites

    mailbox = FlowerCarrier(EchoGrid(folder), poll=0.001)

    def play() -> Iterator[Round]:
        ask = partial(mailbox.ask, seconds=600.0)
        found = enrol(ask, survey(ask, mailbox.nodes(), "run", {}), "run", {})
        sites = FlowerSites(mailbox, "run")
        yield from federate(get_method("fedavg"), found.clients, found.template, rounds=rounds, engine=sites, spool=True)

    return play()


def in_one_process(folder: Path, clients: int, rounds: int) -> Iterator[Round]:
    """The rounds of the sequential engine."""

    def play() -> Iterator[Round]:
        template = wire.read_file(folder / "template")["template"]
        here = [Echo(peer(k), template) for k in range(clients)]
        yield from federate(get_method("fedavg"), here, template, rounds=rounds, engine="sequential", spool=True)

    return play()


class Echo:
    """A client that sends back what it was sent."""

    num_steps = 1

    def __init__(self, peer: Peer, template: Adapter) -> None:
        self.peer, self.template = peer, template

    def train(self, t: int, start: Adapter, **request: Any) -> TrainResult:
        return TrainResult(start, 1, 0.0, 0.0, {})

    def gradient(self, start: Adapter, num_batches: int, **request: Any) -> Adapter:
        raise NotImplementedError

    def base_weight(self, layer: str) -> torch.Tensor:
        raise NotImplementedError


def peer(k: int) -> Peer:
    return Peer(k, RANK, lora_alpha=LORA_ALPHA)


# --- the process beside it -------------------------------------------------------------------------------------------


def anonymous(pid: int) -> int:
    """The anonymous bytes that a process has in memory; 0 once it is gone."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return 0 if found is None else int(found[1]) * 1024


def adapter_of(layout: str, mib: int) -> Adapter:
    """An adapter of so many MiB."""
    scale = LORA_ALPHA / RANK
    count = max(1, (mib << 20) // LAYER) if layout == "layers" else 1
    layers = {f"layer.{n}": LoRA(torch.randn(WIDTH, RANK), torch.randn(RANK, WIDTH), scale) for n in range(count)}
    return Adapter(layers, {"head": torch.randn(mib << 8, 1024)} if layout == "head" else {}, base="none")


def prepare(folder: Path, clients: int, template: Adapter) -> None:
    """Writes what sites answer to a census."""
    site = Site(get_method("fedavg"), Echo(peer(0), template), Channel(), folder)
    about = dict(site.census(want_template=False).header)
    answers = {1001 + k: {**about, "name": f"site-{k}", "peer": {**about["peer"], "id": k}} for k in range(clients)}
    (folder / "census.json").write_text(json.dumps(answers))
    wire.write_file(folder / "template", {"template": template})


def measured(engine: str, layout: str, clients: int, args: argparse.Namespace) -> dict[str, Any]:
    """The peak of one server."""
    with tempfile.TemporaryDirectory() as folder:
        template = adapter_of(layout, args.mib)
        prepare(Path(folder), clients, template)
        command = [sys.executable, __file__, "--serve", engine, "--folder", folder]
        command += ["--clients", str(clients), "--rounds", str(args.rounds)]
        peak, began = 0, time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            while server.poll() is None:
                peak = max(peak, anonymous(server.pid))
                time.sleep(0.001)
            said = server.stdout.read() if server.stdout else ""
        if server.returncode:
            raise SystemExit(f"the server of {engine} with {clients} clients failed")
    adapters = (peak - json.loads(said.splitlines()[-1])["before"]) / (4 * tree.count(template))
    found = {"engine": engine, "layout": layout, "clients": clients, "adapters": adapters}
    return {**found, "times_held": adapters / HELD[engine], "seconds": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="adapters of 16 MiB")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--mib", type=int, default=100, help="size of an adapter (default: 100)")
    parser.add_argument("--clients", type=int, nargs="+", default=[4, 8], help="numbers of clients (default: 4 8)")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS, help="many small layers, or one head")
    parser.add_argument("--rounds", type=int, default=3, help="to play (default: 3)")
    here = [name for name in HELD if name != "flower" or importlib.util.find_spec("flwr")]
    parser.add_argument("--engines", nargs="+", choices=HELD, default=here, help="flower only where it is installed")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args)
        return
    if not Path("/proc/self/status").exists():
        raise SystemExit("anonymous pages are read from /proc, which only Linux has")
    args.mib = 16 if args.quick else args.mib
    rows = [
        measured(engine, layout, clients, args)
        for engine in args.engines
        for layout in args.layouts
        for clients in args.clients
    ]
    if args.json:
        print(json.dumps({"benchmark": "server_memory", "mib": args.mib, "rows": rows}))
        return
    print(f"{'engine':12} {'layout':8} {'clients':>7} {'adapters':>9} {'times held':>11}   adapters of {args.mib} MiB, float32")
    for row in rows:
        print(f"{row['engine']:12} {row['layout']:8} {row['clients']:>7} {row['adapters']:>9.2f} {row['times_held']:>11.2f}")


if __name__ == "__main__":
    main()
