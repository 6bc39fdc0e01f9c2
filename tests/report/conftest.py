"""Records as a run writes them."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from fedelta.report.comparison import Cell, Comparison, State
from fedelta.report.study import Run


@pytest.fixture
def record() -> Callable[..., dict[str, Any]]:
    """Makes the record of a round, with changes."""
    return a_record


def a_record(t: int, **changes: Any) -> dict[str, Any]:
    scores = {"accuracy": 0.5 + t / 10, "loss": 1.0 - t / 10}
    return {
        "t": t,
        "train_loss": 1.5 - t / 10,
        "test": scores,
        "validation": scores,
        "clients": {"accuracy": {"mean": 0.6, "worst": 0.25, "worst_client": 2, "spread": 0.1}},
        "bytes": {"down": 3 * 2**20, "up": 2**20},
        "cohort": [0, 1, 2],
        "dropped": {},
        "diagnostics": {"effective_rank": 3.0, "stable_rank": None},
        "seconds": {"round": 60.0, "evaluation": 30.0},
        **changes,
    }


@pytest.fixture
def a_study() -> Callable[..., list[Run]]:
    """Makes runs of several methods and seeds with all that a page shows; see `synthetic`."""
    return synthetic


def synthetic(methods: Sequence[str] = ("flexlora", "raflora"), seeds: int = 3, rounds: int = 4, **changes: Any) -> list[Run]:
    """Runs whose numbers are functions of method, seed and round.

    Args:
        methods: their names.
        seeds: of each.
        rounds: of each run.
        changes: of every record: a value, or a function of the record.
    """
    return [synthetic_run(method, i, seed, rounds, changes) for seed in range(seeds) for i, method in enumerate(methods)]


def synthetic_run(method: str, i: int, seed: int, rounds: int, changes: dict[str, Any]) -> Run:
    generator = random.Random(f"{method} {seed}")
    records = [_record(t, i, seed, generator) for t in range(rounds)]
    for record in records:
        record |= {key: value(record) if callable(value) else value for key, value in changes.items()}
    split = {"rows": 40, "test_rows": 10, "rank": 4, "labels": {"cats": 30, "dogs": 10}}
    lines = [{"t": r["t"], "clients": _clients(r, generator)} for r in records]
    config = {
        "name": f"{method}-{seed}",
        "seed": seed,
        "model": {"name": "/home/somebody/models/tiny"},
        "data": {"source": "rows.jsonl", "test": None},
        "partition": {"scheme": "iid", "clients": 4},
        "method": {"name": method},
        "training": {"learning_rate": 0.01},
        "federation": {"rounds": rounds},
    }
    facts = {"rows": {"train": 160, "test": 250}, "majority": 0.3, "platform": {"torch": "2", "threads": 1}}
    return Run(f"runs/{method}-{seed}", records, config, facts, {"clients": {str(k): split for k in range(4)}}, lines)


def _record(t: int, i: int, seed: int, generator: random.Random) -> dict[str, Any]:
    accuracy = min(0.95, 0.3 + 0.05 * t + 0.08 * i + 0.02 * seed + generator.gauss(0, 0.01))
    scores = {"accuracy": accuracy, "loss": 2 - accuracy}
    numbers = ("effective_rank", "increment_overlap_B_squared", "increment_angle_with_mean_B_average", "update_norm")
    numbers += ("increment_client_cosine", "increment_cancellation_ratio")
    layers = [f"encoder.layer.{k}.{part}" for k in range(3) for part in ("query", "value")]
    table = {"layer": layers, "effective_rank": [generator.random() + 1 for _ in layers]}
    return {
        "t": t,
        "cohort": [0, 1, 2, 3],
        "dropped": {},
        "train_loss": 1.5 - t / 10 - i / 20,
        "bytes": {"down": (3 + i) * 2**20, "up": 2**20},
        "seconds": {"round": 2.0, "evaluation": 1.0},
        "test": scores,
        "validation": scores,
        "clients": {"accuracy": {"mean": 0.6, "worst": 0.25, "worst_client": 2, "spread": 0.1}},
        "diagnostics": {name: generator.random() for name in numbers}
        | {
            "higher_rank_energy_ratio": 0.1 / (t + 1 + 5 * i),
            "energy_by_band": {"1-2": 0.9, "3-4": 0.1},
            "layers": table,
        },
    }


def _clients(record: dict[str, Any], generator: random.Random) -> dict[str, Any]:
    return {str(k): {"weight": 0.25, "loss": 1.0, "scores": {"accuracy": generator.random()}} for k in record["cohort"]}


@pytest.fixture
def a_comparison() -> Callable[..., Comparison]:
    """Makes a comparison of several methods, settings and seeds; see `compared_runs`."""
    return compared_runs


def compared_runs(
    methods: Sequence[str] = ("flexlora", "raflora"),
    settings: Sequence[str] = ("",),
    seeds: int = 3,
    rounds: int = 4,
    without: Sequence[tuple[str, str, State, str]] = (),
    **more: Any,
) -> Comparison:
    """A comparison whose numbers are functions of method, setting, seed and round.

    Args:
        methods: their names, which are the labels, too.
        settings: their names; the one without a name sweeps nothing.
        seeds: of each.
        rounds: of each run.
        without: (setting, method, state, reason) whose cells were not run.
        more: fields of the comparison.
    """
    states: dict[tuple[str, str], tuple[State, str]] = {(s, method): (state, reason) for s, method, state, reason in without}
    cells: list[Cell] = []
    for k, setting in enumerate(settings):
        for i, method in enumerate(methods):
            for seed in range(seeds):
                state, reason = states.get((setting, method), ("done", ""))
                run = synthetic_run(method, (i + k * i * i) % len(methods), seed, rounds, {}) if state == "done" else None
                digest = f"{setting}-{method}-{seed}" if run else ""
                cells.append(Cell(setting, method, seed, state, run, reason, digest, "abc1234" if run else ""))
    swept = {setting: {"partition.concentration": k + 1.0} if setting else {} for k, setting in enumerate(settings)}
    known: dict[str, Any] = {"name": "trial", "baseline": methods[0], "metric": "accuracy"}
    return Comparison(
        methods={method: method for method in methods}, settings=swept, seeds=range(seeds), cells=cells, **(known | more)
    )
