"""The figures over clients: mean, worst and spread, from numbers that can be checked in the head."""

import pytest

from fedelta.runs.evaluation import best_round, fairness


def test_the_spread_over_clients_divides_by_their_number():
    """The clients are all there are, not a sample of more: n, not n - 1."""
    found = fairness({0: {"accuracy": 0.0}, 1: {"accuracy": 1.0}})["accuracy"]
    assert found == {"mean": 0.5, "worst": 0.0, "worst_client": 0, "spread": 0.5}
    four = fairness({k: {"accuracy": value} for k, value in enumerate([0.1, 0.3, 0.5, 0.7])})["accuracy"]
    assert four["spread"] == pytest.approx(0.05**0.5, rel=1e-12)
    assert fairness({3: {"accuracy": 0.25}})["accuracy"]["spread"] == 0.0


@pytest.mark.parametrize(("metric", "worst"), [("accuracy", 2), ("loss", 1), ("perplexity", 1)])
def test_the_worst_client_has_the_lowest_score_or_the_highest_loss(metric: str, worst: int):
    assert fairness({1: {metric: 3.0}, 2: {metric: 1.0}, 4: {metric: 2.0}})[metric]["worst_client"] == worst


def test_the_best_round_depends_on_what_is_good_for_the_metric():
    records = [{"t": t, "validation": {"accuracy": a, "loss": a}} for t, a in enumerate((0.5, 0.7, 0.7, 0.6))]
    records.append({"t": 4})
    assert best_round(records, "accuracy") == 1
    assert best_round(records, "loss") == 0
    assert best_round([{"t": 0, "validation": {"loss": None}}], "loss") is None
