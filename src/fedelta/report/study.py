"""Holds runs by method with seeds side by side, and reads from their records what a comparison needs; reads no folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

from fedelta.report.words import Record
from fedelta.tasks.metrics import is_better

Plain = Mapping[str, Any]

OF_THE_RUN = frozenset({"seed", "seed.data", "seed.partition", "seed.schedule", "seed.start", "name", "output"})
"""Keys that say which run it is, and not what it does."""

OF_THE_MACHINE = frozenset(
    {
        "device",
        "report_to",
        "model.gemm",
        "model.digest",
        "model.compact",
        "federation.engine",
        "federation.token_budget",
        "federation.spool",
    }
)
"""Keys that say how it is computed; seeds of one method may differ in them."""

COMMON = ("model.name", "task", "data", "partition")
"""What must be the same for scores to be compared: a run with another model, or other rows, answers another question."""

REFERENCES = frozenset({"local_only", "centralised"})
"""Methods that are lines to compare with, not competitors."""

LARGEST = 1e15
"""From here on a number counts as none: a loss that went there has diverged, and no axis could show it."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run.

    Attributes:
        name: for a reader, such as its folder's name.
        records: of the rounds that are done.
        config: as resolved, plain values.
        facts: of run.json: rows, majority, platform; empty for none.
        split: of split.json; None for none.
        clients: lines of clients.jsonl; None where there is no such file.
    """

    name: str
    records: Sequence[Record]
    config: Plain
    facts: Plain = field(default_factory=dict[str, Any])
    split: Plain | None = None
    clients: Sequence[Plain] | None = None

    @property
    def seed(self) -> int:
        """Returns the seed that tells runs apart: of all draws, or the one other than the data's; `schedule` of several."""
        given: object = self.config.get("seed", 0)
        if not isinstance(given, Mapping):
            return int(self.config.get("seed", 0))
        seeds = cast("Mapping[str, int]", given)
        other = {seeds.get(kind, 0) for kind in ("partition", "schedule", "start")} - {seeds.get("data", 0)}
        return other.pop() if len(other) == 1 else seeds.get("schedule", 0)

    def seed_of(self, drawn: str) -> int:
        """Returns the seed of one of the things that are drawn: data, partition, schedule or start."""
        seed: object = self.config.get("seed", 0)
        return int(cast("Mapping[str, int]", seed).get(drawn, 0)) if isinstance(seed, Mapping) else self.seed

    def lines(self, part: str, metric: str) -> dict[str, float]:
        """Returns the known scores of lines to compare with, by name; empty where none came with the config."""
        known: Plain = self.facts.get("lines", {}).get("scores", {})
        return {name: scores[part][metric] for name, scores in known.items() if metric in scores.get(part, {})}

    @property
    def method(self) -> str:
        """Returns the method's name."""
        return str(self.config.get("method", {}).get("name", "method"))

    @property
    def rounds(self) -> int:
        """Returns the rounds of the whole run, of which some may still be to come."""
        return int(self.config.get("federation", {}).get("rounds", len(self.records)))

    @property
    def finished(self) -> bool:
        """Returns whether no round is to come: the last is done, or one could not be, since the run diverged."""
        return self.whole or "diverged" in self.facts

    @property
    def whole(self) -> bool:
        """Returns whether every round is done, so that its costs are those of a run."""
        return bool(self.records) and self.records[-1]["t"] + 1 >= self.rounds

    @property
    def diverged(self) -> bool:
        """Returns whether the last loss is no number where there was one before, or a last score is none.

        So has a run that could not go on because no client's update was finite, as its facts say.
        """
        if "diverged" in self.facts:
            return True
        losses = [r["train_loss"] for r in self.records]
        lost = bool(losses) and _is_lost(losses[-1]) and not all(map(_is_lost, losses))
        scores = [r[part] for r in self.records for part in ("test", "validation") if r.get(part)]
        return lost or (bool(scores) and any(map(_is_lost, scores[-1].values())))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Returns the config by dotted key, without what only says which run it is."""
        return {key: value for key, value in _flat(self.config).items() if key not in OF_THE_RUN}

    @property
    def diverged_at_once(self) -> bool:
        """Returns whether not one round was finite, for which the method itself may be to blame."""
        return self.diverged and len(self.records) <= 1

    def scores(self, part: str, metric: str) -> dict[int, float]:
        """Returns a metric by round, for the rounds that have it."""
        found = {r["t"]: (r.get(part) or {}).get(metric) for r in self.records}
        return {t: float(value) for t, value in found.items() if value is not None and abs(value) < LARGEST}

    def best_round(self, metric: str) -> int | None:
        """Returns the first round that is best on validation; None without validation."""
        best: tuple[int, float] | None = None
        for t, value in self.scores("validation", metric).items():
            if best is None or is_better(value, best[1], metric):
                best = (t, value)
        return None if best is None else best[0]


@dataclass(frozen=True, eq=False)
class Group:
    """The runs of one method.

    Attributes:
        key: for the page's own use: `m0`, `m1`, ...
        style: class of colour, dash and marker.
        label: for a reader, with the settings in which methods of one name differ.
        runs: by seed.
    """

    key: str
    style: str
    label: str
    runs: Mapping[int, Run]

    @property
    def first(self) -> Run:
        """Returns the run of the lowest seed."""
        return self.runs[min(self.runs)]


@dataclass(frozen=True, eq=False)
class Study:
    """All runs of a page.

    Attributes:
        groups: one for each method, in the order of the runs.
        part: where scores are taken: `test`, or `validation` where no run has test rows; None where nothing was evaluated.
        metric: that is shown first; None where nothing was evaluated.
        differing: keys in which groups differ, each with its values in the order of the groups.
        baseline: the group that differences are taken to.
        named: whether somebody named the baseline.
    """

    groups: Sequence[Group]
    part: str | None
    metric: str | None
    differing: Mapping[str, Sequence[Any]]
    baseline: Group
    named: bool = False

    @property
    def runs(self) -> list[Run]:
        """Returns all runs."""
        return [run for group in self.groups for run in group.runs.values()]

    @property
    def seeds(self) -> list[int]:
        """Returns every seed that some method has."""
        return sorted({seed for group in self.groups for seed in group.runs})

    @property
    def one_run(self) -> bool:
        """Returns whether there is nothing to compare."""
        return len(self.runs) == 1

    @property
    def unlike(self) -> list[str]:
        """Returns the keys that make scores of these groups incomparable, such as another model or other rows."""
        return [key for key in self.differing if key.startswith(tuple(f"{c}." for c in COMMON)) or key in COMMON]

    @cached_property
    def last(self) -> int | None:
        """Returns the round at which methods are compared, from 0: the last that was evaluated in every run that counts."""
        if self.part is None or self.metric is None:
            return None
        ends = [set(run.scores(self.part, self.metric)) for run in self._counted()]
        common = set.intersection(*ends) if ends else set[int]()
        return max(common) if common else None

    def _counted(self) -> list[Run]:
        """Returns the runs that are finished, or all where some method has no finished one; diverged ones set no end."""
        whole = all(any(run.finished for run in group.runs.values()) for group in self.groups)
        return [run for run in self.runs if not run.diverged and (run.finished or not whole)]

    @cached_property
    def table(self) -> dict[str, dict[int, float]]:
        """Returns the compared score of each method by seed; a run without one is missing.

        A run that diverged counts as a constant answer would, if that is known: leaving it out would favour its method.
        """
        return {
            group.key: {s: x for s, run in group.runs.items() if (x := self.score(run)) is not None} for group in self.groups
        }

    def score(self, run: Run) -> float | None:
        """Returns the score by which a run is compared."""
        if self.part is None or self.metric is None or self.last is None:
            return None
        if run.diverged:
            majority = run.facts.get("majority")
            return majority if self.metric == "accuracy" else None
        return run.scores(self.part, self.metric).get(self.last)

    def missing(self, group: Group) -> list[int]:
        """Returns the seeds of a method that have no score: not run, not finished, or diverged without a score."""
        return [seed for seed in self.seeds if seed not in self.table[group.key]]


def _is_lost(value: float | None) -> bool:
    return value is None or abs(value) >= LARGEST


def _flat(tree: Plain, above: str = "") -> dict[str, Any]:
    """Returns the values of nested mappings by dotted key."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{above}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found
