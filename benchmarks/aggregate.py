"""How long an aggregation takes, and how much memory, against what others do.

    python benchmarks/aggregate.py [--quick] [--json] [--threads N]

Three tables:

- One layer of d x d, K clients of rank r in float32: `flexlora` against the mean of the deltas as a matrix and
  `torch.linalg.svd` of it, as FlexLoRA's published code does; `fedavg` against the means of stacked factors, as Flower's and
  FedPEFT's examples do; `flora` against concatenated factors, as FLoRA's does. Ours check every update for NaN, Inf and shapes,
  theirs do not. Factors are random, which gives the heaviest tail there is; "alike" clients share half of theirs.
- All layers of an adapter of Llama-7B's shapes: 32 blocks of seven layers, rank 16, 10 clients.
- Memory of a thousand clients, in a process that does nothing else: its high-water mark less what it held before the first
  update, with all updates in memory and with all of them spooled.

`--quick` is a smaller version of each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from common.memory import forget_peak, peak_mib

from fedelta import tree
from fedelta.exchange.spool import Spool
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate
from fedelta.method import Method, State
from fedelta.methods import get_method
from fedelta.peers import Peer
from fedelta.seeding import derive
from fedelta.tree import Adapter

Shapes: TypeAlias = Mapping[str, tuple[int, int]]
"""(o, i) by layer."""

BLOCK: Shapes = {
    **{f"{name}_proj": (4096, 4096) for name in "qkvo"},
    **{f"{name}_proj": (11008, 4096) for name in ("gate", "up")},
    "down_proj": (4096, 11008),
}
METHODS = ("fedavg", "flora", "flexlora", "raflora", "fedex_lora")


class Case(NamedTuple):
    """Of the first table; `dense_repeats` 0 leaves the dense SVD out."""

    d: int
    rank: int
    clients: int
    alike: bool = False
    dense_repeats: int = 1


CASES = (
    Case(1024, 16, 10, dense_repeats=5),
    Case(2048, 16, 10, dense_repeats=3),
    Case(4096, 16, 10),
    Case(2048, 4, 10),
    Case(2048, 64, 10),
    Case(2048, 16, 100),
    Case(4096, 16, 100, dense_repeats=0),
    Case(4096, 16, 100, alike=True, dense_repeats=0),
    Case(2048, 16, 1000),
    Case(4096, 16, 1000, dense_repeats=0),
    Case(4096, 16, 1000, alike=True),
)
QUICK = (Case(1024, 16, 10, dense_repeats=3), Case(2048, 16, 10), Case(1024, 16, 100), Case(1024, 16, 100, alike=True))


def adapter(k: int, shapes: Shapes, rank: int, alike: bool = False) -> Adapter:
    """What client k trained: random factors, half of them common to all if `alike`."""

    def draw(layer: str, *shape: int) -> torch.Tensor:
        own, common = (torch.Generator().manual_seed(derive(0, 0, seed, layer)) for seed in (k, -1))
        x = torch.randn(*shape, generator=own)
        return x + torch.randn(*shape, generator=common) if alike else x

    return Adapter({n: LoRA(draw(f"{n} B", o, rank), draw(f"{n} A", rank, i)) for n, (o, i) in shapes.items()})


def server(name: str, template: Adapter, clients: int) -> tuple[Method, State, list[Peer]]:
    """A method before its first round."""
    rank = next(iter(template.layers.values())).rank
    method, peers = get_method(name), [Peer(k, rank) for k in range(clients)]
    start = tree.map(lambda x: LoRA(torch.zeros_like(x.B), x.A), template)
    return method, method.init(start, peers, seed=0), peers


def ours(name: str, given: Sequence[Adapter]) -> Callable[[], State]:
    """The server's part of a round."""
    method, state, peers = server(name, given[0], len(given))
    updates = [ClientUpdate(p, 1 / len(given), {"adapter": a}) for p, a in zip(peers, given, strict=True)]
    return lambda: method.aggregate(0, state, updates)


# --- what others do --------------------------------------------------------------------------------------------------


def dense_mean(given: Sequence[LoRA]) -> torch.Tensor:
    total = torch.zeros(given[0].shape)
    for x in given:
        total += x.B @ x.A / len(given)
    return total


def dense_svd(given: Sequence[LoRA]) -> LoRA:
    U, S, Vh = torch.linalg.svd(dense_mean(given), full_matrices=False)
    rank = given[0].rank
    return LoRA(U[:, :rank] * S[:rank], Vh[:rank])


def factor_means(given: Sequence[LoRA]) -> LoRA:
    return LoRA(torch.stack([x.B for x in given]).mean(0), torch.stack([x.A for x in given]).mean(0))


def concatenated(given: Sequence[LoRA]) -> LoRA:
    return LoRA(torch.cat([x.B for x in given], dim=1), torch.cat([x.A / len(given) for x in given]))


# --- one layer -------------------------------------------------------------------------------------------------------


