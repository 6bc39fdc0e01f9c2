"""Measures how long nodes take to exchange updates over zenoh with mutual TLS, against a plain copy of the same bytes.

A ring of processes on this machine. In a round each sends an update to both neighbours, waits for theirs, says that it holds
them and waits for the same word: what a round of gossip costs beside training. The copy sends as many bytes as all of them
together through one connection without TLS, between two processes. Then updates of 100 MiB between two nodes.

    python benchmarks/gossip.py [--quick] [--json] [--nodes 8] [--mib 3] [--rounds 30]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import socket
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.extras import missing

from fedelta.exchange.parcels import Parcel
from fedelta.runs.peers_here import free_ports

LARGE_MIB = 100


def exchange(me: int, ports: Sequence[int], mib: float, rounds: int, folder: str, results: Any) -> None:
    """Plays one node, and puts the seconds of each of its rounds into `results`."""
    from fedelta.engines.runners.zenoh.session import Post
    from fedelta.engines.runners.zenoh.settings import Certificates, addresses, direct

    count = len(ports)
    near = sorted({(me - 1) % count, (me + 1) % count})
    endpoints = {k: f"tls/127.0.0.1:{port}" for k, port in enumerate(ports)}
    certificates = Certificates.of(Path(folder), f"node-{me}")
    settings = direct(f"node-{me}", [f"node-{k}" for k in near], addresses(me, endpoints, near), certificates)
    post = Post(f"node-{me}", {k: f"node-{k}" for k in near}, settings)
    heard: dict[str, dict[int, int]] = {"hello": {}, "update": {}, "held": {}}

    def wait(kind: str, t: int) -> None:
        while not all(heard[kind].get(k, -1) >= t for k in near):
            arrived = post.take(1.0)
            if arrived is not None:
                heard[arrived[1].kind][arrived[0]] = arrived[1].header["t"]

    post.announce(Parcel("hello", {"t": 0}))
    wait("hello", 0)
    body, seconds = b"\x01" * round(mib * 2**20), list[float]()
    for t in range(rounds + 2):  # the first two to warm up
        began = time.perf_counter()
        for k in near:
            post.send(k, Parcel("update", {"t": t}, body))
        wait("update", t)
        for k in near:
            post.send(k, Parcel("held", {"t": t}))
        wait("held", t)
        seconds.append(time.perf_counter() - began)
    results.put(seconds[2:])
    post.announce(Parcel("hello", {"t": 1}))
    wait("hello", 1)  # nobody leaves while others still wait for it
    time.sleep(1.0)
    post.close()


def ring_seconds(count: int, mib: float, rounds: int) -> list[float]:
    """Returns the seconds of all rounds of all nodes."""
    from fedelta.engines.runners.sites.certificates import make_certificates

    context = mp.get_context("spawn")
    results: Any = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        certs = Path(folder) / "certs"
        make_certificates(certs, [f"node-{k}" for k in range(count)])
        ports = free_ports(count)
        nodes = [context.Process(target=exchange, args=(k, ports, mib, rounds, str(certs), results)) for k in range(count)]
        for node in nodes:
            node.start()
        found = [seconds for _ in nodes for seconds in results.get(timeout=300)]
        for node in nodes:
            node.join(30)
    return found


def copy_seconds(size: int, repeats: int) -> list[float]:
    """Returns the seconds that a plain copy of `size` bytes through loopback takes, to another process and a word back."""
    server = socket.create_server(("127.0.0.1", 0))
    reader = mp.get_context("spawn").Process(target=_read, args=(server.getsockname()[1], size, repeats + 1))
    reader.start()
    connection, _ = server.accept()
    body, seconds = b"\x01" * size, list[float]()
    with connection:
        for _ in range(repeats + 1):
            began = time.perf_counter()
            connection.sendall(body)
            connection.recv(1)
            seconds.append(time.perf_counter() - began)
    reader.join(30)
    server.close()
    return seconds[1:]


def _read(port: int, size: int, repeats: int) -> None:
    buffer = bytearray(1 << 20)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(repeats):
            left = size
            while left:
                left -= connection.recv_into(buffer, min(left, len(buffer)))
            connection.sendall(b"\x01")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the figures."""
    ring = ring_seconds(args.nodes, args.mib, args.rounds)
    size = round(2 * args.nodes * args.mib * 2**20)
    copied = statistics.median(copy_seconds(size, 5))
    median = statistics.median(ring)
    large = statistics.median(ring_seconds(2, LARGE_MIB, 1))
    return {
        "nodes": args.nodes,
        "mib": args.mib,
        "exchange_seconds": median,
        "exchange_quartiles": statistics.quantiles(ring, n=4)[::2],
        "copy_seconds": copied,
        "ratio": median / copied,
        f"exchange_of_{LARGE_MIB}_mib_seconds": large,
    }


def report(found: Mapping[str, Any]) -> str:
    """Returns the figures as text."""
    low, high = found["exchange_quartiles"]
    large = found[f"exchange_of_{LARGE_MIB}_mib_seconds"]
    return (
        f"ring of {found['nodes']}, {found['mib']} MiB: an exchange {1e3 * found['exchange_seconds']:.0f} ms "
        f"({1e3 * low:.0f} to {1e3 * high:.0f}), a plain copy of the same bytes {1e3 * found['copy_seconds']:.0f} ms, ratio "
        f"{found['ratio']:.1f}\n{LARGE_MIB} MiB between two nodes, both ways: {large:.2f} s"
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--mib", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="four nodes, five rounds")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if missing("zenoh", "gossip", as_json=args.json):
        return
    if args.quick:
        args.nodes, args.rounds = 4, 5
    found = measure(args)
    print(json.dumps(found) if args.json else report(found))


if __name__ == "__main__":
    main()
