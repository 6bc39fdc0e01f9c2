"""A cohort's round in one pass of the model against one client after another, on a CUDA device.

Federated averaging of LoRA, rank 8, over models of random weights: RoBERTa-large, SmolLM-360M and a Llama of 1B, by the
shapes of their configurations. Clients have batches of 4 x 128 tokens, without padding; the language models answer in the
last 32 tokens of each row. Three ways take turns: a PEFT loop by hand with a fused AdamW, `federate(engine="sequential")`,
and `federate(engine="batched")` with all clients in one pass. Given are medians over the repeats, and ratios within a repeat.

MFU is the share of the measured ceiling, a product of large matrices in the same dtype on the same device (TF32 off), that the
model's own arithmetic comes to. Counted, for N tokens in sequences of length L, is what full passes would need:

    frozen products    4 N P     forward, and back to their inputs; their weights have no gradient. P: weights in Linear layers
    low-rank products  6 N r (i + o)     for each adapted layer (o, i)
    attention          12 N L d     for each layer, for its two products and their four gradients; half of it if causal
    output head        4 M P of an output head, for M rows that are read; 6 M P of one that trains

and nothing else: no embeddings, norms, softmax or optimiser, and nothing that is computed twice.

    python benchmarks/gpu/cohort_gpu.py [--quick] [--json] [--models roberta-large ...] [--dtypes bfloat16 ...] [--clients 1 16]
    python benchmarks/gpu/cohort_gpu.py --device cpu --tiny      # the same code on toy sizes: its numbers mean nothing
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from clock import ceiling, interleaved, name_of, peak_gib
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, RobertaConfig

from fedelta.client import LocalClient, Training
from fedelta.engines.server import federate
from fedelta.methods import get_method
from fedelta.models.clients import clients_on
from fedelta.models.lora_peers import config_for
from fedelta.models.peft import PeftAdaptedModel
from fedelta.tasks import Classification, Instruction, Task

RANK, BATCH, LENGTH, ANSWER, LABELS, LEARNING_RATE = 8, 4, 128, 32, 4, 1e-4
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
WANTED = 5.0
"""Times the sequential engine's speed: of RoBERTa-large in bfloat16 with 16 clients."""


@dataclass(frozen=True)
class Kind:
    """A model by its shape.

    Attributes:
        config: transformers' class, and the numbers of the published model.
        targets: the adapted layers.
        task: what its clients train on.
    """

    config: type[Any]
    sizes: Mapping[str, Any]
    targets: tuple[str, ...]
    task: Task

    @property
    def causal(self) -> bool:
        return isinstance(self.task, Instruction)

    def build(self, device: torch.device, dtype: torch.dtype, tiny: bool) -> Any:
        """Of random weights, the same ones each time."""
        torch.manual_seed(0)
        config = self.config(**{**self.sizes, **(TINY if tiny else {})})
        auto: Any = AutoModelForCausalLM if self.causal else AutoModelForSequenceClassification
        with device:
            return auto.from_config(config, dtype=dtype).eval()

    def examples(self, count: int, vocabulary: int, seed: int) -> list[dict[str, Any]]:
        """Rows of random tokens."""
        draw = torch.Generator().manual_seed(seed)
        rows = torch.randint(3, vocabulary, (count, LENGTH), generator=draw).tolist()
        return [{"input_ids": row, "attention_mask": [1] * LENGTH, **self._labels(row)} for row in rows]

    def _labels(self, row: Sequence[int]) -> dict[str, Any]:
        if self.causal:
            return {"token_labels": [-100] * (LENGTH - ANSWER) + list(row[-ANSWER:])}
        return {"label": row[0] % LABELS}


def llama(**sizes: Any) -> Kind:
    return Kind(LlamaConfig, {**sizes, "tie_word_embeddings": True}, ("q_proj", "v_proj"), Instruction())


KINDS = {
    "roberta-large": Kind(
        RobertaConfig,
        {
            "vocab_size": 50265,
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
            "num_labels": LABELS,
            "pad_token_id": 1,
        },
        ("query", "value"),
        Classification(labels=tuple(range(LABELS))),
    ),
    "smollm-360m": llama(
        vocab_size=49152,
        hidden_size=960,
        num_hidden_layers=32,
        num_attention_heads=15,
        num_key_value_heads=5,
        intermediate_size=2560,
    ),
    "llama-1b": llama(
        vocab_size=128256,
        hidden_size=2048,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=8192,
    ),
}
TINY = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
}


