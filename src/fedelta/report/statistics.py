"""Compares methods over seeds: means, paired differences, verdicts, and the seeds that a verdict would need.

The unit is the run. Runs of one seed share data, partition, schedule and start, so that methods are compared within a seed. A
table of scores is a mapping from a method's name to its scores by seed; one table is one setting.

scipy is the extra `compare`; it is imported only where an interval or a verdict is asked for. Every number is a function of the
scores: the same table gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean, median, stdev
from types import ModuleType
from typing import Literal, TypeAlias, TypeVar

LEVEL = 0.05
"""The share of tables of equal methods in which some method may be marked as different."""

FEWEST = 3
"""Seeds that a verdict needs: of two, one difference decides."""

BOOTSTRAP_FROM = 10
"""Seeds from which a bootstrap interval is given: at 3 a percentile bootstrap that claims 95 % covers 75 % (normal data)."""

ROUNDING = 1e-9
"""What a mean of scores may be off by, for want of a binary fraction that is exact: far below any change that counts."""

MOST_SEEDS = 100
"""Where the search for the seeds that a verdict would need ends."""

COMPARE_EXTRA = "pip install 'fedelta[compare]'"

Key = TypeVar("Key")

Scores: TypeAlias = Mapping[int, float]
"""A method's scores by seed."""

Mark: TypeAlias = Literal["baseline", "best mean", "ahead", "behind", "not separated", ""]
"""The verdict on a method; empty where the seeds allow none."""


@dataclass(frozen=True)
class Interval:
    """A mean with its bounds."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Returns half the distance between the bounds."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Difference:
    """The difference of a method to the baseline, paired by seed.

    Attributes:
        by_seed: method minus baseline, for the seeds that both have.
        mean: of them; None without a common seed.
        interval: 95 % t-interval of the mean; None below two seeds.
        bootstrap: 95 % BCa bootstrap interval, from ten seeds on.
        p: of the paired t-test; None below three seeds.
        adjusted: `p` after Holm over all methods that are compared with the baseline.
    """

    by_seed: Scores
    mean: float | None
    interval: Interval | None
    bootstrap: Interval | None = None
    p: float | None = None
    adjusted: float | None = None


def spread(scores: Scores) -> float | None:
    """Returns the sample standard deviation over seeds; None below two."""
    return stdev(scores.values()) if len(scores) > 1 else None


def t_interval(values: Sequence[float]) -> Interval | None:
    """Returns the 95 % t-interval of a mean, with n - 1 degrees of freedom; None below two values."""
    if len(values) < 2:
        return None
    middle = fmean(values)
    half = float(scipy_stats().t.ppf(1 - LEVEL / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return Interval(middle, middle - half, middle + half)


def bootstrap_interval(values: Sequence[float]) -> Interval | None:
    """Returns the 95 % BCa bootstrap interval of a mean (10,000 resamples, fixed seed); None below ten, or without spread."""
    # Differences of scores that are equal but for rounding have no spread: the correction would divide by zero.
    if len(values) < BOOTSTRAP_FROM or math.isclose(min(values), max(values), rel_tol=1e-9, abs_tol=1e-12):
        return None
    import numpy as np

    found = scipy_stats().bootstrap(
        (list(values),), np.mean, n_resamples=10_000, confidence_level=1 - LEVEL, method="BCa", rng=np.random.default_rng(0)
    )
    return Interval(fmean(values), float(found.confidence_interval.low), float(found.confidence_interval.high))


def against_baseline(table: Mapping[str, Scores], baseline: str) -> dict[str, Difference]:
    """Returns the difference of every other method to the baseline, paired by seed, with Holm's correction over them."""
    found = {name: _difference(scores, table[baseline]) for name, scores in table.items() if name != baseline}
    adjusted = holm({name: difference.p for name, difference in found.items() if difference.p is not None})
    return {name: Difference(d.by_seed, d.mean, d.interval, d.bootstrap, d.p, adjusted.get(name)) for name, d in found.items()}


