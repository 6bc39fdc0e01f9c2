"""Scores the mean of the nodes' last adapters as one model, for each finished run of small.yaml: averaged.csv.

    python experiments/tad_lora/averaged.py runs/tad_lora-small

Factors and heads are averaged one by one, as a node does it with its neighbours. The folders of the runs must still have their
adapters.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedelta import load_adapter, save_adapter, tree
from fedelta.runs.export import find, score
from fedelta.runs.folder import RunFolder

RESULTS = Path(__file__).resolve().parent / "averaged.csv"

Scores = tuple[float, float]
"""Accuracy of the nodes' own models, the mean, and of the averaged model."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("suite", type=Path, help="the folder of the comparison")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    found: dict[tuple[str, str], list[Scores]] = {}
    for run in filter(is_finished, sorted(arguments.suite.glob("cells/*/*/seed-*"))):
        scores = (of_nodes(run), of_mean(run))
        print(f"{run.relative_to(arguments.suite)}: nodes {scores[0]:.4f}, averaged {scores[1]:.4f}", flush=True)
        found.setdefault((run.parts[-3], run.parts[-2]), []).append(scores)
    with arguments.output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["setting", "method", "seeds", "nodes", "averaged", "averaged: lowest", "highest"])
        writer.writerows([*names, *summary(scores)] for names, scores in found.items())


def is_finished(run: Path) -> bool:
    """Returns whether a run has all its rounds; one that goes on, or diverged, has adapters of another round, or none."""
    folder = RunFolder(run)
    return len(folder.records()) == folder.config().federation.rounds and not folder.diverged_file.is_file()


def of_nodes(run: Path) -> float:
    """Returns the mean over nodes of the test accuracy after the last round."""
    return RunFolder(run).records()[-1]["test"]["accuracy"]


def of_mean(run: Path) -> float:
    """Returns the test accuracy of the mean of the nodes' adapters."""
    nodes = sorted((run / "adapters").glob("client-*"))
    adapters = [load_adapter(node) for node in nodes]
    mean = tree.mean_factors([1 / len(nodes)] * len(nodes), adapters)
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(mean, Path(folder) / "mean", like=nodes[0])
        return score(replace(find(run, client=0), adapter=Path(folder) / "mean"))["accuracy"]


def summary(scores: Sequence[Scores]) -> list[str]:
    """Returns the number of seeds, both means, and the lowest and highest score of the averaged model."""
    nodes, averaged = zip(*scores, strict=True)
    values = [statistics.fmean(nodes), statistics.fmean(averaged), min(averaged), max(averaged)]
    return [str(len(scores)), *(f"{value:.3f}" for value in values)]


if __name__ == "__main__":
    main()
