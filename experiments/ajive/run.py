"""Scans what AJIVE finds in the second moments of one round of FedGaLore: results.csv, by layer in layers.csv.

    python experiments/ajive/run.py

One round for each combination of local steps and label skew gives the moments; each is then decomposed with every energy, as it
is and by its roots. `shuffled` is the control: rows of each client's moments in an order of its own, so that nothing is left to
share.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor

from fedelta import federate, get_method, hf_clients
from fedelta.data.sources import load_rows
from fedelta.numerics.ajive import Ajive, decompose
from fedelta.split.partition import partition

HERE = Path(__file__).resolve().parent
ROWS = HERE.parents[2] / "shared/data/topic/trec_train.jsonl.gz"

STEPS = (4, 32)
CONCENTRATIONS = (0.1, 10.0)
ENERGIES = (0.8, 0.95, 0.99)
CLIENTS, RANK = 10, 8

Moments = Mapping[str, Sequence[Tensor]]
"""By layer, a tensor (m, rank) for each client."""

Line = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    lines: list[Line] = []
    for steps, concentration in itertools.product(STEPS, CONCENTRATIONS):
        moments = moments_of_a_round(steps, concentration, arguments.seed)
        setting = {"steps": steps, "concentration": concentration}
        lines += [{**setting, **found} for found in scan(moments, arguments.seed)]
        print(f"{steps} steps, concentration {concentration:g}: {len(moments)} layers", flush=True)
    write(arguments.output / "layers.csv", lines)
    write(arguments.output / "results.csv", list(summaries(lines)))


def moments_of_a_round(steps: int, concentration: float, seed: int) -> dict[str, list[Tensor]]:
    """Returns the second moments that ten clients send after one round."""
    rows = load_rows(ROWS, fields={"text": "text", "label": "coarse"})
    parts = partition(rows, "dirichlet", CLIENTS, concentration=concentration, by="label", seed=seed, min_examples=16)
    clients = hf_clients(
        "minilm",
        None,
        [[rows[i] for i in part] for part in parts],
        LoraConfig(lora_alpha=16, target_modules=["query", "value"]),
        RANK,
        seed=seed,
        device="cpu",
        batch_size=8,
        local_steps=steps,
        learning_rate=1e-2,
    )
    done = next(federate(get_method("fedgalore"), clients, rounds=1, seed=seed))
    return {name: [u.content["second_moment"][name] for u in done.updates] for name in done.template.layers}


def scan(moments: Moments, seed: int) -> Iterator[Line]:
    """Yields what AJIVE finds in each layer, with each energy, in the moments and in their roots."""
    draws = torch.Generator().manual_seed(seed)
    for (name, blocks), domain, shuffled in itertools.product(moments.items(), ("raw", "sqrt"), (False, True)):
        xs = [x.sqrt() if domain == "sqrt" else x for x in blocks]
        if shuffled:
            xs = [x[torch.randperm(len(x), generator=draws)] for x in xs]
        for energy in ENERGIES:
            found = decompose(xs, Ajive(energy=energy), seed=seed)
            signal = sum(found.ranks) / len(found.ranks)
            setting = {"domain": domain, "energy": energy, "shuffled": int(shuffled), "layer": short(name)}
            yield {**setting, "signal rank": f"{signal:.1f}", "joint rank": found.joint_rank, "joint energy": kept(found, xs)}


def kept(found: Any, xs: Sequence[Tensor]) -> str:
    """Returns the mean share of a client's squared entries that lies in the joint part."""
    shares = [float(found.joint(x).square().sum() / x.double().square().sum()) for x in xs]
    return f"{sum(shares) / len(shares):.3f}"


def short(name: str) -> str:
    """Returns a layer's number and last word."""
    number = next(part for part in name.split(".") if part.isdigit())
    return f"{number} {name.split('.')[-1]}"


def summaries(lines: Sequence[Line]) -> Iterator[Line]:
    """Yields one line for each setting: layers without a joint part, the largest joint rank, the share that is joint.

    The same of the control stands beside them.
    """
    keys = ("steps", "concentration", "domain", "energy")

    def setting(line: Line) -> list[Any]:
        return [line[key] for key in keys]

    for values, group in itertools.groupby(sorted(lines, key=setting), setting):
        both = list(group)
        signal = [float(line["signal rank"]) for line in both if not line["shuffled"]]
        found: Line = {"signal rank": f"{sum(signal) / len(signal):.1f}", "layers": len(signal)}
        for ending, shuffled in (("", 0), (", shuffled", 1)):
            own = [line for line in both if line["shuffled"] == shuffled]
            ranks = [line["joint rank"] for line in own]
            found[f"without a joint part{ending}"] = sum(rank == 0 for rank in ranks)
            found[f"largest joint rank{ending}"] = max(ranks)
            found[f"joint energy{ending}"] = f"{sum(float(line['joint energy']) for line in own) / len(own):.2f}"
        yield {**dict(zip(keys, values, strict=True)), **found}


def write(path: Path, lines: Sequence[Line]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


if __name__ == "__main__":
    main()
