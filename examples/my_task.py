"""A task of one's own in a file: rows have stars, and the model learns whether a review is a good one.

    fedelta check examples/my_task.py
    python examples/my_task.py

The second runs it on reviews that are made here, with MiniLM; in a config it is `task: {path: ./my_task.py, threshold: 3}`.
"""

# Tested with: {minilm}

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import fedelta
from fedelta.tasks import Classification, Example, Row


@dataclass(frozen=True, kw_only=True)
class GoodReview(Classification):
    """Tells reviews with many stars from others.

    Args:
        threshold: the least number of stars of a good review.
    """

    sample: ClassVar[tuple[Row, ...]] = (
        {"text": "works as it should", "stars": 5},
        {"text": "it broke on the first day", "stars": 1},
        {"text": "neither here nor there", "stars": 3},
        {"text": "a delight", "stars": 4},
    )

    threshold: int = 4
    labels: tuple[str, ...] = ("bad", "good")

    def encode(self, rows: Sequence[Row], tokenizer: Any) -> list[Example]:
        """Returns one example per row, whose label comes from the stars."""
        return super().encode([{"text": row["text"], "label": self.label_of(row)} for row in rows], tokenizer)

    def label_field(self) -> None:
        """Returns nothing: no field of a row holds the label itself."""

    def label_of(self, row: Row) -> str:
        """Returns the label of a row."""
        return "good" if row["stars"] >= self.threshold else "bad"


PRAISE = ["a delight", "works as it should", "well made", "would buy it again", "arrived early, and fits"]
BLAME = ["broke on the first day", "nobody answers", "smells odd", "a waste of money", "came late, and torn"]
THINGS = ["the kettle", "this lamp", "the coat", "my new chair", "the radio", "that book"]


def write_reviews(path: Path) -> None:
    """Writes sixty reviews with one to five stars."""
    stars = [(text, 4 + k % 2) for k, text in enumerate(PRAISE)] + [(text, 1 + k % 3) for k, text in enumerate(BLAME)]
    rows = [{"text": f"{thing}: {text}", "stars": n} for thing in THINGS for text, n in stars]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    write_reviews(Path("reviews.jsonl"))
    config = {
        "name": "reviews",
        "device": "cpu",
        "model": "minilm",
        "data": {"source": "reviews.jsonl", "validation_fraction": 0.0, "test_fraction": 0.3},
        "partition": {"scheme": "iid", "clients": 3},
        "lora": {"rank": 4, "target_modules": ["query", "value", "pooler.dense"]},
        "training": {"batch_size": 8, "local_steps": 5, "learning_rate": 5.0e-3},
        "federation": {"rounds": 3},
    }
    run = fedelta.run(config, task=__file__, force=True)
    accuracy = run.final["test"]["accuracy"]
    print(f"good or bad: {accuracy:.0%} of the test rows are right")
    assert accuracy > 0.7


if __name__ == "__main__":
    main()
