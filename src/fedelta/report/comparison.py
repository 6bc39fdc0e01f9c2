"""Holds what a suite of runs found: one cell for each setting, method and seed, and how each method was tuned.

A comparison is plain values and reads no folder. Tables, page, picture and terminal are functions of it alone, so that they say
the same whether it was made from the folders of a suite or from its store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from fedelta.report.study import Run

State: TypeAlias = Literal["done", "failed", "running", "missing", "not applicable"]
"""The state of a cell. `not applicable`: its method refuses the setting by a claim, so that there is nothing to run."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One method in one setting with one seed.

    Attributes:
        setting: its name; empty where a suite has one setting only.
        label: of the method.
        seed: which draws partition, schedule and start.
        state: whether it was run.
        run: records and config of a cell that is done; None for any other.
        reason: the claim's sentence where the cell is not applicable, the error's first line where it failed; else empty.
        digest: sha256 of the resolved config; empty before it is known.
        commit: of the code that ran it, with "+" where it had local changes; empty where that is not known.
    """

    setting: str
    label: str
    seed: int
    state: State
    run: Run | None = None
    reason: str = ""
    digest: str = ""
    commit: str = ""


@dataclass(frozen=True, eq=False)
class Tuned:
    """The value that a method got in a setting.

    Attributes:
        values: by dotted key, the chosen value; several keys where the grid has several.
        tried: by the values' text, the mean validation score and the mean validation loss over the tuning seeds.
        at_edge: the chosen value is the smallest or largest tried.
    """

    values: Mapping[str, Any]
    tried: Mapping[str, tuple[float, float]]
    at_edge: bool = False


@dataclass(frozen=True, eq=False)
class Comparison:
    """All cells of a suite, finished or not.

    Attributes:
        name: of the suite.
        methods: by label, the method's name, in the suite's order.
        settings: by name, the swept keys and values; one without a name where nothing is swept.
        seeds: of the cells.
        baseline: the label that differences are taken to.
        metric: that is compared.
        cells: in the order setting, method, seed.
        tuned: by setting and label; methods that were not tuned are missing.
        text: of the suite file as resolved, for provenance.
        untrained: by setting, the scores of the model before any training, by part and metric.
        named: whether the suite names the baseline: verdicts are then against it (Holm), else against the best mean.
        command: that made it, for provenance; empty where that is not known.
    """

    name: str
    methods: Mapping[str, str]
    settings: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]
    baseline: str
    metric: str
    cells: Sequence[Cell]
    tuned: Mapping[tuple[str, str], Tuned] = field(default_factory=dict[tuple[str, str], Tuned])
    text: str = ""
    untrained: Mapping[str, Mapping[str, Mapping[str, float]]] = field(
        default_factory=dict[str, Mapping[str, Mapping[str, float]]]
    )
    named: bool = False
    command: str = ""

    def cells_of(self, setting: str) -> list[Cell]:
        """Returns the cells of a setting, in the order method, seed."""
        return [cell for cell in self.cells if cell.setting == setting]

    def tuned_of(self, setting: str) -> dict[str, Tuned]:
        """Returns how methods were tuned in a setting, by label; a method that was not is missing."""
        return {label: tuned for (where, label), tuned in self.tuned.items() if where == setting}
