"""Writes what each method's last model of the first seed answers to four held-out instructions: samples.md.

python experiments/smollm2/samples.py runs/smollm2-small
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedelta.models.aliases import resolve_model
from fedelta.tasks import get_task

HERE = Path(__file__).resolve().parent

QUESTIONS = (
    "Name three rivers in Europe.",
    "Give me ideas for a birthday present for a gardener.",
    "Which of these are fruits: apple, carrot, pear, potato?",
    "Why do cats purr?",
)
"""Of kinds that Dolly has: open questions, lists, and sorting."""

TOKENS = 48


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("suite", type=Path, help="the folder of the comparison")
    parser.add_argument("--output", type=Path, default=HERE / "samples.md")
    arguments = parser.parse_args()
    folders = {path.parents[2].name: path for path in sorted(arguments.suite.glob("cells/*/*/seed-0/adapters/last"))}
    models = {"untrained": None, **folders}
    parts = ["# Greedy answers, 48 tokens at most"]
    for name, folder in models.items():
        parts.append(f"## {name}\n\n" + "\n".join(answers(folder)))
    arguments.output.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def answers(folder: Path | None) -> Sequence[str]:
    """Returns a line for each question."""
    base = resolve_model("smollm2-135m")
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if folder is not None:
        model = PeftModel.from_pretrained(model, folder)
    model.eval()
    return [f"- *{question}* {answer(model, tokenizer, question)}" for question in QUESTIONS]


def answer(model: Any, tokenizer: Any, question: str) -> str:
    """Returns a greedy answer on one line."""
    task: Any = get_task("instruction")
    given = tokenizer(task.prompt_of({"instruction": question}), return_tensors="pt")
    with torch.inference_mode():
        found = model.generate(**given, max_new_tokens=TOKENS, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    text = tokenizer.decode(found[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
    return " ".join(text.split())


if __name__ == "__main__":
    main()
