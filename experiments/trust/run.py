"""Measures each known fault on two adapters, and asks `check_aggregator` about it: results.csv and the table of README.md.

    python experiments/trust/run.py

It takes seconds. The trained adapters are those of ../shared/data/adapters; without them nothing is written.
"""

from __future__ import annotations

import csv
import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fedelta.testing import check_aggregator

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from faults import FAULTS, A, B, Fault, Scale, State, layers, standard  # noqa: E402 - the file beside this one

ADAPTERS = HERE.parents[2] / "shared" / "data" / "adapters"
TRAINED = {
    "gpt_neo_125m_movies_r8": "base_model.model.transformer.h.{}.attn.attention.q_proj",
    "gpt2_tigrinya": "base_model.model.transformer.h.{}.attn.c_proj",
}
"""Two adapters of rank 8, and layers of theirs that have one shape, 768 x 768, as if two clients had trained them."""

LAYERS = (0, 11)
"""The first and the last of twelve: the split of each takes a fifth of a second."""

WEIGHTS = [3.0, 1.0]
"""Of the two clients, as counts of rows."""

COLUMNS = ("what goes wrong", "made up", "trained", "how to see it", "caught by")


@dataclass(frozen=True)
class Pair:
    """Two clients: state dicts in float64, lora_alpha and ranks."""

    states: list[State]
    alphas: list[float]
    ranks: list[int]


def made_up() -> Pair:
    """Returns two random adapters of rank 4 on a square, a tall and a wide layer."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"square": (16, 16), "tall": (24, 16), "wide": (16, 24)}

    def client() -> State:
        sides = {name: ((o, 4), (4, i)) for name, (o, i) in shapes.items()}
        drawn = {n: [torch.randn(x, generator=generator, dtype=torch.float64) for x in both] for n, both in sides.items()}
        return {f"{n}{which}": x for n, (b, a) in drawn.items() for which, x in ((A, a), (B, b))}

    return Pair([client(), client()], [16.0, 32.0], [4, 4])


def trained() -> Pair | None:
    """Returns the two trained adapters; None where they are not here."""
    if not all((ADAPTERS / name).is_dir() for name in TRAINED):
        return None
    states, alphas, ranks = list[State](), list[float](), list[int]()
    for name, pattern in TRAINED.items():
        config = json.loads((ADAPTERS / name / "adapter_config.json").read_text())
        weights = load_file(ADAPTERS / name / "adapter_model.safetensors")
        states.append({f"{k}{x}": weights[pattern.format(k) + x].double() for k in LAYERS for x in (A, B)})
        alphas.append(float(config["lora_alpha"]))
        ranks.append(config["r"])
    return Pair(states, alphas, ranks)


def cut(pair: Pair) -> Pair:
    """Returns the pair with the second client at half its rank, by the best approximation of its deltas."""
    rank = pair.ranks[1] // 2
    smaller: State = {}
    for layer in layers(pair.states[1]):
        U, S, Vh = torch.linalg.svd(pair.states[1][layer + B] @ pair.states[1][layer + A], full_matrices=False)
        smaller |= {layer + A: Vh[:rank], layer + B: U[:, :rank] * S[:rank]}
    return Pair([pair.states[0], smaller], pair.alphas, [pair.ranks[0], rank])


def untrained(pair: Pair) -> Pair:
    """Returns the pair before its first step: the A of the first client is everybody's, and B is zero."""
    start = {n: torch.zeros_like(x) if n.endswith(B) else x for n, x in pair.states[0].items()}
    return Pair([start, dict(start)], pair.alphas, pair.ranks)


# --- the dense answer -------------------------------------------------------------------------------------------------------


def error_of(fault: Fault, pair: Pair) -> float:
    """Returns the relative error of the worse client's result, over all layers: of its delta, or of A before any training."""
    pair = cut(pair) if fault.claims.get("hetero_ranks") else pair
    pair = untrained(pair) if fault.start else pair
    scale: Scale = fault.claims.get("scale", standard)
    results = fault.aggregate(pair.states, pair.alphas, pair.ranks, WEIGHTS)
    errors = list[float]()
    for result, lora_alpha in zip(results, pair.alphas, strict=True):
        if fault.start:
            found = {n: result[n + A] for n in layers(result)}
            errors.append(distance(found, {n: pair.states[0][n + A] for n in found}))
        else:
            found = {n: scale(lora_alpha, len(result[n + A])) * result[n + B] @ result[n + A] for n in layers(result)}
            errors.append(distance(found, {n: best(dense_mean(pair, n, scale), len(result[n + A])) for n in found}))
    return max(errors)


def dense_mean(pair: Pair, layer: str, scale: Scale) -> Tensor:
    """Returns the weighted mean of the deltas of a layer."""
    deltas = [scale(a, r) * s[layer + B] @ s[layer + A] for s, a, r in zip(pair.states, pair.alphas, pair.ranks, strict=True)]
    return (WEIGHTS[0] * deltas[0] + WEIGHTS[1] * deltas[1]) / sum(WEIGHTS)


def best(delta: Tensor, rank: int) -> Tensor:
    """Returns the nearest matrix of a rank."""
    U, S, Vh = torch.linalg.svd(delta, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vh[:rank]


def distance(found: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    """Returns the relative distance over all layers."""
    away = sum(float((found[n] - right[n]).square().sum()) for n in right)
    return math.sqrt(away / sum(float(right[n].square().sum()) for n in right))


# --- the table --------------------------------------------------------------------------------------------------------------


def measured(fault: Fault, pairs: Mapping[str, Pair]) -> dict[str, str]:
    """Returns a row of the table."""
    laws = check_aggregator(fault.aggregate, **fault.claims, raise_on_failure=False).violations
    errors = {name: f"{error_of(fault, pair):.2g}" for name, pair in pairs.items()}
    return {COLUMNS[0]: fault.name, **errors, COLUMNS[3]: fault.seen, COLUMNS[4]: ", ".join(laws)}


def table(rows: list[dict[str, str]]) -> str:
    """Returns the rows as Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---:|---:|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row[column] for column in COLUMNS)} |" for row in rows)])


def main() -> None:
    """Writes results.csv and the table of README.md."""
    real = trained()
    if real is None:
        sys.exit(f"no adapters in {ADAPTERS}: nothing was written")
    rows: list[dict[str, Any]] = [measured(fault, {"made up": made_up(), "trained": real}) for fault in FAULTS]
    with (HERE / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    page = HERE / "README.md"
    text = re.sub(r"(?m)(^\|.*\n)+", lambda _: table(rows) + "\n", page.read_text(encoding="utf-8"), count=1)
    page.write_text(text, encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
