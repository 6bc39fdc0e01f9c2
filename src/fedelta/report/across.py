"""Compares methods over settings: normalised scores, their interquartile mean, performance profiles and mean ranks.

A setting counts once whatever its seeds: seeds are no data sets. Scores of several settings are put together only after each is
measured between two lines of its own. After Agarwal et al. 2021 (interquartile mean, stratified bootstrap, profiles) and
Demsar 2006 (ranks), with Wilcoxon's test and Holm's correction in place of Nemenyi's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import lcm
from statistics import fmean
from typing import TYPE_CHECKING

from fedelta.report.compared import Compared
from fedelta.report.statistics import LEVEL, Interval, Scores, complete, holm, scipy_stats

if TYPE_CHECKING:
    import numpy as np

FEWEST_SETTINGS, FEWEST_SEEDS = 3, 3
"""Settings, and seeds in each, from which scores of several settings are put together."""

FEWEST_FOR_RANKS = 5
"""Settings from which mean ranks are compared."""

RESAMPLES = 2000


@dataclass(frozen=True)
class Lines:
    """The two lines of a setting that scores are measured between: 0 is the lower, 1 the upper."""

    low: float
    high: float
    names: tuple[str, str]


@dataclass(frozen=True)
class Ranks:
    """Mean ranks over settings, 1 the best.

    Attributes:
        mean: by label.
        settings: over which the mean is.
        cliques: labels that Wilcoxon's tests with Holm's correction do not separate, in the order of their ranks.
    """

    mean: Mapping[str, float]
    settings: int
    cliques: Sequence[Sequence[str]]


def lines_of(c: Compared) -> Lines | None:
    """Returns the means of `local_only` and `centralised`, else the commonest label's share and 1; None without either."""
    ends = {g.first.method: mean for g in c.study.groups if g.style == "kr" and (mean := c.mean(g.key)) is not None}
    low, high = ends.get("local_only"), ends.get("centralised")
    if low is not None and high is not None and (low < high) != c.measure.lower_is_better:
        return Lines(low, high, ("local_only", "centralised"))
    majority = c.study.groups[0].first.facts.get("majority")
    if c.measure.metric == "accuracy" and majority and majority < 1:
        return Lines(float(majority), 1.0, ("commonest label", "all right"))
    return None


def normalised(found: Mapping[str, Compared]) -> dict[str, dict[str, Scores]]:
    """Returns by setting and label the scores by seed, measured between the setting's lines.

    Empty where a setting has no lines, or lines of another kind than the others, or where there are too few settings or seeds.
    Methods that lack a seed in a setting are left out of all: their mean would be over other settings.
    """
    lines = {name: lines_of(c) for name, c in found.items()}
    kinds = {each.names if each else None for each in lines.values()}
    if len(found) < FEWEST_SETTINGS or len(kinds) != 1 or None in kinds:
        return {}
    scores: dict[str, dict[str, Scores]] = {}
    for name, c in found.items():
        between = lines[name]
        if between is None or c.seeds < FEWEST_SEEDS:
            return {}
        whole = complete(c.table)
        scores[name] = {c.group(key).label: _measured(by_seed, between) for key, by_seed in whole.items()}
    everywhere = set.intersection(*(set(by_label) for by_label in scores.values()))
    return {name: {k: v for k, v in by_label.items() if k in everywhere} for name, by_label in scores.items()}


def _measured(scores: Scores, lines: Lines) -> dict[int, float]:
    return {seed: (x - lines.low) / (lines.high - lines.low) for seed, x in scores.items()}


def interquartile_means(scores: Mapping[str, Mapping[str, Scores]]) -> dict[str, Interval]:
    """Returns by label the interquartile mean over settings and seeds, with a 95 % bootstrap interval.

    Seeds are drawn anew within each setting (2,000 resamples, fixed seed), the same ones for all methods.
    """
    import numpy as np

    generator = np.random.default_rng(0)
    labels = list(next(iter(scores.values()), {}))
    tables = [np.array([list(by_label[label].values()) for label in labels]) for by_label in scores.values()]
    if not labels:
        return {}
    draws = np.empty((RESAMPLES, len(labels)))
    for i in range(RESAMPLES):
        draws[i] = _middle(table[:, generator.integers(table.shape[1], size=table.shape[1])] for table in tables)
    low, high = np.quantile(draws, [LEVEL / 2, 1 - LEVEL / 2], axis=0)
    means = _middle(tables)
    return {label: Interval(float(means[k]), float(low[k]), float(high[k])) for k, label in enumerate(labels)}


