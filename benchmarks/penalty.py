"""What the penalty of Subspace-Reg costs a training step.

MiniLM, rank 8 on query and value, batches of 4 x 64 random tokens. A client trains from one adapter on the same batches with
and without the penalty, in pairs whose order alternates; the ratio is the median over the pairs. At most 1.03 is wanted. Since
3 % of a step is less than the noise of a busy machine, the penalty's value and gradient are timed alone too, and given as a
share of the step. The reference is prepared once a round.

    python benchmarks/penalty.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from peft import LoraConfig

from fedelta import tree
from fedelta.client import LocalClient, Training
from fedelta.method import Penalty
from fedelta.methods import SubspaceReg
from fedelta.models.clients import clients_on
from fedelta.models.loading import load_model
from fedelta.models.lora_peers import config_for
from fedelta.models.peft import PeftAdaptedModel
from fedelta.tasks import Classification
from fedelta.tree import Adapter

BATCH, LENGTH, RANK = 4, 64, 8
TASK = Classification(labels=tuple(range(6)))
LORA = LoraConfig(r=RANK, lora_alpha=16, target_modules=["query", "value"], task_type="SEQ_CLS")


def make_client(steps: int) -> LocalClient:
    """One client on MiniLM, with enough random tokens for its steps."""
    model, tokenizer = load_model("minilm", TASK, device="cpu")
    adapted = PeftAdaptedModel(model, config_for(TASK, LORA, model), tokenizer)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1000, 20000, (BATCH * steps, LENGTH), generator=generator).tolist()
    rows = [
        {"input_ids": row, "attention_mask": [1] * LENGTH, "token_type_ids": [0] * LENGTH, "label": k % 6}
        for k, row in enumerate(tokens)
    ]
    [client] = clients_on(adapted, TASK, [rows], LORA, [RANK], Training(local_steps=steps, batch_size=BATCH))
    return client


def trained_start(client: LocalClient) -> Adapter:
    """What a server sends after a round: no factor is zero, the columns of B are orthonormal."""
    generator = torch.Generator().manual_seed(1)
    return tree.map(
        lambda x: replace(x, B=torch.linalg.qr(torch.randn(x.B.shape, generator=generator)).Q, A=0.01 * x.A), client.template
    )


def measure(client: LocalClient, pairs: int, steps: int) -> dict[str, Any]:
    start, regulariser = trained_start(client), SubspaceReg().regulariser()
    began = time.process_time()
    penalty = regulariser.towards(start)
    prepared = time.process_time() - began
    assert penalty is not None
    runs = [partial(client.train, 0, start, penalty=penalty), partial(client.train, 0, start)]
    for run in runs:
        run()  # allocators and caches warm up
    alone = penalty_alone(penalty, start)
    seconds = [timed_pair(runs, first=pair % 2) for pair in range(pairs)]
    step = statistics.median(s[1] for s in seconds) / steps
    ratios = [with_it / without for with_it, without in seconds]
    return {
        "milliseconds_step_with": 1000 * statistics.median(s[0] for s in seconds) / steps,
        "milliseconds_step_without": 1000 * step,
        "milliseconds_penalty_alone": 1000 * alone,
        "milliseconds_prepare": 1000 * prepared,
        "share_of_step": alone / step,
        "ratio": statistics.median(ratios),
        "ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
    }


def penalty_alone(penalty: Penalty, start: Adapter, repeats: int = 100) -> float:
    """The median CPU seconds of the penalty's value and gradient."""
    live = tree.map_tensors(lambda x: x.clone().requires_grad_(), replace(start, dense={}))
    params = list(tree.parameters(live).values())
    seconds: list[float] = []
    for _ in range(repeats):
        began = time.process_time()
        torch.autograd.grad(penalty(live), params)
        seconds.append(time.process_time() - began)
    return statistics.median(seconds)


def timed_pair(runs: Sequence[Callable[[], Any]], first: int) -> list[float]:
    """The CPU seconds of both runs, in the order of `runs`; `first` says which goes first."""
    result = [0.0, 0.0]
    for which in (first, 1 - first):
        began = time.process_time()  # hardly feels what else the machine does
        runs[which]()
        result[which] = time.process_time() - began
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer pairs; under 50 s")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--pairs", type=int, help="15 with --quick, else 60")
    parser.add_argument("--steps", type=int, default=2, help="of each run")
    parser.add_argument("--threads", type=int, default=1, help="of torch; one gives the steadiest times")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # the loader's list of new parameters
    torch.set_num_threads(args.threads)
    pairs = args.pairs or (15 if args.quick else 60)
    client = make_client(args.steps)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "threads": args.threads}
    result: dict[str, Any] = {"benchmark": "penalty", **versions, "pairs": pairs, "local_steps": args.steps}
    result |= measure(client, pairs, args.steps)
    result["ratio_within_1.03"] = result["ratio"] <= 1.03
    print(json.dumps(result) if args.json else "\n".join(f"{k:34} {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
