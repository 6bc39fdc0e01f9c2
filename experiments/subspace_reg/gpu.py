"""Runs gpu.yaml in a given time on one CUDA device: two rounds of each method, then all cells, sized by what those took.

    python experiments/subspace_reg/gpu.py --seconds 500
    python experiments/subspace_reg/gpu.py --seconds 60 --tiny      # a small random model on a CPU: tries the script

Four cells share the device. With fewer than 20 rounds in the time nothing more is run: such cells would compare how methods
start.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
SUITE = HERE / "gpu.yaml"

LEAST, MOST = 20, 60
"""Rounds of a cell."""

FEDELTA = [sys.executable, "-c", "from fedelta.cli import main; main()"]

AT_ONCE = 4
STEPS = 3 * 4
"""Of a round: three clients, four steps each."""

EVALUATIONS = 3

TINY = [
    "device=cpu",
    "model.name={folder}",
    "model.dtype=float32",
    "data.limit.train=400",
    "data.limit.test=16",
    "task.max_length=32",
    "training.batch_size=2",
]


@dataclass(frozen=True)
class Cost:
    """Seconds that a method took with all others beside it.

    Attributes:
        round: the second round, without its evaluation.
        evaluation: of the last round.
    """

    round: float
    evaluation: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, required=True, help="for everything")
    parser.add_argument("--output", type=Path, default=Path("runs/subspace_reg-gpu"))
    parser.add_argument("--tiny", action="store_true", help="a small random model on a CPU")
    arguments = parser.parse_args()
    began = time.monotonic()
    changes = tiny(arguments.output) if arguments.tiny else []
    first = arguments.output / "first"
    compare(first, [*changes, "federation.rounds=2", "evaluation.every=2"], ["--only", "seed=0"])
    costs = costs_of(first)
    for name, cost in costs.items():
        print(f"{name}: {cost.round / STEPS:.3f} s a step, {cost.evaluation:.1f} s an evaluation", flush=True)
    passed = time.monotonic() - began
    rounds = sized(list(costs.values()), arguments.seconds - passed, passed)
    print(f"{passed:.0f} s for two rounds; {rounds} rounds fit", flush=True)
    if rounds < LEAST:
        sys.exit(f"fewer than {LEAST} rounds: give it more time, or fewer seeds")
    every = f"evaluation.every={-(-rounds // EVALUATIONS)}"
    hours = ["--hours", str(max(0.0, arguments.seconds - passed) / 3600)]
    compare(arguments.output, [*changes, f"federation.rounds={rounds}", every], hours)


def compare(folder: Path, changes: Sequence[str], more: Sequence[str]) -> None:
    """Runs what is missing of the suite."""
    sets = [part for change in changes for part in ("--set", change)]
    command = [*FEDELTA, "compare", str(SUITE), "--output", str(folder), "--jobs", str(AT_ONCE)]
    subprocess.run([*command, "--store", str((folder / "cells.jsonl.gz").resolve()), *sets, *more], check=True)


def costs_of(folder: Path) -> dict[str, Cost]:
    """Returns by method what its last round took."""
    found: dict[str, Cost] = {}
    for file in sorted(folder.glob("cells/*/*/seed-0/rounds.jsonl")):
        seconds: dict[str, Any] = json.loads(file.read_text(encoding="utf-8").splitlines()[-1])["seconds"]
        found[file.parents[1].name] = Cost(seconds["round"], seconds["evaluation"])
    return found


def sized(costs: Sequence[Cost], left: float, start: float) -> int:
    """Returns the rounds for which all cells end in the time that is left.

    Args:
        costs: of the methods.
        left: seconds.
        start: seconds that one wave of cells of two rounds took, which stand for what each wave loads.
    """
    cells = len(costs) * len(range(seeds()))
    waves = -(-cells // AT_ONCE)
    slowest = max(cost.round for cost in costs)
    scored = EVALUATIONS * max(cost.evaluation for cost in costs)
    loading = max(0.0, start - 2 * slowest - scored / EVALUATIONS)
    return max(0, min(MOST, int((left / waves - loading - scored) / slowest)))


def seeds() -> int:
    """Returns the number of seeds that the suite has."""
    return int(yaml.safe_load(SUITE.read_text(encoding="utf-8"))["seeds"])


def tiny(output: Path) -> list[str]:
    """Writes a small random model with the real tokenizer; returns the changes of the config that take it."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from fedelta.models.aliases import resolve_model

    folder = (output / "tiny").resolve()
    tokenizer: Any = AutoTokenizer.from_pretrained(resolve_model("smollm2-135m"))
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return [change.format(folder=folder) for change in TINY]


if __name__ == "__main__":
    main()
