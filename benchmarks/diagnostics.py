"""What the diagnostics of a round cost, against the round itself.

MiniLM on random tokens, ten clients, 10 local steps of 16 x 64 each; the second round and later, since a first one starts from
a delta of zero. Each `diagnose`, the table by layer included, is timed against the round that it describes, in one process;
the ratio is the median over the rounds. At most 0.05 is wanted. Two cases: FedAvg with rank 8 everywhere, and FlexLoRA with
ranks of 4, 8 and 16, which factorises to send and has bands of energy.

    python benchmarks/diagnostics.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from peft import LoraConfig

from fedelta.client import LocalClient, Training
from fedelta.diagnostics import diagnose
from fedelta.engines.server import federate
from fedelta.methods import get_method
from fedelta.models.clients import clients_on
from fedelta.models.loading import load_model
from fedelta.models.lora_peers import config_for
from fedelta.models.peft import PeftAdaptedModel
from fedelta.tasks import Classification

CLIENTS, STEPS, BATCH, LENGTH = 10, 10, 16, 64
TASK = Classification(labels=tuple(range(6)))
LORA = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], task_type="SEQ_CLS")
CASES: dict[str, tuple[str, list[int]]] = {
    "fedavg": ("fedavg", [8] * CLIENTS),
    "flexlora": ("flexlora", [4, 8, 16, 4, 8, 16, 4, 8, 16, 4]),
}


def examples(seed: int, count: int) -> list[dict[str, Any]]:
    """Encoded rows of random tokens, all of one length."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1000, 20000, (count, LENGTH), generator=generator).tolist()
    return [
        {"input_ids": row, "attention_mask": [1] * LENGTH, "token_type_ids": [0] * LENGTH, "label": k % 6}
        for k, row in enumerate(tokens)
    ]


def make_clients(ranks: Sequence[int], steps: int) -> list[LocalClient]:
    """Clients on MiniLM, all on one model."""
    model, tokenizer = load_model("minilm", TASK, device="cpu")
    adapted = PeftAdaptedModel(model, config_for(TASK, LORA, model), tokenizer)
    parts = [examples(seed, BATCH * STEPS) for seed in range(len(ranks))]
    training = Training(local_steps=steps, batch_size=BATCH, learning_rate=1e-3)
    return clients_on(adapted, TASK, parts, LORA, list(ranks), training)


def measure(case: str, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds of rounds and of their diagnostics; with fewer steps than STEPS a round's seconds are scaled up to STEPS."""
    method, ranks = CASES[case]
    trained: list[float] = []
    diagnosed: list[float] = []
    size = 0
    for done in federate(get_method(method), make_clients(ranks, steps), rounds=rounds + 1):
        began = time.perf_counter()
        values = diagnose(done, per_layer=True)
        if done.t > 0:
            diagnosed.append(time.perf_counter() - began)
            trained.append(done.seconds * STEPS / steps)
            size = len(json.dumps(values))
    ratio = statistics.median(d / t for d, t in zip(diagnosed, trained, strict=True))
    return {
        "seconds_round": statistics.median(trained),
        "seconds_diagnose": statistics.median(diagnosed),
        "ratio": ratio,
        "ratio_within_0.05": ratio <= 0.05,
        "bytes_of_record": size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="FlexLoRA alone, one round of one step scaled to ten; under 50 s")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--rounds", type=int, help="timed; 1 with --quick, else 3")
    parser.add_argument("--steps", type=int, help=f"local steps; 1 with --quick, else {STEPS}")
    parser.add_argument("--threads", type=int, default=1, help="of torch; one gives the steadiest times")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # the loader's list of new parameters
    torch.set_num_threads(args.threads)
    rounds, steps = args.rounds or (1 if args.quick else 3), args.steps or (1 if args.quick else STEPS)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "threads": args.threads}
    result = {"benchmark": "diagnostics", **versions, "rounds": rounds, "local_steps": steps}
    for case in ["flexlora"] if args.quick else CASES:
        result |= {f"{case}_{k}": v for k, v in measure(case, rounds, steps).items()}
    print(json.dumps(result) if args.json else "\n".join(f"{k:28} {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
