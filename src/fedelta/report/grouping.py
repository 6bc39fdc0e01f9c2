"""Groups runs by method, with seeds side by side: runs whose configs differ in nothing but the seed are one group."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from fedelta.report.study import OF_THE_MACHINE, REFERENCES, Group, Run, Study
from fedelta.report.words import main_metric
from fedelta.tasks.metrics import LOWER_IS_BETTER

LONGEST_LABEL = 60

COLOURS = 5
"""Methods that have a colour, a dash and a mark of their own."""


def study_of(runs: Sequence[Run], *, metric: str | None = None, baseline: str | None = None) -> Study:
    """Groups runs.

    Args:
        runs: at least one; those with the same settings and seed are groups of their own.
        metric: to show first; accuracy, or what is measured, by default.
        baseline: the label or method name that differences are taken to; the first group by default.

    Raises:
        ValueError: for no run, or a baseline that none of them has.
    """
    if not runs:
        raise ValueError("there is no run to report on: give the folder of at least one")
    bundles = _bundles(runs)
    differing = differing_of([bundle[0] for bundle in bundles])
    labels = _labels(bundles, differing)
    groups = [Group(f"m{i}", plain_style(bundle[0].method), labels[i], _by_seed(bundle)) for i, bundle in enumerate(bundles)]
    records = [record for run in runs for record in run.records]
    part = next((p for p in ("test", "validation") if any(r.get(p) for r in records)), None)
    shown = metric or main_metric(records)
    plain = Study(groups, part, shown, differing, _baseline(groups, baseline), baseline is not None)
    coloured = {group.key: group for group in _coloured(plain)}
    return replace(plain, groups=list(coloured.values()), baseline=coloured[plain.baseline.key])


def _by_seed(bundle: Sequence[Run]) -> dict[int, Run]:
    return {run.seed: run for run in sorted(bundle, key=lambda run: run.seed)}


def _baseline(groups: Sequence[Group], name: str | None) -> Group:
    if name is None:
        return next((group for group in groups if group.style != "kr"), groups[0])
    found = [group for group in groups if name in (group.label, group.first.method)]
    if not found:
        raise ValueError(f"no run of the baseline {name!r}: there are {', '.join(group.label for group in groups)}")
    return found[0]


def _bundles(runs: Sequence[Run]) -> list[list[Run]]:
    """Returns runs by what they do; a second run of the same seed begins another bundle."""
    found: dict[str, list[list[Run]]] = {}
    for run in runs:
        settings = {k: v for k, v in run.settings.items() if k not in OF_THE_MACHINE and k != "federation.rounds"}
        bundles = found.setdefault(json.dumps(settings, sort_keys=True, default=str), [[]])
        room = next((b for b in bundles if all(other.seed != run.seed for other in b)), None)
        if room is None:
            bundles.append([run])
        else:
            room.append(run)
    order = {id(run): i for i, run in enumerate(runs)}
    return sorted((b for bundles in found.values() for b in bundles), key=lambda bundle: order[id(bundle[0])])


def differing_of(firsts: Sequence[Run]) -> dict[str, list[Any]]:
    """Returns the settings that differ between groups, without the method's own name."""
    keys = sorted({key for run in firsts for key in run.settings} - OF_THE_MACHINE - {"method.name"})
    columns = {key: [run.settings.get(key) for run in firsts] for key in keys}
    return {key: values for key, values in columns.items() if any(value != values[0] for value in values)}


def _labels(bundles: Sequence[Sequence[Run]], differing: Mapping[str, Sequence[Any]]) -> list[str]:
    """Returns the method's name, with the settings that tell apart those of one name, else with the run's name."""
    methods = [bundle[0].method for bundle in bundles]
    labels: list[str] = []
    for i, method in enumerate(methods):
        namesakes = [j for j, other in enumerate(methods) if other == method]
        apart = [f"{k.split('.')[-1]} {v[i]}" for k, v in differing.items() if any(v[j] != v[i] for j in namesakes)]
        labels.append(", ".join([method, *apart]) if len(namesakes) > 1 else method)
    return [label if labels.count(label) == 1 else f"{label} ({bundles[i][0].name})" for i, label in enumerate(_cut(labels))]


def _cut(labels: Sequence[str]) -> list[str]:
    return [label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…" for label in labels]


def plain_style(method: str) -> str:
    """Returns the class of a line to compare with, or grey."""
    return "kr" if method in REFERENCES else "kg"


def _coloured(study: Study) -> list[Group]:
    names = [group.key for group in study.groups if group.style != "kr"]
    better = -1 if study.metric in LOWER_IS_BETTER else 1
    means = {key: better * fmean(study.table[key].values()) for key in names if study.table[key]}
    style = colours(names, means, study.baseline.key)
    return [replace(group, style=style.get(group.key, group.style)) for group in study.groups]


def colours(names: Sequence[str], means: Mapping[str, float], baseline: str) -> dict[str, str]:
    """Gives five methods a colour, in their order: of more than five the baseline and the four best.

    Args:
        names: of the methods, without lines to compare with.
        means: by name, the larger the better; a method without a score is missing.
        baseline: its name.

    Returns:
        the class of colour by name; methods without one are missing.
    """
    if len(names) > COLOURS:
        ranked = sorted((name for name in means if name != baseline), key=lambda name: -means[name])
        names = [name for name in names if name in (baseline, *ranked[: COLOURS - 1])]
    return {name: f"k{i}" for i, name in enumerate(names)}
