"""Writes all numbers of a comparison as tidy rows: one value a row, with the cell that it belongs to beside it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from fedelta.report import readings, statistics
from fedelta.report.compared import Compared
from fedelta.report.comparison import Cell, Comparison
from fedelta.report.outcome import outcomes
from fedelta.report.study import Run

Value: TypeAlias = str | int | float | bool | None
Row: TypeAlias = dict[str, Value]

BEFORE = ("suite", "setting")
AFTER = (
    "method",
    "label",
    "seed",
    "split",
    "metric",
    "statistic",
    "at",
    "round",
    "value",
    "rows",
    "learning_rate",
    "tuned",
    "rows_seen",
    "steps",
    "bytes_up",
    "bytes_down",
    "seconds_train",
    "seconds_evaluation",
    "rounds",
    "state",
    "config_sha256",
    "fedelta",
    "commit",
)
"""Columns of results.csv before and after those of the swept keys."""

NOT_NUMBERS = frozenset({"layers", "cohort", "dropped"})
"""Keys of a record that rounds.csv leaves out: tables by layer, and names of clients."""


def tidy_rows(comparison: Comparison) -> list[Row]:
    """Returns one row for each value, and one without a value for each cell that has none.

    `split` is test, validation, clients or nodes; `statistic` is value for the first two, mean, worst or spread for the others.
    Rows without a seed are of all seeds together: difference, low and high (by t, and from ten seeds on by bootstrap), p and
    p_adjusted against the baseline, and p_best against the best mean (studentised range).
    """
    found = outcomes(comparison)
    rows: list[Row] = []
    for setting in comparison.settings:
        c = found.get(setting)
        for cell in comparison.cells_of(setting):
            rows += _of_cell(comparison, cell, c)
        rows += _of_all_seeds(comparison, setting, c) if c is not None else []
    return rows


def columns(comparison: Comparison) -> list[str]:
    """Returns the columns of results.csv."""
    swept = dict.fromkeys(key for values in comparison.settings.values() for key in values)
    return [*BEFORE, *swept, *AFTER]


def results_csv(comparison: Comparison) -> str:
    """Returns results.csv: the tidy rows, numbers in full."""
    return _csv(columns(comparison), tidy_rows(comparison))


def rounds_csv(comparison: Comparison) -> str:
    """Returns rounds.csv: every number of every record, with its key; `round` is from 1."""
    return _csv(["setting", "method", "label", "seed", "round", "key", "value"], _numbers(comparison))


def _csv(head: Sequence[str], rows: Iterable[Row]) -> str:
    written = io.StringIO()
    writer = csv.DictWriter(written, head, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _text(value) for key, value in row.items()} for row in rows)
    return written.getvalue()


def _text(value: Value) -> str:
    """Writes a value such that reading it gives the same number again."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


# --- rows of a cell --------------------------------------------------------------------------------------------------


def _of_cell(comparison: Comparison, cell: Cell, c: Compared | None) -> Iterator[Row]:
    fixed = _fixed(comparison, cell)
    if cell.run is None or c is None:
        yield fixed
        return
    rows = [fixed | values for values in _values(cell.run, c)]
    yield from rows or [fixed]


def _fixed(comparison: Comparison, cell: Cell) -> Row:
    """Returns what all rows of a cell share."""
    run = cell.run
    row: Row = {
        "suite": comparison.name,
        "setting": cell.setting,
        **comparison.settings.get(cell.setting, {}),
        "method": comparison.methods.get(cell.label, cell.label),
        "label": cell.label,
        "seed": cell.seed,
        "tuned": (cell.setting, cell.label) in comparison.tuned,
        "state": "diverged" if run is not None and run.diverged else cell.state,
        "config_sha256": cell.digest,
        "commit": cell.commit,
    }
    return row if run is None else row | _costs(run)


