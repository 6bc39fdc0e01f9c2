"""Asks where Subspace-Reg's overlap of .9999 comes from, the penalty or the orthonormal B: mechanism.csv.

    python experiments/hellaswag/prepare.py ../shared/data/hellaswag/val.jsonl.gz
    python experiments/subspace_reg/mechanism.py

Pretrained MiniLM, and the same network with random weights, which learns nothing here. No accuracy is measured. What the
columns mean is said in README.md.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForMultipleChoice, AutoTokenizer

from fedelta import LocalClient, Round, diagnose, federate, get_method, hf_clients, sampling
from fedelta import lowrank as lr
from fedelta.data.sources import load_rows
from fedelta.models.aliases import resolve_model
from fedelta.split.partition import partition
from fedelta.tasks import get_task
from fedelta.tree import Adapter

HERE = Path(__file__).resolve().parent
ROWS = HERE.parent / "hellaswag/data/train.jsonl.gz"
RESULTS = HERE / "mechanism.csv"

ROUNDS, CLIENTS, RANK = 20, 10, 8
SHOWN = (1, 2, 5, 10, 20)
"""Rounds, from 1 on, that get a line."""

OFF = {"mu": 0.0, "alpha": 0.0, "lam": 0.0}
STRONG = {"mu": 5.0, "alpha": 1.0, "lam": 1e-3}
"""A hundred times what was released."""

RELEASED = {"rescale": True, "norm_cap": 15.0}

VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "fedavg": ("fedavg", {}),
    "svd": ("svd_redistribution", {}),
    "fedsvd": ("fedsvd", {}),
    "released": ("subspace_reg", RELEASED),
    "no penalty": ("subspace_reg", {**RELEASED, **OFF}),
    "100 x penalty": ("subspace_reg", {**RELEASED, **STRONG}),
    "balanced, penalty": ("subspace_reg", {**RELEASED, "gauge": "balanced"}),
    "factors kept, penalty": ("subspace_reg", {**RELEASED, "gauge": "keep"}),
    "A orthonormal, penalty": ("subspace_reg", {**RELEASED, "gauge": "orth_a"}),
}
"""The gauge and the penalty, one at a time: `fedavg` keeps the factors without a penalty, `svd` balances them without one."""

FEW = ("fedavg", "svd", "released", "no penalty")

RUNS: Sequence[tuple[str, float, Sequence[str]]] = (
    ("pretrained", 1e-4, FEW),
    ("random", 1e-4, FEW),
    ("pretrained", 3e-3, FEW),
    ("pretrained", 1e-4, [name for name in VARIANTS if name not in FEW]),
)
"""Weights, learning rates (the released one, and one at which MiniLM learns) and variants, the most telling first."""

NUMBERS = {
    "update norm": "update_norm",
    "increment norm": "increment_update_norm",
    "cosine": "client_cosine",
    "increment cosine": "increment_client_cosine",
    "cancellation": "cancellation_ratio",
    "B, code": "overlap_with_server_B_root",
    "A, code": "overlap_with_server_A_root",
    "B of increments": "increment_overlap_B_squared",
    "A of increments": "increment_overlap_A_squared",
}
"""Columns that are diagnostics."""

Line = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    lines = read(arguments.output)
    done = {(line["weights"], line["rate"], line["variant"]) for line in lines}
    for weights, rate, names in RUNS:
        for name in names:
            setting = {"weights": weights, "rate": f"{rate:g}", "variant": name}
            if tuple(setting.values()) in done:
                continue
            began = time.process_time()
            lines += [{**setting, **line} for line in play(weights, rate, name, arguments.rounds)]
            write(arguments.output, lines)
            print(f"{weights}, {rate:g}, {name}: {time.process_time() - began:.0f} s", flush=True)


def read(path: Path) -> list[Line]:
    """Returns the lines of the runs that are done."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, lines: Sequence[Line]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def play(weights: str, rate: float, variant: str, rounds: int) -> Iterator[Line]:
    """Yields the lines of one run."""
    cohort = sampling.uniform(0.3)
    name, settings = VARIANTS[variant]
    first: Adapter | None = None
    for done in federate(get_method(name, **settings), clients(weights, rate), rounds=rounds, cohort=cohort, seed=0):
        sent: Adapter = done.global_model()["adapter"]
        first = first if first is not None else sent
        if done.t + 1 in SHOWN or done.t + 1 == rounds:
            found = diagnose(done)
            own = {"B, report": report_overlap(done), "B since round 1": since(first, sent)}
            values = {**own, **{column: found[number] for column, number in NUMBERS.items()}}
            yield {"round": done.t + 1, **{column: shown(value) for column, value in values.items()}}


def clients(weights: str, rate: float) -> list[LocalClient]:
    """Returns ten clients, skewed by activity, as the released runs have them."""
    rows = load_rows(ROWS, limit=600)
    parts = partition(rows, "dirichlet", CLIENTS, concentration=0.3, by="activity_label", min_examples=4)
    given = random_model() if weights == "random" else ("minilm", None)
    return hf_clients(
        *given,
        [[rows[i] for i in part] for part in parts],
        LoraConfig(lora_alpha=16, target_modules=["query", "key", "value", "dense"]),
        RANK,
        task=get_task("multiple_choice", context="ctx", choices="endings", max_length=32),
        device="cpu",
        batch_size=4,
        local_steps=4,
        learning_rate=rate,
        max_grad_norm=0.5,
    )


def random_model() -> tuple[Any, Any]:
    """Returns MiniLM's network with weights as they are drawn for a new one, and its tokenizer."""
    folder = resolve_model("minilm")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForMultipleChoice.from_config(AutoConfig.from_pretrained(folder))
    return model, AutoTokenizer.from_pretrained(folder)


def report_overlap(done: Round) -> float:
    """Returns ||U^T B_k||^2 / r, the mean over clients and layers: U the mean delta's leading left vectors, B_k as it is."""
    deltas = [done.position(update)[0].layers for update in done.updates]
    weights = [update.weight for update in done.updates]
    found = list[float]()
    for layer in deltas[0]:
        own = [delta[layer] for delta in deltas]
        left = lr.svd(lr.stack(weights, own, dtype=torch.float64))[0][:, :RANK]
        found += [float((left.mT @ x.B.double()).square().sum()) / x.rank for x in own]
    return sum(found) / len(found)


def since(first: Adapter, now: Adapter) -> float:
    """Returns the overlap of the column spaces of B as they were sent first and are sent now, the mean over layers."""
    found = list[float]()
    for layer, x in now.layers.items():
        before, after = lr.basis(first.layers[layer].B.double()), lr.basis(x.B.double())
        found.append(float((before.mT @ after).square().sum() / max(1, min(before.shape[1], after.shape[1]))) ** 0.5)
    return sum(found) / len(found)


def shown(value: object) -> str:
    """Returns a number with the digits that tell .99998 from 1; nothing where it is undefined."""
    return f"{value:.6g}" if isinstance(value, float) else ""


if __name__ == "__main__":
    main()