# --- the work --------------------------------------------------------------------------------------------------------


class Bench:
    """One model under fedelta's adapters, and one under PEFT's alone."""

    def __init__(self, name: str, args: argparse.Namespace, dtype: torch.dtype) -> None:
        self.kind, self.device, self.steps = KINDS[name], torch.device(args.device), args.steps
        self.lora = LoraConfig(r=RANK, lora_alpha=16, target_modules=list(self.kind.targets))
        model, plain = (self.kind.build(self.device, dtype, args.tiny) for _ in range(2))
        self.adapted = PeftAdaptedModel(model, config_for(self.kind.task, self.lora, model), None)
        self.by_hand: Any = get_peft_model(plain, config_for(self.kind.task, self.lora, plain))
        if not self.kind.causal:
            self.by_hand.base_model.model.classifier.to(dtype)  # PEFT's own loop cannot train a float32 head here
        self.start = {n: x.clone() for n, x in get_peft_model_state_dict(self.by_hand).items()}

    def clients(self, count: int) -> list[LocalClient]:
        vocabulary = self.adapted.module.get_input_embeddings().num_embeddings  # pyright: ignore
        parts = [self.kind.examples(BATCH * self.steps, vocabulary, seed) for seed in range(count)]
        training = Training(batch_size=BATCH, local_steps=self.steps, learning_rate=LEARNING_RATE)
        return clients_on(self.adapted, self.kind.task, parts, self.lora, [RANK] * count, training)

    def measure(self, count: int, repeats: int, most: float) -> dict[str, Any]:
        """A row of each way, for this many clients; `most` is the ceiling in FLOP/s."""
        clients = self.clients(count)
        runs = {
            "by hand": partial(self.hand_round, clients),
            "sequential": partial(one_round, clients, "sequential"),
            "batched": partial(one_round, clients, "batched"),
        }
        for run in runs.values():
            run()  # allocators, kernels and caches warm up
        peaks = {name: peak_gib(run, self.device) for name, run in runs.items()}
        seconds = interleaved(runs, repeats, self.device)
        work, tokens = self.steps * flops(self.adapted, count * BATCH, self.kind.causal), count * self.steps * BATCH * LENGTH
        middle = {name: statistics.median(taken) for name, taken in seconds.items()}
        return {
            "clients": count,
            "steps": self.steps,
            "seconds": middle,
            "tokens_per_second": {name: tokens / taken for name, taken in middle.items()},
            "mfu": {name: work / taken / most for name, taken in middle.items()},
            "peak_gib": peaks,
            "over_sequential": {name: summary(seconds["sequential"], taken) for name, taken in seconds.items()},
        }

    def hand_round(self, clients: Sequence[LocalClient]) -> dict[str, torch.Tensor]:
        """The same steps on the same batches with PEFT and torch.optim; returns the mean state."""
        results = [self.hand_trained(client) for client in clients]
        return {n: torch.stack([r[n] for r in results]).mean(0) for n in self.start}

    def hand_trained(self, client: LocalClient) -> dict[str, torch.Tensor]:
        set_peft_model_state_dict(self.by_hand, self.start)
        trained = [p for p in self.by_hand.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=self.device.type == "cuda")
        for batch, _ in zip(client.batches(0), range(self.steps), strict=False):
            loss = self.kind.task.loss(self.by_hand.get_base_model(), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return {n: x.detach().clone() for n, x in get_peft_model_state_dict(self.by_hand).items()}


def one_round(clients: Sequence[LocalClient], engine: str) -> None:
    """A round of FedAvg, the aggregation on the CPU and all transfers included; batched, all clients are in one pass."""
    for _ in federate(get_method("fedavg"), clients, rounds=1, engine=engine, token_budget=len(clients) * BATCH * LENGTH):
        pass


def flops(adapted: PeftAdaptedModel, sequences: int, causal: bool) -> float:
    """Of one step on so many sequences, by the formula at the top."""
    config: Any = adapted.module.config
    linear = {n: m for n, m in adapted.module.named_modules() if isinstance(m, nn.Linear) and ".lora_" not in n}
    frozen = {n: m.weight.numel() for n, m in linear.items() if not n.startswith(("classifier", "lm_head"))}
    head = sum(m.weight.numel() for n, m in linear.items() if n not in frozen and "original_module" not in n)
    tokens, outer = sequences * LENGTH, sum(x.rank * sum(x.shape) for x in adapted.live().layers.values())
    attention = 12 * tokens * LENGTH * config.hidden_size * config.num_hidden_layers / (2 if causal else 1)
    read = 4 * sequences * ANSWER if causal else 6 * sequences
    return 4 * tokens * sum(frozen.values()) + 6 * tokens * outer + attention + read * head


def summary(over: Sequence[float], under: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles of the ratios of each repeat."""
    found = [a / b for a, b in zip(over, under, strict=True)]
    quartiles = statistics.quantiles(found, n=4)[::2] if len(found) > 1 else found * 2
    return {"median": statistics.median(found), "quartiles": quartiles}


# --- what comes out --------------------------------------------------------------------------------------------------


def measured(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All rows that were asked for, each as soon as it is there."""
    for dtype in args.dtypes:
        most = ceiling(torch.device(args.device), DTYPES[dtype], 256 if args.tiny else 8192)
        for name in args.models:
            bench = Bench(name, args, DTYPES[dtype])
            for count in args.clients:
                row = bench.measure(count, args.repeats, most)
                yield {"model": name, "dtype": dtype, "ceiling_tflops": most / 1e12, **row}


HEAD = (
    f"{'model':<15}{'dtype':<10}{'K':>3} {'way':<11}{'ms/round':>10}"
    f"{'tokens/s':>11}{'MFU':>7}{'peak GiB':>10}{'speed':>7}  quartiles"
)


def lines(row: Mapping[str, Any]) -> str:
    """A row of the table for each way; speed is over the sequential engine."""
    return "\n".join(
        f"{row['model']:<15}{row['dtype']:<10}{row['clients']:>3} {way:<11}{1e3 * seconds:>10.1f}"
        f"{row['tokens_per_second'][way]:>11.0f}{row['mfu'][way]:>7.3f}{row['peak_gib'][way] or float('nan'):>10.2f}"
        f"{row['over_sequential'][way]['median']:>7.2f}  {quartiles(row['over_sequential'][way])}"
        for way, seconds in row["seconds"].items()
    )


def quartiles(found: Mapping[str, Any]) -> str:
    return "-".join(f"{x:.2f}" for x in found["quartiles"])


def verdict(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What was wanted, and whether it was found."""
    for row in rows:
        if (row["model"], row["dtype"], row["clients"]) == ("roberta-large", "bfloat16", 16):
            found = row["over_sequential"]["batched"]["median"]
            return {"roberta-large_16": found, f"roberta-large_16_at_least_{WANTED}": found >= WANTED}
    return {}


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="RoBERTa-large in bfloat16 with 16 clients")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--models", nargs="+", choices=KINDS)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES)
    parser.add_argument("--clients", nargs="+", type=int, help="1 2 4 8 16 32")
    parser.add_argument("--steps", type=int, default=2, help="local steps of a round")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to try the script")
    args = parser.parse_args()
    args.models = args.models or (["roberta-large"] if args.quick else list(KINDS))
    args.dtypes = args.dtypes or (["bfloat16"] if args.quick else list(DTYPES))
    args.clients = args.clients or ([16] if args.quick else [1, 2, 4, 8, 16, 32])
    return args


def main() -> None:
    args = read_arguments()
    device = torch.device(args.device)
    transformers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.backends.cuda.matmul.allow_tf32 = False
    if not args.json:
        print(f"{name_of(device)}, torch {torch.__version__}, {BATCH} x {LENGTH} tokens a client and step\n{HEAD}")
    rows = list[dict[str, Any]]()
    for row in measured(args):
        rows.append(row)
        if not args.json:
            print(lines(row), flush=True)
    versions = {"device": name_of(device), "torch": torch.__version__, "transformers": transformers.__version__}
    found = {"benchmark": "cohort_gpu", **versions, **verdict(rows), "rows": rows}
    print(json.dumps(found) if args.json else "\n".join(f"{k} {v}" for k, v in verdict(rows).items()))


if __name__ == "__main__":
    main()