def _difference(scores: Scores, base: Scores) -> Difference:
    by_seed = {seed: scores[seed] - base[seed] for seed in sorted(scores.keys() & base.keys())}
    values = list(by_seed.values())
    if not values:
        return Difference(by_seed, None, None)
    p = _paired_p(values) if len(values) >= FEWEST else None
    return Difference(by_seed, fmean(values), t_interval(values), bootstrap_interval(values), p)


def _paired_p(differences: Sequence[float]) -> float:
    """Returns the two-sided p of a mean of zero; differences without any spread are certain either way."""
    sd = stdev(differences)
    if sd == 0:
        return 1.0 if differences[0] == 0 else 0.0
    t = fmean(differences) / (sd / math.sqrt(len(differences)))
    return float(2 * scipy_stats().t.sf(abs(t), len(differences) - 1))


def holm(raw: Mapping[Key, float]) -> dict[Key, float]:
    """Returns p-values adjusted that hold together (Holm 1979): the i-th smallest of m, from 0, counts m - i times."""
    adjusted: dict[Key, float] = {}
    so_far = 0.0
    for rank, name in enumerate(sorted(raw, key=lambda name: raw[name])):
        so_far = max(so_far, min(1.0, (len(raw) - rank) * raw[name]))
        adjusted[name] = so_far
    return adjusted


def marks_against_baseline(table: Mapping[str, Scores], baseline: str, *, lower_is_better: bool = False) -> dict[str, Mark]:
    """Returns the verdict on each method against a baseline that was named before the runs: Holm's tests at 5 % together."""
    marks: dict[str, Mark] = {baseline: "baseline"}
    for name, difference in against_baseline(table, baseline).items():
        if difference.adjusted is None or difference.mean is None:
            marks[name] = ""
        elif difference.adjusted >= LEVEL:
            marks[name] = "not separated"
        else:
            marks[name] = "ahead" if (difference.mean > 0) != lower_is_better else "behind"
    return marks


def marks_against_best(table: Mapping[str, Scores], *, lower_is_better: bool = False) -> dict[str, Mark]:
    """Returns the verdict on each method against the best mean.

    Which method is best is read off the same scores, so that a t-test against it would find a difference between equal methods
    too often: some row in 10 % of tables of 8 methods and 5 seeds. The studentised range of the randomised block design, whose
    blocks are the seeds, is the distribution of the largest difference of all: 5 % for the whole table (Tukey).

    Methods that lack a seed which another has get no mark: the design needs whole blocks.
    """
    marks: dict[str, Mark] = dict.fromkeys(table, "")
    whole = complete(table)
    if not whole:
        return marks
    best = best_of(whole, lower_is_better=lower_is_better)
    marks[best] = "best mean"
    seeds = len(whole[best])
    if len(whole) < 2 or seeds < FEWEST:
        return marks
    reach = critical_range(len(whole), seeds) * math.sqrt(residual_variance(whole) / seeds)
    for name in whole.keys() - {best}:
        gap = abs(fmean(whole[best].values()) - fmean(whole[name].values()))
        marks[name] = "behind" if gap > reach else "not separated"
    return marks


def p_against_best(table: Mapping[str, Scores], *, lower_is_better: bool = False) -> dict[str, float]:
    """Returns for each method behind the best mean the share of tables of equal methods with so large a range of means.

    It is the p of `marks_against_best`: below 5 % where that says `behind`. Empty where the seeds allow no such mark.
    """
    whole = complete(table)
    if len(whole) < 2 or len(next(iter(whole.values()))) < FEWEST:
        return {}
    best = best_of(whole, lower_is_better=lower_is_better)
    seeds, error = len(whole[best]), math.sqrt(residual_variance(whole) / len(whole[best]))
    degrees = (len(whole) - 1) * (seeds - 1)
    gaps = {name: abs(fmean(whole[best].values()) - fmean(whole[name].values())) for name in whole if name != best}
    if error == 0:
        return {name: 1.0 if gap == 0 else 0.0 for name, gap in gaps.items()}
    return {name: float(scipy_stats().studentized_range.sf(gap / error, len(whole), degrees)) for name, gap in gaps.items()}


