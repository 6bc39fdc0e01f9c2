"""Verdicts over seeds: against scipy's own tests, against tables of equal methods, and where there is too little to say."""

import sys
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from scipy import stats

from fedelta.report import statistics

Table = Mapping[str, Mapping[int, float]]


def table(rows: Sequence[Sequence[float]]) -> dict[str, dict[int, float]]:
    """Names methods a, b, c, ... and counts seeds from 0."""
    return {chr(97 + i): dict(enumerate(map(float, row))) for i, row in enumerate(rows)}


def equal_methods(draws: int, methods: int, seeds: int) -> np.ndarray:
    """Scores of methods that do not differ; a seed moves all of them, much more than their own noise."""
    generator = np.random.default_rng(5)
    of_seed = 3 * generator.standard_normal((draws, 1, seeds))
    return of_seed + generator.standard_normal((draws, methods, seeds))


def test_equal_methods_are_marked_in_at_most_6_percent_of_tables():
    draws = equal_methods(1500, 8, 5)
    marked = sum("behind" in statistics.marks_against_best(table(scores)).values() for scores in draws)
    assert 0.03 < marked / len(draws) <= 0.06


def test_equal_methods_are_marked_against_a_baseline_in_at_most_6_percent_of_tables():
    draws = equal_methods(600, 8, 5)
    found = [statistics.marks_against_baseline(table(scores), "a") for scores in draws]
    assert 0.01 < sum(bool({"ahead", "behind"} & set(marks.values())) for marks in found) / len(draws) <= 0.06


def test_a_t_test_against_the_observed_best_would_mark_too_many():
    """The reason for the studentised range: without it the first test fails."""
    draws = equal_methods(400, 8, 5)
    marked = 0
    for scores in draws:
        best = scores.mean(axis=1).argmax()
        raw = {str(k): float(stats.ttest_rel(scores[k], scores[best]).pvalue) for k in range(8) if k != best}
        marked += min(statistics.holm(raw).values()) < 0.05
    assert marked / len(draws) > 0.07


def test_the_range_of_blocks_is_that_of_scipy_where_blocks_do_not_matter():
    """Of two methods it is the paired t-test."""
    generator = np.random.default_rng(1)
    for _ in range(50):
        scores = generator.standard_normal((2, 4)) + np.array([[0.0], [1.0]])
        marked = "behind" in statistics.marks_against_best(table(scores)).values()
        assert marked == (stats.ttest_rel(*scores).pvalue < 0.05)


def test_seeds_as_blocks_find_a_difference_that_seeds_hide():
    """The same gap in every seed counts, however far the seeds lie apart."""
    found = table([[10, 50, 90, 30], [14, 55, 94, 35], [10.5, 49, 91, 30]])
    assert statistics.marks_against_best(found) == {"a": "behind", "b": "best mean", "c": "behind"}
    assert statistics.marks_against_best(found, lower_is_better=True)["b"] == "behind"


def test_differences_are_paired_by_seed_and_are_those_of_scipy():
    scores = {"a": {0: 1.0, 1: 2.0, 2: 4.0, 3: 3.0}, "b": {3: 5.0, 2: 4.5, 1: 3.0, 0: 1.5}}
    found = statistics.against_baseline(scores, "a")["b"]
    reference = stats.ttest_rel([1.5, 3.0, 4.5, 5.0], [1.0, 2.0, 4.0, 3.0])
    assert found.by_seed == {0: 0.5, 1: 1.0, 2: 0.5, 3: 2.0}
    assert (found.mean, found.p) == (pytest.approx(1.0), pytest.approx(reference.pvalue))
    bounds = reference.confidence_interval()
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == (pytest.approx(bounds.low), pytest.approx(bounds.high))


def test_holm_is_the_step_down_of_its_paper():
    assert statistics.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert statistics.holm({}) == {}


def test_a_verdict_against_a_baseline_turns_round_where_small_is_better():
    scores = table([[5, 6, 7], [1, 2.1, 3]])
    assert statistics.marks_against_baseline(scores, "a") == {"a": "baseline", "b": "behind"}
    assert statistics.marks_against_baseline(scores, "a", lower_is_better=True)["b"] == "ahead"


