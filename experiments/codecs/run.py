"""Bytes against accuracy: codecs on TREC, with MiniLM; writes one line for each run, and the table of all lines.

    python experiments/codecs/run.py            # runs what is missing in results.jsonl, then prints the table
    python experiments/codecs/run.py --table    # prints the table of what is there
    python experiments/codecs/run.py --page     # writes the table into docs/explanation/codecs.md

`study.yaml` has the config that all runs share, the channels and the methods. All runs of a seed have the same clients, rows
and batches; accuracies are of the test questions after the last round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedelta.runs.config import load_config
from fedelta.runs.runner import run

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.jsonl"
PAGE = HERE.parents[1] / "docs/explanation/codecs.md"
MARKED = re.compile(r"(?<=<!-- table: begin -->\n).*(?=<!-- table: end -->)", re.DOTALL)

Line = Mapping[str, Any]


def study() -> Mapping[str, Any]:
    """Returns what the study file says."""
    return yaml.safe_load((HERE / "study.yaml").read_text(encoding="utf-8"))


def lines() -> list[Line]:
    """Returns the runs that are done."""
    if not RESULTS.is_file():
        return []
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def missing(asked: Mapping[str, Any]) -> Iterator[tuple[int, str, str]]:
    """Yields seed, method and channel of the runs that are not done; method by method, whole seeds first."""
    done = {(line["seed"], line["method"], line["channel"]) for line in lines()}
    for method, seed, channel in itertools.product(asked["methods"], asked["seeds"], asked["channels"]):
        if (seed, method, channel) not in done:
            yield seed, method, channel


def play(asked: Mapping[str, Any], seed: int, method: str, channel: str) -> Line:
    """Carries out one run; returns its line."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        own = {
            "seed": seed,
            "method": method,
            "federation.channel": asked["channels"][channel],
            "output": f"{folder}/run",
        }
        records = run(load_config(asked["base"], own)).records
    last = records[-1]
    return {
        "seed": seed,
        "method": method,
        "channel": channel,
        "accuracy": last["test"]["accuracy"],
        "loss": last["test"]["loss"],
        "up": sum(record["bytes"]["up"] for record in records),
        "down": sum(record["bytes"]["down"] for record in records),
        "seconds": round(time.perf_counter() - began, 1),
    }


def table(asked: Mapping[str, Any], found: Sequence[Line]) -> str:
    """Returns a row for each method and channel: bytes up, and the mean accuracy with its range over seeds."""
    head = "| method | channel | seeds | MiB up | of float32 | accuracy: mean (lowest to highest) | difference by seed |"
    rows = [head, "|---|---|---|---|---|---|---|"]
    for method, channel in itertools.product(asked["methods"], asked["channels"]):
        own, plain = (_by_seed(found, method, name) for name in (channel, "float32"))
        if own:
            rows.append(_row(method, channel, own, plain))
    return "\n".join(rows) + "\n"


def _by_seed(found: Sequence[Line], method: str, channel: str) -> dict[int, Line]:
    return {line["seed"]: line for line in found if (line["method"], line["channel"]) == (method, channel)}


def _row(method: str, channel: str, own: Mapping[int, Line], plain: Mapping[int, Line]) -> str:
    scores = [line["accuracy"] for line in own.values()]
    up = statistics.fmean(line["up"] for line in own.values())
    share = up / statistics.fmean(line["up"] for line in plain.values())
    apart = [f"{line['accuracy'] - plain[seed]['accuracy']:+.3f}" for seed, line in sorted(own.items()) if seed in plain]
    spread = f"{statistics.fmean(scores):.3f} ({min(scores):.3f} to {max(scores):.3f})"
    differences = "" if channel == "float32" else ", ".join(apart)
    return f"| {method} | {channel} | {len(own)} | {up / 2**20:.2f} | {share:.3f} | {spread} | {differences} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--page", action="store_true", help="run nothing, and write the table into the documentation")
    arguments = parser.parse_args()
    asked = study()
    if not (arguments.table or arguments.page):
        for job in missing(asked):
            line = json.dumps(play(asked, *job))
            print(line, flush=True)
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
    found = table(asked, lines())
    print(found)
    if arguments.page:
        PAGE.write_text(MARKED.sub(lambda _: found, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
