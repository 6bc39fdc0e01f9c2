"""Methods over settings: normalised scores, interquartile means, profiles, and ranks that Wilcoxon's test tells apart."""

from collections.abc import Callable
from dataclasses import replace
from math import lcm
from statistics import fmean

import numpy as np
import pytest
from scipy import stats

from fedelta.report import across
from fedelta.report.compared import Compared
from fedelta.report.comparison import Comparison
from fedelta.report.numerals import Measure
from fedelta.report.outcome import outcomes

Make = Callable[..., Comparison]


def test_scores_are_measured_between_the_lines_of_their_setting(a_comparison: Make):
    found = outcomes(a_comparison(("a", "b", "local_only", "centralised")))
    found = dict.fromkeys("xyz", found[""])
    lines = across.lines_of(found["x"])
    assert lines is not None
    assert lines.names == ("local_only", "centralised")
    scores = across.normalised(found)["x"]
    assert set(scores) == {"a", "b"}
    raw = found["x"].table["m1"][0]
    assert scores["b"][0] == pytest.approx((raw - lines.low) / (lines.high - lines.low))


def test_lines_of_a_loss_lie_the_other_way_round_and_lines_that_cross_are_none(a_comparison: Make):
    found = outcomes(a_comparison(("a", "b", "local_only", "centralised"), metric="loss"))[""]
    lines = across.lines_of(found)
    assert lines is not None
    assert lines.low > lines.high
    first = found.table["m0"][0]
    scores = across.normalised(dict.fromkeys("xyz", found))["x"]["a"]
    assert scores[0] == pytest.approx((lines.low - first) / (lines.low - lines.high)), "more is better for all that is measured"
    crossed = outcomes(a_comparison(("a", "b", "centralised", "local_only"), metric="loss"))[""]
    assert across.lines_of(crossed) is None


def test_without_the_two_runs_the_commonest_label_and_one_are_the_lines(a_comparison: Make):
    found = outcomes(a_comparison(("a", "b"), ("x", "y", "z")))
    lines = across.lines_of(found["x"])
    assert lines == across.Lines(0.3, 1.0, ("commonest label", "all right"))


def test_settings_are_put_together_from_three_with_three_seeds_and_the_same_lines(a_comparison: Make):
    assert not across.normalised(outcomes(a_comparison(("a", "b"), ("x", "y"))))
    assert not across.normalised(outcomes(a_comparison(("a", "b"), ("x", "y", "z"), seeds=2)))
    assert across.normalised(outcomes(a_comparison(("a", "b"), ("x", "y", "z"))))
    mixed = ("a", "b", "local_only", "centralised")
    one_less = a_comparison(mixed, ("x", "y", "z"), without=[("z", "centralised", "failed", "")])
    assert not across.normalised(outcomes(one_less)), "one setting has another line"


def test_a_method_that_is_not_everywhere_is_left_out(a_comparison: Make):
    found = outcomes(a_comparison(("a", "b", "c"), ("x", "y", "z"), without=[("y", "b", "not applicable", "")]))
    assert {label for by_label in across.normalised(found).values() for label in by_label} == {"a", "c"}


def test_the_interquartile_mean_is_that_of_the_middle_half():
    values = [float(x) for x in range(20)]
    for seen in (values, [*values[:-1], 1e9]):
        alone = across.interquartile_means({"x": {"a": dict(enumerate(seen))}})
        assert alone["a"].mean == pytest.approx(fmean(values[5:15]))
    scores = {s: {"a": dict(enumerate([0.1, 0.2, 0.3, 0.4])), "b": dict(enumerate([0.5, 0.5, 0.5, 0.5]))} for s in "xyz"}
    means = across.interquartile_means(scores)
    assert means["a"].mean == pytest.approx(float(stats.trim_mean([0.1, 0.2, 0.3, 0.4] * 3, 0.25)))
    assert means["a"].low < means["a"].mean < means["a"].high
    assert (means["b"].low, means["b"].high) == (0.5, 0.5)
    outlier = {s: {"a": {0: 0.1, 1: 0.2, 2: 0.3, 3: 1e9 if s == "x" else 0.4}} for s in "xyz"}
    assert across.interquartile_means(outlier)["a"].high < 1, "resamples leave out the outer quarters, too"
    assert across.interquartile_means(scores) == means, "the same seeds are drawn each time"


