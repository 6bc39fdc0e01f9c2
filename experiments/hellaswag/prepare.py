"""Writes train and test rows of HellaSwag, split by groups of near-equal contexts, to data/; several studies read them.

    python experiments/hellaswag/prepare.py ../shared/data/hellaswag/val.jsonl.gz

The rows are those of the official validation set, since the training set is larger than what was to be had. Near-equal are two
contexts of one activity whose first eight words are the same: pieces of one video, or steps of one article. Such rows go to one
part, or a model would be tested on what it has seen.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from fedelta.data.files import write_rows
from fedelta.data.sources import load_rows

WORDS = 8
"""Of a context, by which it counts as near-equal to another one."""

SHARE = 5
"""One group in so many is test."""

OUTPUT = Path(__file__).parent / "data"

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, help="val.jsonl.gz, in the official order")
    source: Path = parser.parse_args().source
    rows = load_rows(source)
    for name, part in split(rows).items():
        write_rows(OUTPUT / f"{name}.jsonl.gz", part)
        print(f"{len(part)} rows of {name}")
    print(f"{torn(rows)} rows would have a near-equal one on the other side if each row went by its own number")


def split(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Returns the rows of both parts; a group goes where the number of its first row says."""
    first: dict[Hashable, int] = {}
    parts: dict[str, list[Row]] = {"train": [], "test": []}
    for row in rows:
        number = first.setdefault(group(row), row["row"])
        parts["train" if number % SHARE else "test"].append(row)
    return parts


def torn(rows: Sequence[Row]) -> int:
    """Counts the test rows that a split by row number would take out of a group with training rows."""
    trained = {group(row) for row in rows if row["row"] % SHARE}
    return sum(group(row) in trained for row in rows if row["row"] % SHARE == 0)


def group(row: Row) -> Hashable:
    """Returns what near-equal contexts have in common."""
    return row["activity_label"], tuple(re.findall(r"\w+", row["ctx"].lower())[:WORDS])


if __name__ == "__main__":
    main()