def best_of(table: Mapping[str, Scores], *, lower_is_better: bool = False) -> str:
    """Returns the method with the best mean, the first of equal ones."""
    pick = min if lower_is_better else max
    return pick(table, key=lambda name: fmean(table[name].values()))


def complete(table: Mapping[str, Scores]) -> dict[str, Scores]:
    """Returns the methods that have every seed which any method has."""
    seeds = {seed for scores in table.values() for seed in scores}
    return {name: scores for name, scores in table.items() if set(scores) == seeds and seeds}


def residual_variance(table: Mapping[str, Scores]) -> float:
    """Returns the variance that neither method nor seed explains, with (k - 1)(n - 1) degrees of freedom; of a whole table."""
    seeds = list(next(iter(table.values())))
    of_seed = {seed: fmean(scores[seed] for scores in table.values()) for seed in seeds}
    grand = fmean(of_seed.values())
    total = 0.0
    for scores in table.values():
        of_method = fmean(scores.values())
        total += math.fsum((scores[seed] - of_method - of_seed[seed] + grand) ** 2 for seed in seeds)
    return total / ((len(table) - 1) * (len(seeds) - 1))


@lru_cache(maxsize=1024)
def critical_range(methods: int, seeds: int) -> float:
    """Returns the range of means, in standard errors of one mean, that 5 % of tables of equal methods exceed."""
    return float(scipy_stats().studentized_range.ppf(1 - LEVEL, methods, (methods - 1) * (seeds - 1)))


def separable(table: Mapping[str, Scores], baseline: str) -> float | None:
    """Returns the difference that these seeds can separate: the median half width of the intervals; None below two seeds."""
    widths = [d.interval.half_width for d in against_baseline(table, baseline).values() if d.interval is not None]
    return median(widths) if widths else None


def seeds_to_separate(table: Mapping[str, Scores], *, lower_is_better: bool = False) -> dict[str, int | None]:
    """Estimates for each method behind the best mean how many seeds would separate the two.

    The estimate takes the gap and the residual variance that the seeds show as they are. From two seeds both are rough: it is
    good for choosing between 5 and 50, not between 5 and 6.

    Returns:
        by method, the fewest seeds, at least 3; None where 100 would not be enough. Empty below two seeds.
    """
    whole = complete(table)
    if len(whole) < 2 or len(next(iter(whole.values()))) < 2:
        return {}
    best = best_of(whole, lower_is_better=lower_is_better)
    sd, top = math.sqrt(residual_variance(whole)), fmean(whole[best].values())
    others = whole.keys() - {best}
    return {name: _fewest_seeds(abs(top - fmean(whole[name].values())), sd, len(whole)) for name in table if name in others}


def _fewest_seeds(gap: float, sd: float, methods: int) -> int | None:
    def separates(seeds: int) -> bool:
        return gap > critical_range(methods, seeds) * sd / math.sqrt(seeds)

    if not separates(MOST_SEEDS):
        return None
    low, high = FEWEST, MOST_SEEDS  # the reach shrinks with every seed, so that halving finds the first
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if separates(middle) else (middle + 1, high)
    return low


def exceeds(value: float, limit: float) -> bool:
    """Returns True for a value above a limit by more than its rounding, which can make 2.0000000000000018 of 2 points."""
    return value > limit + ROUNDING


def sampling_error(share: float, rows: int) -> float:
    """Returns the standard error of a share of right answers that the choice of test rows alone brings; 0 for no share."""
    return math.sqrt(max(0.0, share * (1 - share)) / rows)


def scipy_stats() -> ModuleType:
    """Returns scipy.stats.

    Raises:
        ImportError: with the remedy, if scipy is not there.
    """
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError(f"intervals and verdicts over seeds need scipy: {COMPARE_EXTRA}") from error
    return stats