@pytest.mark.parametrize("seeds", [1, 2])
def test_too_few_seeds_give_no_verdict(seeds: int):
    scores = table([[5.0, 5.1][:seeds], [1.0, 1.2][:seeds]])
    assert statistics.marks_against_best(scores) == {"a": "best mean", "b": ""}
    assert statistics.marks_against_baseline(scores, "a") == {"a": "baseline", "b": ""}
    difference = statistics.against_baseline(scores, "a")["b"]
    assert (difference.interval is not None) == (seeds == 2)
    assert statistics.spread(scores["a"]) == (None if seeds == 1 else pytest.approx(0.1 / 2**0.5))


def test_a_method_that_lacks_a_seed_is_not_marked_and_does_not_spoil_the_others():
    scores: Table = {**table([[5, 6, 7, 6], [1, 2.1, 3, 2]]), "short": {0: 9.0, 1: 9.0}}
    assert statistics.marks_against_best(scores) == {"a": "best mean", "b": "behind", "short": ""}
    assert statistics.against_baseline({"a": {0: 1.0}, "b": {1: 2.0}}, "a")["b"].mean is None


def test_differences_without_any_spread_are_certain():
    scores = table([[1, 2, 3], [1, 2, 3], [2, 3, 4]])
    found = statistics.against_baseline(scores, "a")
    assert (found["b"].p, found["c"].p) == (1.0, 0.0)
    assert statistics.marks_against_best(scores)["a"] == "behind"


def test_the_estimate_of_seeds_separates_when_so_many_are_run():
    """With the gap and the noise of the estimate, so many seeds are enough and one less is not."""
    scores = table([[3.0, 1.0, 2.0], [2.0, 1.5, 1.0], [0.0, 0.0, 1.0]])
    needed = statistics.seeds_to_separate(scores)
    assert list(needed) == ["b", "c"]
    sd = statistics.residual_variance(scores) ** 0.5
    for name, gap in (("b", 0.5), ("c", 5 / 3)):
        n = needed[name]
        assert n is not None
        assert gap > statistics.critical_range(3, n) * sd / n**0.5
        assert n == 3 or gap <= statistics.critical_range(3, n - 1) * sd / (n - 1) ** 0.5
    assert statistics.seeds_to_separate(table([[1, 0, 1, 0], [0, 1, 0, 1]])) == {"b": None}
    assert statistics.seeds_to_separate(table([[1.0], [2.0]])) == {}


def test_from_ten_seeds_on_there_is_a_bootstrap_that_is_the_same_each_time():
    values = list(np.random.default_rng(2).standard_normal(12))
    found = statistics.bootstrap_interval(values)
    assert found is not None
    assert found == statistics.bootstrap_interval(values)
    assert found.low < found.mean < found.high
    assert statistics.bootstrap_interval(values[:9]) is None
    assert statistics.bootstrap_interval([1.0] * 12) is None
    assert statistics.bootstrap_interval([0.1] * 9 + [0.7 - 0.6]) is None, "equal but for rounding"


def test_what_the_seeds_can_separate_is_the_median_half_width():
    scores = table([[0, 0, 0], [1, 2, 3], [10, 20, 30]])
    assert statistics.separable(scores, "a") == pytest.approx(stats.t.ppf(0.975, 2) * 5.5 / 3**0.5)
    assert statistics.separable(table([[1.0], [2.0]]), "a") is None
    assert statistics.sampling_error(0.5, 100) == pytest.approx(0.05)


def test_without_scipy_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r"fedelta\[compare\]"):
        statistics.t_interval([1.0, 2.0])


def test_what_is_no_share_has_no_sampling_error():
    assert statistics.sampling_error(0.5, 100) == pytest.approx(0.05)
    assert statistics.sampling_error(-5.0, 100) == statistics.sampling_error(85.0, 100) == 0.0


def test_what_exceeds_a_limit_by_rounding_alone_does_not_exceed_it():
    gain = 0.1 + 0.2
    assert gain > 0.3
    assert not statistics.exceeds(gain, 0.3)
    assert statistics.exceeds(0.3001, 0.3)
