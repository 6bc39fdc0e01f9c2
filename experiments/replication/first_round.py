"""Takes the first round apart: what the balanced client scores with its own or the mean head, its own or the server's adapter.

python experiments/replication/first_round.py        # five seeds; adds to first_round.csv what it lacks
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from fedelta import Adapter, Client, ClientUpdate, get_method
from fedelta.method import State
from fedelta.runs.config import RunConfig, read_config
from fedelta.runs.config.checks import check
from fedelta.runs.experiment import build
from fedelta.runs.suite.cells import with_seed
from fedelta.runs.suite.schema import read_suite

HERE = Path(__file__).resolve().parent
SEEDS, STEPS, COHORT, GOOD = range(5), (25, 100), 5, 0
RESULTS = HERE / "first_round.csv"
RULES: Mapping[str, str] = {"zero padding": "zeropad", "replication": "rbla"}
COLUMNS: Sequence[str] = ("seed", "steps", "adapter", "head", "accuracy")


def main() -> None:
    done = {(int(row["seed"]), int(row["steps"])) for row in known()}
    with RESULTS.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not done:
            writer.writeheader()
        for seed, steps in product(SEEDS, STEPS):
            if (seed, steps) not in done:
                writer.writerows({"seed": seed, "steps": steps, **row} for row in rows(seed, steps))
                file.flush()


def known() -> list[dict[str, str]]:
    """Returns the rows that an earlier call wrote."""
    if not RESULTS.is_file():
        return []
    with RESULTS.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rows(seed: int, steps: int) -> Iterator[dict[str, object]]:
    """Yields the accuracy of the balanced client after one round, in each of the ways to put its model together."""
    config = config_of(seed, steps)
    experiment = build(config, check(config))
    others = np.random.default_rng(seed).choice(np.arange(2, 20), COHORT - 1, replace=False)
    cohort = [experiment.clients[i] for i in (GOOD, *sorted(others.tolist()))]
    start = get_method("zeropad").init(experiment.template, [client.peer for client in cohort], seed=seed)
    own = [client.train(0, get_method("zeropad").broadcast(0, start, client.peer)["adapter"]).adapter for client in cohort]
    adapters = {"own": own[0], **{name: received(rule, start, cohort, own) for name, rule in RULES.items()}}
    heads = {"own": own[0].dense, "mean": adapters["zero padding"].dense}
    for (adapter, whose), (head, dense) in product(adapters.items(), heads.items()):
        model = {"adapter": Adapter(whose.layers, dense)}
        score = experiment.evaluator.score(model, experiment.test)["accuracy"]
        yield {"adapter": adapter, "head": head, "accuracy": round(score, 4)}


def received(rule: str, start: State, cohort: Sequence[Client], own: Sequence[Adapter]) -> Adapter:
    """Returns what the first of a cohort gets back from a server that pads by a rule; all count alike, having as many rows."""
    method = get_method(rule)
    sent = [ClientUpdate(c.peer, 1 / len(cohort), {"adapter": adapter}) for c, adapter in zip(cohort, own, strict=True)]
    return method.broadcast(1, method.aggregate(0, start, sent), cohort[0].peer)["adapter"]


def config_of(seed: int, steps: int) -> RunConfig:
    """Returns the suite's config of zero padding where the balanced clients have the high rank."""
    suite = read_suite(HERE / "small.yaml")
    good = suite.settings()["good"]
    return with_seed(read_config(suite.base, {**good, "method": "zeropad", "training.local_steps": steps}), seed)


if __name__ == "__main__":
    main()
