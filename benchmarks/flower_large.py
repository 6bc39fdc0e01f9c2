"""Do adapters of 100 MB pass over a real SuperLink, how long does it take, and what do they take of memory?

Two sites on this machine, a SuperLink with TLS and a database on disk, node keys, a worker for each site. Each site has a toy
client whose adapter carries a dense tensor of so many bytes, and sends it back: what passes is measured, not what trains.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from common import deployments
from common.extras import missing

SERVER = '''\
"""FedAvg over sites, timed."""

import json
import time
from functools import partial
from pathlib import Path

from common.memory import peak_mib, resident_mib

from fedelta.engines.census import enrol, survey
from fedelta.engines.runners.flower.server import server_app
from fedelta.engines.server import federate
from fedelta.methods.fedavg import FedAvg


def carry_out(carrier, settings):
    before = resident_mib()
    ask = partial(carrier.ask, seconds=300.0)
    began = time.perf_counter()
    found = enrol(ask, survey(ask, carrier.gather(2, 120.0), "large", {}), "large", {})
    seconds = {"census": time.perf_counter() - began, "rounds": []}
    began = time.perf_counter()
    for done in federate(FedAvg(), found.clients, found.template, engine=carrier.visits("large", {}, 600.0, 0.0), rounds=3):
        assert not done.dropped, done.dropped
        seconds["rounds"].append(time.perf_counter() - began)
        began = time.perf_counter()
        figures = {**seconds, "before": before, "peak": peak_mib(), "received": carrier.received}
        Path(settings["output"]).write_text(json.dumps(figures))


app = server_app(carry_out)
'''

CLIENT = '''\
"""Hands messages to the worker."""

from functools import partial
from pathlib import Path

from fedelta.engines.runners.flower.client import client_app
from fedelta.engines.runners.sites.worker import SOCKET, ask
from fedelta.runs.config.node import read_node

app = client_app(lambda node, seconds: partial(ask, read_node(node["node"]).folder() / SOCKET, timeout=seconds))
'''


def worker(megabytes: str, node_file: str) -> None:
    """Serves one site, whose adapter has so many MB."""
    import torch

    from fedelta.engines.runners.sites.worker import serve
    from fedelta.engines.site import Site
    from fedelta.exchange.channel import Channel
    from fedelta.methods.fedavg import FedAvg
    from fedelta.runs.config.node import read_node

    toys = deployments.module("in_process")
    node = read_node(node_file)
    method = FedAvg()
    client = toys.wide(toys.toys(method)[node.client], int(megabytes) * 10**6 // 4)
    client.template.dense["wide"].normal_(generator=torch.Generator().manual_seed(0))  # nothing that could be packed smaller
    site = Site(method, client, Channel(), node.folder() / "runs", about={"name": node.name})
    serve(site.handle, node.folder(), name=node.name, most_body=2**31)


def measure(megabytes: int) -> dict[str, Any]:
    """Returns the figures of three rounds."""
    deployment = deployments.module("deployment")
    with tempfile.TemporaryDirectory(prefix="fl-") as name:
        folder = Path(name)
        deployments.write_app(folder / "app", "large", SERVER, CLIENT, {"output": str(folder / "figures.json")})
        nothing = folder / "nothing.yaml"
        nothing.write_text(yaml.safe_dump({"task": {"name": "classification", "labels": ["a", "b"]}}))
        going = deployment.Deployment(folder / "sites", nothing, 2, workers=False)
        path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        going.environment["PYTHONPATH"] = os.pathsep.join(path)
        with going:
            for k in range(2):
                going.start_worker(k, program=[sys.executable, __file__, "--worker", str(megabytes)])
            going.app = folder / "app"
            with deployments.peaks(going) as found:
                began = time.perf_counter()
                run = going.run()
                said = going.wait_end(run, 1800)
                whole = time.perf_counter() - began
            assert "completed" in said, going.said(run)
            database = sum(file.stat().st_size for file in going.folder.glob("state.db*")) / 1e6
        figures = json.loads((folder / "figures.json").read_text())
    return {
        "megabytes": megabytes,
        **figures,
        "whole": whole,
        "peaks": found,
        "database_mb": database,
        "load": os.getloadavg()[0],
    }


def report(found: Mapping[str, Any]) -> str:
    """Returns the figures as text."""
    rounds = ", ".join(f"{x:.1f}" for x in found["rounds"])
    taken = (found["peak"] - found["before"]) * 2**20 / 1e6 / found["megabytes"]
    lines = [
        f"two sites, {found['megabytes']} MB down and up each, load {found['load']:.1f}",
        f"census {found['census']:.1f} s, rounds {rounds} s, with all that Flower starts {found['whole']:.0f} s",
        f"the server's app: {found['before']:.0f} MiB before, {found['peak']:.0f} MiB at most, {taken:.1f} adapters above",
        f"{found['received'] / 1e6:.0f} MB came to the server; the SuperLink's database has {found['database_mb']:.0f} MB",
        *(f"{name}: {mib:.0f} MiB at most" for name, mib in sorted(found["peaks"].items())),
    ]
    return "\n".join(lines)


def main() -> None:
    """Measures and prints."""
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], sys.argv[-1])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100, help="of an adapter")
    parser.add_argument("--quick", action="store_true", help="10 MB")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if missing("flwr", "flower", as_json=args.json):
        return
    found = measure(10 if args.quick else args.megabytes)
    print(json.dumps(found) if args.json else report(found))


if __name__ == "__main__":
    main()
