"""What fedelta costs on top of PEFT: the time of a sequential round, and the memory of ten clients.

Time: a FedAvg round of ten clients through `federate`, against the same steps on the same batches in a loop written by hand
with PEFT and torch.optim: load the adapter's state dict, train, take the state dict, average. Both run in one process, in pairs
whose order alternates; the ratio is the median over the pairs. At most 1.05 is wanted.

Memory: the peak resident size, during a round, of a process with ten clients against one with a single client. Within 5 % is
wanted; what the round adds to the loaded model is given as well, since most of a process is libraries.

    python benchmarks/overhead.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch.nn import functional as F

from fedelta.client import LocalClient, Training
from fedelta.engines.local import federate
from fedelta.methods import get_method
from fedelta.models.clients import clients_on, config_for
from fedelta.models.loading import load_model
from fedelta.models.peft import PeftAdaptedModel
from fedelta.tasks import Classification

CLIENTS, BATCH, LENGTH, RANK = 10, 4, 64, 8
TASK = Classification(labels=tuple(range(6)))
LORA = LoraConfig(r=RANK, lora_alpha=16, target_modules=["query", "value"], task_type="SEQ_CLS")
LEARNING_RATE = 1e-3


def examples(count: int, seed: int) -> list[dict[str, Any]]:
    """Encoded rows of random tokens, all of one length."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1000, 20000, (count, LENGTH), generator=generator).tolist()
    return [
        {"input_ids": row, "attention_mask": [1] * LENGTH, "token_type_ids": [0] * LENGTH, "label": k % 6}
        for k, row in enumerate(tokens)
    ]


def make_clients(count: int, steps: int) -> list[LocalClient]:
    """Clients on MiniLM, all on one model."""
    model, tokenizer = load_model("minilm", TASK, device="cpu")
    adapted = PeftAdaptedModel(model, config_for(TASK, LORA, model), tokenizer)
    parts = [examples(BATCH * steps, seed=k) for k in range(count)]
    return clients_on(
        adapted, TASK, parts, LORA, [RANK] * count, Training(local_steps=steps, batch_size=BATCH, learning_rate=LEARNING_RATE)
    )


# --- time ------------------------------------------------------------------------------------------------------------


def federated_round(clients: Sequence[LocalClient]) -> None:
    for _ in federate(get_method("fedavg"), clients, rounds=1):
        pass


def bare_round(model: PeftModel, parts: Sequence[Sequence[Any]], start: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same by hand; returns the mean state dict."""
    results = []
    for part in parts:
        set_peft_model_state_dict(model, start)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
        model.eval()
        for batch in bare_batches(part):
            labels = batch.pop("labels")
            loss = F.cross_entropy(model(**batch).logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        results.append({k: v.detach().clone() for k, v in get_peft_model_state_dict(model).items()})
    return {k: torch.stack([r[k] for r in results]).mean(0) for k in start}


def bare_batches(part: Sequence[Any]) -> Iterator[dict[str, torch.Tensor]]:
    order = torch.randperm(len(part)).tolist()
    for at in range(0, len(order), BATCH):
        yield TASK.collate([part[k] for k in order[at : at + BATCH]], 0)


def measure_time(pairs: int, steps: int) -> dict[str, Any]:
    clients = make_clients(CLIENTS, steps)
    model, _ = load_model("minilm", TASK, device="cpu")
    bare = get_peft_model(model, config_for(TASK, LORA, model))
    start = {k: v.clone() for k, v in get_peft_model_state_dict(bare).items()}
    runs: list[Callable[[], Any]] = [
        partial(federated_round, clients),
        partial(bare_round, bare, [c.examples for c in clients], start),
    ]
    for run in runs:
        run()  # allocators and caches warm up
    seconds = [timed_pair(runs, first=pair % 2) for pair in range(pairs)]
    ratios = {kind: [pair[0][kind] / pair[1][kind] for pair in seconds] for kind in ("wall", "cpu")}
    ratio = statistics.median(ratios["wall"])
    return {
        "pairs": pairs,
        "local_steps": steps,
        "seconds_fedelta": statistics.median(pair[0]["wall"] for pair in seconds),
        "seconds_bare": statistics.median(pair[1]["wall"] for pair in seconds),
        "ratio": ratio,
        "ratio_quartiles": statistics.quantiles(ratios["wall"], n=4)[::2],
        "ratio_of_cpu_time": statistics.median(ratios["cpu"]),  # hardly feels what else the machine does
        "ratio_within_1.05": ratio <= 1.05,
    }


def timed_pair(runs: Sequence[Callable[[], Any]], first: int) -> list[dict[str, float]]:
    """The seconds of both runs, in the order of `runs`; `first` says which goes first."""
    result: list[dict[str, float]] = [{}, {}]
    for which in (first, 1 - first):
        wall, cpu = time.perf_counter(), time.process_time()
        runs[which]()
        result[which] = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    return result


# --- memory ----------------------------------------------------------------------------------------------------------


def forget_peak() -> None:
    """Starts the record of the peak anew where the system can; else loading the model may hide the round's own peak."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """The largest resident size of this process on record."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024  # pyright: ignore[reportOptionalSubscript]
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def report_peak(count: int, steps: int) -> dict[str, float]:
    """Runs one round in this process, which does nothing else."""
    clients = make_clients(count, steps)
    forget_peak()
    loaded = peak_mib()
    federated_round(clients)
    return {"loaded": loaded, "peak": peak_mib()}


def measure_memory(steps: int) -> dict[str, Any]:
    def child(count: int) -> dict[str, float]:
        command = [
            sys.executable,
            __file__,
            "--peak",
            str(count),
            "--steps",
            str(steps),
            "--threads",
            str(torch.get_num_threads()),
        ]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])

    one, ten = child(1), child(CLIENTS)
    return {
        "peak_mib_one_client": one["peak"],
        "peak_mib_ten_clients": ten["peak"],
        "added_mib_one_client": one["peak"] - one["loaded"],
        "added_mib_ten_clients": ten["peak"] - ten["loaded"],
        "memory_ratio": ten["peak"] / one["peak"],
        "memory_within_5_percent": ten["peak"] <= 1.05 * one["peak"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer pairs and steps; under 50 s")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--pairs", type=int, help="5 with --quick, else 15")
    parser.add_argument("--steps", type=int, help="local steps; 1 with --quick, else 3")
    parser.add_argument("--threads", type=int, default=1, help="of torch; one gives the steadiest times")
    parser.add_argument("--peak", type=int, metavar="CLIENTS", help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # the loader's list of new parameters
    torch.set_num_threads(args.threads)
    pairs, steps = args.pairs or (5 if args.quick else 15), args.steps or (1 if args.quick else 3)
    if args.peak:
        print(json.dumps(report_peak(args.peak, steps)))
        return
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "threads": args.threads}
    result = {"benchmark": "overhead", **versions, **measure_time(pairs, steps), **measure_memory(steps)}
    print(json.dumps(result) if args.json else "\n".join(f"{k:24} {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
