"""Scores smollm2-135m on HellaSwag as it was released, without any training: zero_shot.csv.

    python experiments/hellaswag/prepare.py ../shared/data/hellaswag/val.jsonl.gz
    python experiments/smollm2/zero_shot.py

An ending's score is its mean log-probability per token, so that the accuracy is what evaluation harnesses call acc_norm, up to
their normalising by characters.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedelta.data.sources import load_rows
from fedelta.models.loading import load_model
from fedelta.tasks import get_task, predict_all

HERE = Path(__file__).resolve().parent
ROWS = HERE.parent / "hellaswag/data/test.jsonl.gz"
RESULTS = HERE / "zero_shot.csv"

NORMAL = 1.959964
"""Of a two-sided interval of 95 %."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    lines = scored(arguments.model, arguments.rows)
    with arguments.output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    for line in lines:
        print(line)


def scored(name: str, count: int) -> list[dict[str, Any]]:
    """Returns a line for all rows, and one for those of each source, with a 95 % interval of Wilson."""
    rows = load_rows(ROWS, limit=count)
    task = get_task("choice_likelihood", context="ctx", choices="endings")
    model, tokenizer = load_model(name, task, device="cpu")
    began = time.process_time()
    found = predict_all(task, model, task.encode(rows, tokenizer), batch_size=8)
    seconds = time.process_time() - began
    right = [bool(one) for one in found.correct]
    lines = [line(name, "all", right, {"seconds": f"{seconds:.0f}"})]
    for source in sorted({row["source"] for row in rows}):
        own = [hit for hit, row in zip(right, rows, strict=True) if row["source"] == source]
        lines.append(line(name, source, own, {"seconds": ""}))
    return lines


def line(model: str, rows: str, right: Sequence[bool], more: Mapping[str, str]) -> dict[str, Any]:
    """Returns a line of the table."""
    low, high = wilson(sum(right), len(right))
    share = f"{sum(right) / len(right):.3f}"
    return {"model": model, "source": rows, "rows": len(right), "accuracy": share, "low": low, "high": high, **more}


def wilson(hits: int, count: int) -> tuple[str, str]:
    """Returns the limits of Wilson's interval for a share."""
    middle = (hits + NORMAL**2 / 2) / (count + NORMAL**2)
    half = NORMAL / (count + NORMAL**2) * math.sqrt(hits * (count - hits) / count + NORMAL**2 / 4)
    return f"{middle - half:.3f}", f"{middle + half:.3f}"


if __name__ == "__main__":
    main()
