"""Deals AG News to 20 clients of 200 rows, two balanced and 18 skewed, and writes train, validation and test rows to data/.

python experiments/replication/prepare.py ../shared/data/topic
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedelta.data.files import write_rows
from fedelta.data.sources import load_rows

BALANCED, SKEWED, ROWS = 2, 18, 200
CONCENTRATION = 0.3
SEED = 0
KEPT_OUT = {"validation": 300, "test": 1000}
OUTPUT = Path(__file__).parent / "data"

Row = dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, help="the folder of agnews_train_4000.jsonl.gz and agnews_test.jsonl.gz")
    source: Path = parser.parse_args().source
    random = np.random.default_rng(SEED)
    train = load_rows(source / "agnews_train_4000.jsonl.gz")
    labels = sorted({row["label"] for row in train})
    pools = {label: _shuffled([row for row in train if row["label"] == label], random) for label in labels}
    dealt = [{**row, "client": f"c{k:02}"} for k, part in enumerate(deal(pools, random)) for row in part]
    _write("train", dealt)
    others = _shuffled(load_rows(source / "agnews_test.jsonl.gz"), random)
    for part, count in KEPT_OUT.items():
        _write(part, others[:count])
        others = others[count:]


def deal(pools: Mapping[str, list[Row]], random: np.random.Generator) -> list[list[Row]]:
    """Returns the rows of each client, the balanced ones first; takes them out of the pools by label."""
    even = [[1 / len(pools)] * len(pools)] * BALANCED
    skewed = random.dirichlet([CONCENTRATION] * len(pools), SKEWED).tolist()
    return [_take(pools, shares, random) for shares in [*even, *skewed]]


def _take(pools: Mapping[str, list[Row]], shares: Sequence[float], random: np.random.Generator) -> list[Row]:
    """Takes a client's rows by its shares of the labels; where a label has run out, the other shares grow."""
    rows: list[Row] = []
    while len(rows) < ROWS:
        left = np.array([share if pool else 0.0 for share, pool in zip(shares, pools.values(), strict=True)])
        # The last clients get what is there, whatever their shares.
        left = left if left.sum() > 0 else np.array([float(len(pool)) for pool in pools.values()])
        wanted = random.multinomial(ROWS - len(rows), left / left.sum()) if len(rows) else _rounded(left, ROWS)
        for pool, count in zip(pools.values(), wanted, strict=True):
            rows += [pool.pop() for _ in range(min(int(count), len(pool)))]
    return rows


def _rounded(shares: np.ndarray, total: int) -> np.ndarray:
    """Returns whole numbers of that sum, as near to the shares as can be."""
    exact = shares / shares.sum() * total
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact)[: total - counts.sum()]] += 1
    return counts


def _shuffled(rows: list[Row], random: np.random.Generator) -> list[Row]:
    return [rows[i] for i in random.permutation(len(rows))]


def _write(part: str, rows: Sequence[Row]) -> None:
    write_rows(OUTPUT / f"agnews20_{part}.jsonl.gz", rows)
    print(f"{len(rows)} rows of {part}")


if __name__ == "__main__":
    main()
