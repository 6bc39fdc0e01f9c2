"""Two sites align one language model with the preferences of their own users, each by its own DPOTrainer of TRL.

    pip install 'fedelta[trl]'
    python examples/trl_dpo.py

Each site keeps one model in memory for all rounds. Its DPOTrainer copies the adapter that it finds as the reference of the
loss; that is what the run began with, in every round, and the copy is removed after each of them.
"""

from __future__ import annotations

import argparse
import random
from functools import partial
from typing import Any

from datasets import Dataset, disable_progress_bars
from peft import LoraConfig, get_peft_model
from tiny_llama import load_model, load_tokenizer
from trl import DPOConfig, DPOTrainer

import fedelta

RANKS = (2, 4)
COLOURS, ANIMALS = ["red", "green", "blue"], ["cat", "dog", "fox"]


def preferences(seed: int) -> Dataset:
    """One site's rows: asked for a colour, its users prefer a colour to an animal."""
    draws = random.Random(seed)
    rows = [
        {"prompt": "name a colour", "chosen": f" {draws.choice(COLOURS)}", "rejected": f" {draws.choice(ANIMALS)}"}
        for _ in range(24)
    ]
    return Dataset.from_list(rows)


def make_trainer(model: Any, data: Dataset, turn: fedelta.Turn) -> DPOTrainer:
    """What a site would run by itself; fedelta calls it once in each round."""
    args = DPOConfig(
        output_dir=f"runs/trl_dpo/site-{turn.id}",
        seed=turn.seed,
        max_steps=4,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        max_length=32,
        beta=0.1,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    return DPOTrainer(model=model, args=args, train_dataset=data, processing_class=load_tokenizer())


def site(k: int, rank: int) -> fedelta.TrainerClient:
    lora = LoraConfig(r=rank, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(load_model(), lora)
    return fedelta.TrainerClient(k, partial(make_trainer, model, preferences(seed=k)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--method", default="flexlora")
    options = parser.parse_args()
    disable_progress_bars()

    sites = [site(k, rank) for k, rank in enumerate(RANKS)]
    for done in fedelta.federate(fedelta.get_method(options.method), sites, rounds=options.rounds, quorum=1.0):
        print(f"{options.method}  round {done.t}  loss {done.loss:.3f}  (0.693 is no preference)")
    fedelta.save_adapter(done.state["adapter"], f"runs/trl_dpo/{options.method}")


if __name__ == "__main__":
    main()
