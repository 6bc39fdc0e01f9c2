"""Turns the cells of a comparison into studies, one for each setting, whose methods keep key and colour in all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from fedelta.report.compared import Compared, Conditions, compared, competitors
from fedelta.report.comparison import Cell, Comparison
from fedelta.report.grouping import colours, differing_of, plain_style
from fedelta.report.study import REFERENCES, Group, Run, Study
from fedelta.report.words import main_metric
from fedelta.tasks.metrics import LOWER_IS_BETTER


def outcomes(comparison: Comparison) -> dict[str, Compared]:
    """Returns each setting with its statistics, by name; settings in which no run has finished a round are missing.

    Raises:
        ImportError: for several seeds without scipy, naming the extra.
    """
    studies = studies_of(comparison)
    return {name: compared(study, _conditions(comparison, name)) for name, study in studies.items()}


def keys_of(comparison: Comparison) -> dict[str, str]:
    """Returns the key of each method, by label: the same in every setting."""
    return {label: f"m{i}" for i, label in enumerate(comparison.methods)}


def _conditions(comparison: Comparison, setting: str) -> Conditions:
    return Conditions(
        setting=setting,
        cells=comparison.cells_of(setting),
        tuned=comparison.tuned_of(setting),
        untrained=comparison.untrained.get(setting, {}),
        seeds=comparison.seeds,
        keys=keys_of(comparison),
    )


def studies_of(comparison: Comparison) -> dict[str, Study]:
    """Returns the study of each setting in which some run has finished a round."""
    by_setting = {name: _runs(comparison.cells_of(name)) for name in comparison.settings}
    by_setting = {name: by_label for name, by_label in by_setting.items() if by_label}
    records = [r for found in by_setting.values() for runs in found.values() for run in runs.values() for r in run.records]
    part = next((p for p in ("test", "validation") if any(r.get(p) for r in records)), None)
    metric = _metric(comparison, part, records)
    plain = {name: _study(comparison, found, part, metric, {}) for name, found in by_setting.items()}
    style = _colours(comparison, plain, metric)
    return {name: _study(comparison, found, part, metric, style) for name, found in by_setting.items()}


def _metric(comparison: Comparison, part: str | None, records: Sequence[Mapping[str, object]]) -> str | None:
    """Returns the suite's metric where it was measured, else what was."""
    measured = part is not None and any(comparison.metric in scores for r in records if (scores := _scores(r, part)))
    return comparison.metric if measured else main_metric(records)


def _scores(record: Mapping[str, object], part: str) -> Mapping[str, object]:
    found = record.get(part)
    return found if isinstance(found, Mapping) else {}


def _runs(cells: Sequence[Cell]) -> dict[str, dict[int, Run]]:
    """Returns the runs of some cells by label and seed, without those that have no round."""
    found: dict[str, dict[int, Run]] = {}
    for cell in cells:
        if cell.run is not None and cell.run.records:
            found.setdefault(cell.label, {})[cell.seed] = cell.run
    return {label: dict(sorted(runs.items())) for label, runs in found.items()}


def _study(
    comparison: Comparison,
    runs: Mapping[str, Mapping[int, Run]],
    part: str | None,
    metric: str | None,
    style: Mapping[str, str],
) -> Study:
    keys = keys_of(comparison)
    groups = [
        Group(keys[label], style.get(label, plain_style(method)), label, runs[label])
        for label, method in comparison.methods.items()
        if label in runs
    ]
    differing = differing_of([group.first for group in groups])
    baseline = next((group for group in groups if group.label == comparison.baseline), competitors(groups)[0])
    named = comparison.named and baseline.label == comparison.baseline
    return Study(groups, part, metric, differing, baseline, named)


def _colours(comparison: Comparison, studies: Mapping[str, Study], metric: str | None) -> dict[str, str]:
    """Gives colours by the mean over all settings in which a method has a score."""
    names = [label for label, method in comparison.methods.items() if method not in REFERENCES]
    better = -1 if metric in LOWER_IS_BETTER else 1
    scores: dict[str, list[float]] = {}
    for study in studies.values():
        for group in study.groups:
            scores.setdefault(group.label, []).extend(study.table[group.key].values())
    means = {label: better * fmean(values) for label, values in scores.items() if values}
    return colours(names, means, comparison.baseline)
