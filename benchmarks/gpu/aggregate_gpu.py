"""An aggregation of whole adapters on a CUDA device against the same one on the CPU.

Ten clients' adapters of Llama-7B's shapes, 32 blocks of seven layers, rank 16, float32 and random, through
`fedelta.aggregate(..., ranks=[16])`: once with the adapters on the CPU and all its threads, once with them on the device.
Layers are factorised one by one, not stacked. Copying the adapters there is timed apart. Results are compared: `disagree` is
the largest relative distance of any layer's delta.

    python benchmarks/gpu/aggregate_gpu.py [--quick] [--json] [--methods flexlora ...]
    python benchmarks/gpu/aggregate_gpu.py --device cpu --tiny       # the same code on toy sizes: its numbers mean nothing
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from clock import interleaved, name_of, peak_gib, timed

import fedelta
from fedelta import lowrank as lr
from fedelta import tree
from fedelta.lowrank import LoRA
from fedelta.tree import Adapter

CLIENTS, RANK, BLOCKS = 10, 16, 32
WIDTH, INNER = 4096, 11008
METHODS = ("fedavg", "flexlora", "raflora", "fedex_lora")


def shapes(width: int, inner: int, blocks: int) -> dict[str, tuple[int, int]]:
    """(o, i) by layer."""
    block = {f"{name}_proj": (width, width) for name in "qkvo"}
    block |= {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}
    return {f"layers.{k}.{name}": shape for k in range(blocks) for name, shape in block.items()}


def adapters(layers: Mapping[str, tuple[int, int]]) -> list[Adapter]:
    """Of random factors, on the CPU."""
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    return [Adapter({n: LoRA(random(o, RANK), random(RANK, i)) for n, (o, i) in layers.items()}) for _ in range(CLIENTS)]


def moved(given: Sequence[Adapter], device: torch.device) -> list[Adapter]:
    return [tree.map_tensors(lambda x: x.to(device), a) for a in given]


def aggregated(method: str, given: Sequence[Adapter]) -> Adapter:
    return fedelta.aggregate(given, method=method, ranks=[RANK])[0]


def disagreement(found: Adapter, expected: Adapter) -> float:
    """The largest distance of a layer's delta from what is expected, by the norm of that."""
    pairs = ((found.layers[n].to("cpu", torch.float64), x.to(torch.float64)) for n, x in expected.layers.items())
    return max(float((lr.dist2(x, y) / lr.inner(y, y)).clamp(min=0).sqrt()) for x, y in pairs)


def measure(
    method: str, here: Sequence[Adapter], there: Sequence[Adapter], device: torch.device, repeats: int
) -> dict[str, Any]:
    """A row of the table."""
    runs: dict[str, Callable[[], Any]] = {
        "cpu": partial(aggregated, method, here),
        "device": partial(aggregated, method, there),
    }
    found = disagreement(runs["device"](), runs["cpu"]())  # warms up as well
    peak = peak_gib(runs["device"], device)
    seconds = interleaved(runs, repeats, device)
    ratios = [a / b for a, b in zip(seconds["cpu"], seconds["device"], strict=True)]
    middle = {name: statistics.median(taken) for name, taken in seconds.items()}
    return {"method": method, "seconds": middle, "ratio": statistics.median(ratios), "peak_gib": peak, "disagree": found}


def line(row: Mapping[str, Any]) -> str:
    cpu, device = row["seconds"]["cpu"], row["seconds"]["device"]
    peak = row["peak_gib"] or float("nan")
    return f"{row['method']:<12}{cpu:>9.2f}s{device:>9.3f}s{row['ratio']:>8.1f}x{peak:>10.2f}{row['disagree']:>10.0e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four blocks of the 32, flexlora alone")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to try the script")
    args = parser.parse_args()
    device, blocks = torch.device(args.device), 2 if args.tiny else 4 if args.quick else BLOCKS
    here = adapters(shapes(64, 96, blocks) if args.tiny else shapes(WIDTH, INNER, blocks))
    there = moved(here, device)
    copying = timed(partial(moved, here, device), device)
    methods = args.methods or (("flexlora",) if args.quick else METHODS)
    rows = [measure(method, here, there, device, args.repeats) for method in methods]
    setting = {"device": name_of(device), "threads": torch.get_num_threads(), "layers": len(here[0].layers), "copy_s": copying}
    if args.json:
        print(json.dumps({"benchmark": "aggregate_gpu", "torch": torch.__version__, **setting, "rows": rows}))
    else:
        print(", ".join(f"{name} {value}" for name, value in setting.items()))
        print(
            "\n".join(
                [f"{'method':<12}{'CPU':>10}{'device':>10}{'ratio':>9}{'peak GiB':>10}{'disagree':>10}", *map(line, rows)]
            )
        )


if __name__ == "__main__":
    main()
