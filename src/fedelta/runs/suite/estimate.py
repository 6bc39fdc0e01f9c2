"""Reckons what a suite would cost, without training: cells, bytes, memory and time; and what more seeds would separate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from fedelta.report.comparison import Comparison
from fedelta.report.outcome import outcomes
from fedelta.runs.machine import cores
from fedelta.runs.suite.cells import combinations
from fedelta.runs.suite.work import Kind, Work

if TYPE_CHECKING:  # it brings the model libraries, which a table of cells does without
    from fedelta.runs.experiment import LocalExperiment

OVERHEAD = 600 * 2**20
"""Bytes that a process takes before it holds a model: Python, torch and the model libraries."""

Cost: TypeAlias = Mapping[str, int]
"""The `bytes`, `steps` and `memory` of a run."""


@dataclass(frozen=True)
class Row:
    """Holds what one method in one setting costs.

    Attributes:
        setting, label: of it.
        refused: the claim's sentence where it cannot serve the setting; else empty.
        cells: that are compared, and of them how many are `done`.
        tuning: runs that choose its values.
        bytes: that one cell sends.
        steps: of the optimiser in one cell.
        memory: that a cell takes, in bytes, without activations; 0 where no cell is left and rows or model are not here.
    """

    setting: str
    label: str
    refused: str = ""
    cells: int = 0
    done: int = 0
    tuning: int = 0
    bytes: int = 0
    steps: int = 0
    memory: int = 0


def rows_of(work: Work, costs: Mapping[Kind, Cost]) -> list[Row]:
    """Returns the cost of each setting and method.

    Args:
        work: the suite's cells.
        costs: of one run of each setting and method that go together, from `preflight.rehearsed`; of finished ones as far as
            rows and model are here.
    """
    return [_row(work, setting, label, costs) for setting in work.plan.settings for label in _labels(work)]


def _labels(work: Work) -> list[str]:
    return [entry.label for entry in work.plan.file.entries]


def _row(work: Work, setting: str, label: str, costs: Mapping[Kind, Cost]) -> Row:
    plan = work.plan
    entry = next(entry for entry in plan.file.entries if entry.label == label)
    if (setting, label) in plan.refused:
        return Row(setting, label, plan.refused[setting, label])
    values = combinations(entry)
    chosen = work.choice(setting, entry).values
    tasks = [] if chosen is None else [plan.task(setting, entry, seed, chosen) for seed in plan.seeds_of(setting)]
    done = sum(work.line(task) is not None for task in tasks)
    tuned_here = entry.tune is not None and len(values) > 1
    if entry.tune is not None and entry.tune.setting == "first" and setting != next(iter(plan.settings)):
        tuned_here = False
    tuning = len(values) * len(entry.tune.seeds) if tuned_here and entry.tune is not None else 0
    cells, cost = len(plan.seeds_of(setting)), costs.get((setting, label))
    if cost is None:
        return Row(setting, label, "", cells, done, tuning)  # from a store, where rows and model need not be
    return Row(setting, label, "", cells, done, tuning, cost["bytes"], cost["steps"], cost["memory"])


def cost_built(experiment: LocalExperiment) -> Cost:
    """Returns bytes, steps and memory of a run, from the plan that `fedelta run --dry-run` shows."""
    from fedelta.runs.plan import plan

    found = plan(experiment)
    return {"bytes": int(found.bytes["total"]), "steps": found.steps, "memory": sum(found.memory.values()) + OVERHEAD}


def may_share(work: Work) -> bool:
    """Returns whether several cells that are left can run at a time: on a CPU of several cores; a device has room for one."""
    task = next((task for tasks in work.left().values() for task in tasks), None)
    if cores() == 1 or task is None:
        return False
    from fedelta.models.devices import pick_device

    return pick_device(task.config.device).type == "cpu"


def jobs_for(work: Work, costs: Mapping[Kind, Cost]) -> int:
    """Returns how many cells fit on this machine at a time: by its cores, and by its memory and that of one cell.

    Args:
        work: the suite's cells.
        costs: from `preflight.rehearsed`, the first of which counts.
    """
    if not costs or not may_share(work):
        return 1
    most, free, needed = cores(), free_memory(), next(iter(costs.values()))["memory"]
    return max(1, min(most, most if free is None else free // needed))


def free_memory() -> int | None:
    """Returns the bytes of memory that are free, or could be; None where the system does not say."""
    file = Path("/proc/meminfo")
    if not file.is_file():
        return None
    for line in file.read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return None


def separable(comparison: Comparison) -> dict[str, dict[str, int | None]]:
    """Returns by setting and method how many seeds would separate it from the best mean; None where 100 would not be enough.

    They are those that the report names. Settings with fewer than two whole seeds are missing.
    """
    found = {name: setting.seeds_to_separate() for name, setting in outcomes(comparison).items()}
    return {name: needed for name, needed in found.items() if needed}
