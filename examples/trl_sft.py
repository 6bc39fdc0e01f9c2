"""Three sites fine-tune one language model on their own conversations, each with its own SFTTrainer of TRL.

    pip install 'fedelta[trl]'
    python examples/trl_sft.py

The sites hold adapters of ranks 2, 4 and 4. Chat template, loss masks, packing and schedule are TRL's affair; fedelta carries
the adapters. The model is a tiny random Llama that is made here, so that this runs in seconds and without a download: with a
checkpoint of your own, write its name into `load_model` and `load_tokenizer`.
"""

from __future__ import annotations

import argparse
import random
from functools import partial
from typing import Any

from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from tiny_llama import load_model, load_tokenizer
from trl import SFTConfig, SFTTrainer

import fedelta

RANKS = (2, 4, 4)
THINGS = {"colour": ["red", "green", "blue"], "animal": ["cat", "dog", "fox"], "fruit": ["plum", "pear", "fig"]}


def conversations(kind: str, seed: int) -> Dataset:
    """One site's rows: its own questions, in the format that every chat model of the Hub is trained on."""
    draws = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for _ in range(24):
        thing = draws.choice(THINGS[kind])
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": f"name a {kind}"},
                    {"role": "assistant", "content": f"{thing} is a {kind}"},
                ]
            }
        )
    return Dataset.from_list(rows)


def make_trainer(rank: int, data: Dataset, turn: fedelta.Turn) -> SFTTrainer:
    """What a site would run by itself; fedelta calls it once in each round."""
    lora = LoraConfig(r=rank, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    args = SFTConfig(
        output_dir=f"runs/trl_sft/site-{turn.id}",
        seed=turn.seed,
        max_steps=10,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=5e-3,
        max_length=48,
        assistant_only_loss=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    model, tokenizer = load_model(), load_tokenizer()
    return SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer, peft_config=lora)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=["flexlora", "raflora"])
    options = parser.parse_args()
    disable_progress_bars()

    sites = [
        fedelta.TrainerClient(k, partial(make_trainer, rank, conversations(kind, seed=k)))
        for k, (rank, kind) in enumerate(zip(RANKS, THINGS, strict=True))
    ]
    for name in options.methods:
        for done in fedelta.federate(fedelta.get_method(name), sites, rounds=options.rounds, quorum=1.0):
            print(f"{name}  round {done.t}  loss {done.loss:.3f}")
        fedelta.save_adapter(done.state["adapter"], f"runs/trl_sft/{name}")


if __name__ == "__main__":
    main()
