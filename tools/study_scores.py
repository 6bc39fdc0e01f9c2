"""Scores out of a study's results.csv, as its tables and its claims take them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from fedelta.report.statistics import t_interval

SHARES = ("accuracy", "macro_f1", "mcc")
"""Metrics that are shown in points, which are hundredths."""

Row = Mapping[str, str]


@dataclass(frozen=True)
class Scores:
    """The scores of one method in one setting.

    Attributes:
        last: by seed, after the last round.
        gain: what the mean gained since the evaluation before, over the seeds that have both; 0.0 where none has.
        rows: those of the last round.
    """

    last: Mapping[str, float]
    gain: float
    rows: Sequence[Row]

    @property
    def mean(self) -> float | None:
        """Returns the mean over seeds; None without one."""
        return fmean(self.last.values()) if self.last else None

    @property
    def are_shares(self) -> bool:
        """Returns True for scores in points, which are better large; others, such as perplexities, are better small."""
        return bool(self.rows) and self.rows[0]["metric"] in SHARES


def rows_in(path: Path) -> list[Row]:
    """Returns the rows of a CSV file; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def scores_of(rows: Sequence[Row], suite: str, setting: str, label: str, at: str = "last") -> Scores:
    """Returns the scores of a method after the last round, or after the round `at`."""
    own = [r for r in rows if (r["suite"], r["setting"], r["label"]) == (suite, setting, label) and r["value"]]
    last = [r for r in own if (r["at"] == "last" if at == "last" else r["round"] == at)]
    return Scores({r["seed"]: value_of(r) for r in last}, _gain(own), last)


def _gain(own: Sequence[Row]) -> float:
    """Returns the mean gain between the last two evaluations; a run that diverged has no score before its last one."""
    rounds = sorted({int(r["round"]) for r in own})
    if len(rounds) < 2:
        return 0.0
    before = {r["seed"]: value_of(r) for r in own if int(r["round"]) == rounds[-2]}
    gains = [value_of(r) - before[r["seed"]] for r in own if r["at"] == "last" and r["seed"] in before]
    return fmean(gains) if gains else 0.0


def value_of(row: Row) -> float:
    """Returns a score, in points where it is a share."""
    return float(row["value"]) * (100 if row["metric"] in SHARES else 1)


def paired(own: Scores, other: Scores) -> list[float]:
    """Returns the differences of the seeds that both have."""
    return [own.last[seed] - other.last[seed] for seed in own.last if seed in other.last]


def difference(own: Scores, other: Scores) -> str:
    """Returns the mean difference with its interval; the difference itself for one seed."""
    found = paired(own, other)
    interval = t_interval(found)
    if interval is None:
        return f"{found[0]:+.1f}" if found else ""
    return f"{interval.mean:+.1f} ({interval.low:+.1f} to {interval.high:+.1f})"