def test_a_profile_falls_from_all_runs_to_none():
    shares = across.profile({"x": {"a": {0: 0.2, 1: 0.6}}, "y": {"a": {0: 0.4, 1: 0.8}}}, steps=11)["a"]
    assert shares[0] == (0.0, 1.0)
    assert shares[-1] == (1.0, 0.0)
    assert dict(shares)[0.5] == 0.5
    assert [share for _, share in shares] == sorted((share for _, share in shares), reverse=True)


def test_a_setting_counts_once_whatever_its_seeds():
    few = {s: {"a": {0: x, 1: x + 0.1}} for s, x in (("x", 0.0), ("y", 0.3), ("z", 0.6))}
    many = few | {"z": {"a": {2 * seed + k: few["z"]["a"][k] for seed in range(5) for k in range(2)}}}
    assert across.interquartile_means(many)["a"].mean == pytest.approx(across.interquartile_means(few)["a"].mean)
    assert across.interquartile_means(many)["a"].high < across.interquartile_means(few)["a"].high, "more seeds say more"
    assert dict(across.profile(many)["a"]) == pytest.approx(dict(across.profile(few)["a"]))


@pytest.mark.parametrize("counts", [(3, 5, 7), (4, 6), (3, 3, 3), (2,)])
def test_the_middle_half_is_that_of_scores_repeated_until_all_settings_have_as_many(counts: tuple[int, ...]):
    draw = np.random.default_rng(0)
    scores = {str(k): {"a": dict(enumerate(draw.normal(size=count).tolist()))} for k, count in enumerate(counts)}
    tables = [np.array(list(by_label["a"].values())) for by_label in scores.values()]
    repeated = np.concatenate([np.repeat(table, lcm(*counts) // len(table)) for table in tables])
    found = across.interquartile_means(scores)["a"].mean
    assert found == pytest.approx(float(stats.trim_mean(repeated, 0.25)))


def test_numbers_of_seeds_without_a_common_divisor_take_no_room():
    scores = {str(n): {"a": dict.fromkeys(range(n), 0.5)} for n in (89, 97, 101, 103)}
    assert across.interquartile_means(scores)["a"].mean == 0.5


def scored(c: Compared, means: dict[str, float]) -> Compared:
    """A setting in which the methods have these means."""
    keys = {group.label: group.key for group in c.study.groups}
    return replace(c, table={keys[label]: dict.fromkeys(range(3), x) for label, x in means.items()})


def test_ranks_are_means_over_settings_and_ties_share(a_comparison: Make):
    c = outcomes(a_comparison(("a", "b", "c")))[""]
    found = {str(k): scored(c, {"a": 0.9, "b": 0.5, "c": 0.5}) for k in range(5)}
    ranks = across.mean_ranks(found)
    assert ranks is not None
    assert ranks.mean == {"a": 1.0, "b": 2.5, "c": 2.5}
    assert across.mean_ranks(dict(list(found.items())[:4])) is None
    losses = across.mean_ranks({name: replace(each, measure=Measure("loss")) for name, each in found.items()})
    assert losses is not None
    assert losses.mean == {"b": 1.5, "c": 1.5, "a": 3.0}


def test_bars_join_what_wilcoxon_and_holm_do_not_tell_apart(a_comparison: Make):
    c = outcomes(a_comparison(("a", "b", "c")))[""]
    clear = {str(k): scored(c, {"a": 0.9 + k / 1000, "b": 0.5 + (k % 2) / 100, "c": 0.505}) for k in range(9)}
    ranks = across.mean_ranks(clear)
    assert ranks is not None
    assert [set(clique) for clique in ranks.cliques] == [{"b", "c"}]
    _, p = stats.wilcoxon([0.395 + k / 1000 for k in range(9)])
    assert 3 * p < 0.05, "the reference agrees that a is apart from c"
    few = across.mean_ranks(dict(list(clear.items())[:5]))
    assert few is not None
    assert [len(clique) for clique in few.cliques] == [3], "five settings can part nothing"
