"""Writes the rows of ten nodes with the reported skew, SST-2, and test rows; also MNLI's, to data/.

    python experiments/tad_lora/prepare.py ../shared/data/glue

Of SST-2's phrases each is taken once, and none that is a test sentence. Three nodes have nine positive rows to one negative,
three the reverse, four as many of each. The field `node` says whose a row is.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from fedelta.data.files import write_rows
from fedelta.data.sources import load_rows

POSITIVE = [0.9] * 3 + [0.1] * 3 + [0.5] * 4
"""By node, the share of positive rows."""

MNLI = [(0.9, 0.05, 0.05)] * 4 + [(0.05, 0.9, 0.05)] * 3 + [(0.05, 0.05, 0.9)] * 3
"""By node, the shares of the three labels in alphabetical order."""

ROWS, MNLI_ROWS, VALIDATION = 400, 240, 200

OUTPUT = Path(__file__).parent / "data"

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, help="the folder of sst2_*.jsonl.gz and mnli_*.jsonl.gz")
    source: Path = parser.parse_args().source
    test = load_rows(source / "sst2_val.jsonl.gz")
    write("sst2_test", test)
    phrases = list(unseen(load_rows(source / "sst2_train.jsonl.gz"), test).values())
    deal("sst2", phrases, [{1: share, 0: 1 - share} for share in POSITIVE], ROWS)
    pairs = load_rows(source / "mnli_train_3000.jsonl.gz")
    labels = sorted({row["label"] for row in pairs})
    deal("mnli", pairs, [dict(zip(labels, shares, strict=True)) for shares in MNLI], MNLI_ROWS)
    write("mnli_test", Random(0).sample(load_rows(source / "mnli_eval_7469.jsonl.gz"), 1000))


def unseen(rows: Sequence[Row], test: Sequence[Row]) -> dict[str, Row]:
    """Returns one row for each phrase that is no test sentence."""
    known = {row["sentence"].strip() for row in test}
    return {text: row for row in rows if (text := row["sentence"].strip()) not in known}


def deal(name: str, rows: Sequence[Row], shares: Sequence[Mapping[Any, float]], count: int) -> None:
    """Writes `count` rows for each node, by its shares of the labels, and rows to choose by from what is left."""
    drawn = Random(0).sample(rows, len(rows))
    by_label = {label: [row for row in drawn if row["label"] == label] for label in shares[0]}
    dealt: list[Row] = []
    for node, own in enumerate(shares):
        for label, share in own.items():
            dealt += [{**by_label[label].pop(), "node": node} for _ in range(round(share * count))]
    write(f"{name}_train", dealt)
    each = VALIDATION // len(by_label)
    write(f"{name}_validation", [row for rows in by_label.values() for row in rows[:each]])


def write(name: str, rows: Sequence[Row]) -> None:
    write_rows(OUTPUT / f"{name}.jsonl.gz", rows)
    print(f"{len(rows)} rows of {name}")


if __name__ == "__main__":
    main()
