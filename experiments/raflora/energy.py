"""Takes the energy beyond the smallest rank from the store: one row for each method, seed and shown round.

python tools/studies.py raflora && python experiments/raflora/energy.py && python tools/studies.py raflora
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from fedelta.runs.suite.store import Store

HERE = Path(__file__).resolve().parent
SUITES = {"mixed": (1, 5, 10, 20, 40), "collapse": (1, 5, 10, 20, 30)}
"""By suite, the rounds that are shown."""

NUMBER = "higher_rank_energy_ratio"


def main() -> None:
    store = Store(HERE / "cells.jsonl.gz")
    store.refresh()
    with (HERE / "results.csv").open(newline="", encoding="utf-8") as file:
        last = [row for row in csv.DictReader(file) if row["at"] == "last" and row["suite"] in SUITES]
    cells: dict[tuple[str, str, str], dict[str, Mapping[int, float]]] = {}
    for row in last:
        found = energies(store.lines[row["config_sha256"]]["records"])
        if found:
            cells.setdefault((row["suite"], row["setting"], row["label"]), {})[row["seed"]] = found
    with (HERE / "energy.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["suite", "setting", "method", "seed", "round", "energy"], lineterminator="\n")
        writer.writeheader()
        for (suite, setting, label), seeds in cells.items():
            for seed, by_round in seeds.items():
                # A run that diverged lacks the rounds after that.
                shown = {number: by_round[number] for number in SUITES[suite] if number in by_round}
                fixed = {"suite": suite, "setting": setting, "method": label, "seed": seed}
                writer.writerows({**fixed, "round": number, "energy": f"{value:.2g}"} for number, value in shown.items())


def energies(records: list[Mapping[str, Mapping[str, float]]]) -> dict[int, float]:
    """Returns by round, from 1, the share of the server's energy beyond the smallest rank; empty where ranks are equal."""
    values = [(record.get("diagnostics") or {}).get(NUMBER) for record in records]
    return {t + 1: value for t, value in enumerate(values) if value is not None}


if __name__ == "__main__":
    main()
