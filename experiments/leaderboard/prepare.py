"""Writes the rows of 24 of Banking77's 77 intents, every third by name, to data/: a task that a small model can learn here.

python experiments/leaderboard/prepare.py ../shared/data/topic
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fedelta.data.files import write_rows
from fedelta.data.sources import load_rows

INTENTS = 24
OUTPUT = Path(__file__).parent / "data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path, help="the folder of banking77_train.jsonl.gz and banking77_test.jsonl.gz")
    source: Path = parser.parse_args().source
    chosen = sorted({row["category"] for row in load_rows(source / "banking77_train.jsonl.gz")})[::3][:INTENTS]
    for part in ("train", "test"):
        kept = [row for row in load_rows(source / f"banking77_{part}.jsonl.gz") if row["category"] in chosen]
        write_rows(OUTPUT / f"banking24_{part}.jsonl.gz", kept)
        print(f"{len(kept)} rows of {part}")


if __name__ == "__main__":
    main()