def _costs(run: Run) -> Row:
    platform: Mapping[str, Any] = run.facts.get("platform") or {}
    trained = readings.seconds_of(run, "train")
    return {
        "learning_rate": (run.config.get("training") or {}).get("learning_rate"),
        "rows_seen": readings.rows_seen(run),
        "steps": readings.steps(run),
        "bytes_up": readings.total(run, "up"),
        "bytes_down": readings.total(run, "down"),
        "seconds_train": readings.seconds(run) if trained is None else trained,
        "seconds_evaluation": readings.seconds_of(run, "evaluation"),
        "rounds": len(run.records),
        "fedelta": platform.get("fedelta"),
    }


def _values(run: Run, c: Compared) -> Iterator[Row]:
    """Yields the scores of a run at the compared round and at the one that was best on validation."""
    for at, t in (("last", c.study.last), ("best", run.best_round(c.measure.metric))):
        if t is None:
            continue
        record: Mapping[str, Any] = next((r for r in run.records if r["t"] == t), {})  # none where it diverged before
        for split in ("test", "validation"):
            for metric, value in _scores(run, c, split, at, record).items():
                rows = (run.facts.get("rows") or {}).get(split)
                yield _row(split, metric, "value", at, t, value) | {"rows": rows}
        yield from _spreads(record, at, t)


def _scores(run: Run, c: Compared, split: str, at: str, record: Mapping[str, Any]) -> dict[str, float]:
    """Returns the scores of a round; the one that is compared is that of the table, also of a run that diverged."""
    found = {k: float(x) for k, x in (record.get(split) or {}).items() if readings.is_number(x)}
    compared = c.study.score(run) if at == "last" and split == c.study.part else None
    return found if compared is None else found | {c.measure.metric: compared}


def _spreads(record: Mapping[str, Any], at: str, t: int) -> Iterator[Row]:
    nodes: Mapping[str, Any] = (record.get("nodes") or {}).get("test") or {}
    for split, spreads in (("clients", record.get("clients") or {}), ("nodes", nodes)):
        for metric, spread in spreads.items():
            for statistic in ("mean", "worst", "spread"):
                if readings.is_number(spread.get(statistic)):
                    yield _row(split, metric, statistic, at, t, float(spread[statistic]))


def _row(split: str, metric: str, statistic: str, at: str, t: int, value: float) -> Row:
    return {"split": split, "metric": metric, "statistic": statistic, "at": at, "round": t + 1, "value": value}


# --- rows of all seeds -----------------------------------------------------------------------------------------------


def _of_all_seeds(comparison: Comparison, setting: str, c: Compared) -> Iterator[Row]:
    if c.study.last is None:
        return
    against_best = statistics.p_against_best(c.table, lower_is_better=c.measure.lower_is_better) if c.marks else {}
    for group in c.study.groups:
        difference = c.differences.get(group.key)
        interval, resampled = (difference.interval, difference.bootstrap) if difference else (None, None)
        found = {
            "difference": difference.mean if difference else None,
            "low": interval.low if interval else None,
            "high": interval.high if interval else None,
            "bootstrap_low": resampled.low if resampled else None,
            "bootstrap_high": resampled.high if resampled else None,
            "p": difference.p if difference else None,
            "p_adjusted": difference.adjusted if difference else None,
            "p_best": against_best.get(group.key),
        }
        for statistic, value in found.items():
            if value is not None:
                fixed: Row = {"suite": comparison.name, "setting": setting, **comparison.settings[setting]}
                fixed |= {"method": comparison.methods[group.label], "label": group.label}
                yield fixed | _row(str(c.study.part), c.measure.metric, statistic, "last", c.study.last, value)


# --- every number of every round -------------------------------------------------------------------------------------


def _numbers(comparison: Comparison) -> Iterator[Row]:
    for cell in comparison.cells:
        method = comparison.methods.get(cell.label, cell.label)
        fixed: Row = {"setting": cell.setting, "method": method, "label": cell.label, "seed": cell.seed}
        for record in cell.run.records if cell.run is not None else ():
            for key, value in _flat(record):
                yield fixed | {"round": record["t"] + 1, "key": key, "value": value}


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    for key, value in tree.items():
        if key in NOT_NUMBERS or (not above and key == "t"):
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        elif readings.is_number(value):
            yield f"{above}{key}", value