def _middle(tables: Iterable[np.ndarray]) -> np.ndarray:
    """Returns the mean of the middle half of tables of scores (labels, seeds), each of which counts alike: (labels,).

    It is the interquartile mean of all scores, each repeated so often that every table has as many. They are weighed in place
    of repeated: tables of 7, 11 and 13 seeds would have a thousand columns each.
    """
    import numpy as np

    tables = list(tables)
    seeds = [table.shape[1] for table in tables]
    repeated = lcm(*seeds) * len(tables)
    cut = (repeated // 4) / repeated  # whole scores are left out at either end
    values = np.concatenate(tables, axis=1)
    order = np.argsort(values, axis=1)
    weights = np.concatenate([np.full(count, 1 / (count * len(tables))) for count in seeds])[order]
    ends = weights.cumsum(axis=1)
    inside = np.clip(np.minimum(ends, 1 - cut) - np.maximum(ends - weights, cut), 0, None)
    return (inside * np.take_along_axis(values, order, axis=1)).sum(axis=1) / inside.sum(axis=1)


def profile(scores: Mapping[str, Mapping[str, Scores]], steps: int = 41) -> dict[str, list[tuple[float, float]]]:
    """Returns by label the share of runs above each of so many normalised scores, mean over settings: (score, share)."""
    labels = list(next(iter(scores.values()), {}))
    runs = {label: [list(by_label[label].values()) for by_label in scores.values()] for label in labels}
    everything = [x for of_settings in runs.values() for values in of_settings for x in values]
    if not everything:
        return {}
    low, high = min(0.0, *everything), max(1.0, *everything)
    grid = [low + (high - low) * k / (steps - 1) for k in range(steps)]
    return {label: [(tau, fmean(_above(tau, values) for values in each)) for tau in grid] for label, each in runs.items()}


def _above(tau: float, values: Sequence[float]) -> float:
    return sum(x > tau for x in values) / len(values)


def mean_ranks(found: Mapping[str, Compared]) -> Ranks | None:
    """Returns the mean ranks of the methods that have every seed in every setting; None below five settings or two methods."""
    tables = [{c.group(key).label: fmean(scores.values()) for key, scores in complete(c.table).items()} for c in found.values()]
    labels = [label for label in tables[0] if all(label in table for table in tables)] if tables else []
    if len(tables) < FEWEST_FOR_RANKS or len(labels) < 2:
        return None
    sign = 1 if next(iter(found.values())).measure.lower_is_better else -1
    places = [scipy_stats().rankdata([sign * table[label] for label in labels]) for table in tables]
    mean = {label: fmean(float(place[k]) for place in places) for k, label in enumerate(labels)}
    ordered = sorted(labels, key=lambda label: mean[label])
    return Ranks({label: mean[label] for label in ordered}, len(tables), _cliques(ordered, tables))


def _cliques(ordered: Sequence[str], tables: Sequence[Mapping[str, float]]) -> list[list[str]]:
    """Returns the longest stretches of neighbours by rank of which no pair is separated; none of a single method."""
    raw = {(a, b): _wilcoxon([table[a] - table[b] for table in tables]) for a, b in combinations(ordered, 2)}
    apart = {pair for pair, p in holm(raw).items() if p < LEVEL}
    found: list[list[str]] = []
    for start in range(len(ordered)):
        end = start + 1
        while end < len(ordered) and all((ordered[k], ordered[end]) not in apart for k in range(start, end)):
            end += 1
        stretch = list(ordered[start:end])
        if len(stretch) > 1 and not (found and set(stretch) <= set(found[-1])):
            found.append(stretch)
    return found


def _wilcoxon(differences: Sequence[float]) -> float:
    """Returns the two-sided p of Wilcoxon's signed ranks; 1 where all differences are zero."""
    if not any(differences):
        return 1.0
    return float(scipy_stats().wilcoxon(list(differences)).pvalue)