def seconds(fn: Callable[[], Any], repeats: int) -> float:
    """The median, after a call that warms up if there are several."""
    if repeats > 1:
        fn()
    times = list[float]()
    for _ in range(repeats):
        began = time.perf_counter()
        fn()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def one_layer(case: Case) -> dict[str, Any]:
    """The row of a case: seconds, and theirs over ours."""
    given = [adapter(k, {"layer": (case.d, case.d)}, case.rank, case.alike) for k in range(case.clients)]
    layers, repeats = [a.layers["layer"] for a in given], 5 if case.clients <= 100 else 1
    row: dict[str, Any] = {**case._asdict(), "error_over_best": None}
    for name, theirs in (("flexlora", dense_svd), ("fedavg", factor_means), ("flora", concatenated)):
        times = (case.dense_repeats if name == "flexlora" else repeats), repeats
        row[name] = seconds(ours(name, given), times[1])
        row[theirs.__name__] = seconds(lambda theirs=theirs: theirs(layers), times[0]) if times[0] else None
        row[f"{theirs.__name__}_over_{name}"] = row[theirs.__name__] / row[name] if times[0] else None
    if case.dense_repeats and case.d <= 2048:
        row["error_over_best"] = error_over_best(given, layers)
    return row


def error_over_best(given: Sequence[Adapter], layers: Sequence[LoRA]) -> float:
    """The error of our approximation over that of the dense one."""
    exact, found = dense_mean(layers), ours("flexlora", given)()["adapter"].layers["layer"]
    return float((found.dense() - exact).norm() / (dense_svd(layers).dense() - exact).norm())


# --- a whole adapter -------------------------------------------------------------------------------------------------


def whole_adapter(blocks: int) -> list[dict[str, Any]]:
    """Seconds by method, for an adapter of so many of Llama-7B's blocks: by the clock, and of all processors together.

    The second hardly feels what else a machine does.
    """
    shapes = {f"{b}.{name}": shape for b in range(blocks) for name, shape in BLOCK.items()}
    given = [adapter(k, shapes, 16) for k in range(10)]
    before, rows = torch.get_num_threads(), list[dict[str, Any]]()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        wall, cpu = dict[str, float](), dict[str, float]()
        for name in METHODS:
            run, began = ours(name, given), time.process_time()
            wall[name] = seconds(run, 1)
            cpu[f"{name}_cpu"] = time.process_time() - began
        rows.append({"layers": len(shapes), "clients": len(given), "threads": threads, **wall, **cpu})
    torch.set_num_threads(before)
    return rows


# --- memory ----------------------------------------------------------------------------------------------------------


def peak_of(clients: int, d: int, layers: int, spool: bool) -> float:
    """MiB that a flexlora round of alike clients adds to this process at its worst."""
    shapes = {f"layer {k}": (d, d) for k in range(layers)}
    method, state, peers = server("flexlora", adapter(0, shapes, 16), clients)
    ours("flexlora", [adapter(k, {"layer": (64, 64)}, 16) for k in range(3)])()  # libraries load
    forget_peak()
    before, disk = peak_mib(), Spool(spool)
    sent = (ClientUpdate(p, 1 / clients, {"adapter": adapter(p.id, shapes, 16, alike=True)}) for p in peers)
    method.aggregate(0, state, [disk.keep(u) for u in sent])
    return peak_mib() - before


def memory(clients: int, d: int, layers: int) -> dict[str, Any]:
    def child(spool: bool) -> float:
        command = [sys.executable, __file__, "--peak-of", json.dumps([clients, d, layers, spool])]
        command += ["--threads", str(torch.get_num_threads())]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    stack = clients * 16 * 2 * d * 8 / 2**20
    held, spooled = child(spool=False), child(spool=True)
    return {
        "clients": clients,
        "d": d,
        "layers": layers,
        "mib_updates": clients * layers * 16 * 2 * d * 4 / 2**20,
        "mib_one_stack": stack,
        "mib_peak_in_memory": held,
        "mib_peak_spooled": spooled,
        "spooled_over_stack": spooled / stack,
    }


# --- report ----------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(rows[0])
    cells = [columns, *([_text(row[c]) for c in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(text.rjust(w) for text, w in zip(line, widths, strict=True)) for line in cells)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) and value < 1e4 else "-" if value is None else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller; under 50 s")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--threads", type=int, default=1, help="of torch; one gives the steadiest times")
    parser.add_argument("--peak-of", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak_of:
        print(peak_of(*options.peak_of))
        return
    rows = [one_layer(case) for case in (QUICK if options.quick else CASES)]
    adapters = whole_adapter(4 if options.quick else 32)
    peak = memory(200, 1024, 4) if options.quick else memory(1000, 4096, 6)
    if options.json:
        result = {"benchmark": "aggregate", "torch": torch.__version__, "threads": options.threads}
        print(json.dumps({**result, "one_layer": rows, "whole_adapter": adapters, "memory": peak}))
    else:
        print(f"torch {torch.__version__}, {options.threads} threads; times in seconds")
        print("\n\n".join(table(part) for part in (rows, adapters, [peak])))


if __name__ == "__main__":
    main()
