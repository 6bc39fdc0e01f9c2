"""Metrics against values worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedelta.tasks import metrics
from fedelta.tasks.metrics import Predictions, confusion, get_metric, score


def classified(target, predicted, loss=None):
    target, predicted = np.array(target), np.array(predicted)
    losses = np.zeros(len(target)) if loss is None else np.array(loss)
    return Predictions(predicted, target, (target == predicted).astype(int), np.ones_like(target), losses)


SIX = classified(target=[0, 0, 0, 1, 1, 2], predicted=[0, 0, 1, 1, 2, 2])


def test_accuracy_is_the_share_of_right_ones():
    assert metrics.accuracy(SIX) == pytest.approx(4 / 6)


def test_confusion_has_rows_by_right_class():
    assert confusion(SIX).tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]


def test_macro_f1_by_hand():
    # class 0: 2*2/(3+2); class 1: 2*1/(2+2); class 2: 2*1/(1+2)
    assert metrics.macro_f1(SIX) == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)


def test_macro_f1_counts_a_class_that_is_only_predicted_as_zero():
    assert metrics.macro_f1(classified([0, 0], [0, 7])) == pytest.approx((2 / 3 + 0) / 2)


def test_mcc_of_two_classes_is_the_textbook_formula():
    tp, tn, fp, fn = 3, 2, 1, 2
    found = metrics.mcc(classified([1] * 5 + [0] * 3, [1] * 3 + [0] * 2 + [0] * 2 + [1]))
    assert found == pytest.approx((tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))


def test_mcc_of_three_classes_by_hand():
    # hits 4, total 6; right (3, 2, 1), predicted (2, 2, 2): (24 - 12) / sqrt((36 - 14) * (36 - 12))
    assert metrics.mcc(SIX) == pytest.approx(12 / math.sqrt(22 * 24))


@pytest.mark.parametrize(("target", "predicted"), [([0, 0], [0, 0]), ([0, 1], [1, 1]), ([1, 1], [0, 1])])
def test_mcc_without_variation_is_zero(target, predicted):
    assert metrics.mcc(classified(target, predicted)) == 0.0


@given(st.lists(st.integers(0, 4), min_size=2, max_size=30).filter(lambda labels: len(set(labels)) > 1))
def test_perfect_predictions_score_one(labels):
    perfect = classified(labels, labels)
    assert [metrics.accuracy(perfect), metrics.macro_f1(perfect), metrics.mcc(perfect)] == pytest.approx([1, 1, 1])


def tokens(loss_sum, count, correct):
    none = np.full(len(count), -1)
    return Predictions(none, none, np.array(correct), np.array(count), np.array(loss_sum, dtype=float))


def test_loss_weighs_tokens_not_examples():
    two = tokens(loss_sum=[2.0, 1.0], count=[1, 9], correct=[1, 4])
    assert metrics.loss(two) == pytest.approx(0.3)
    assert metrics.perplexity(two) == pytest.approx(math.exp(0.3))
    assert metrics.accuracy(two) == pytest.approx(0.5)


def test_perplexity_beyond_float_is_infinite():
    assert metrics.perplexity(tokens([1000.0], [1], [0])) == math.inf


def test_class_metrics_of_tokens_are_refused():
    with pytest.raises(ValueError, match="token by token: use accuracy, loss or perplexity"):
        metrics.macro_f1(tokens([1.0], [2], [0]))


def test_a_function_of_ones_own_is_scored_by_its_name():
    def worst_loss(predictions):
        return predictions.loss_sum.max()

    assert score(classified([0, 1], [0, 1], loss=[0.5, 2.5]), ["accuracy", worst_loss]) == {"accuracy": 1.0, "worst_loss": 2.5}


def test_unknown_metric_names_the_nearest():
    with pytest.raises(ValueError, match="'acuracy'; did you mean 'accuracy'"):
        get_metric("acuracy")


def test_no_predictions_are_refused():
    with pytest.raises(ValueError, match="zero examples"):
        score(classified([], []), ["accuracy"])


def test_vectors_of_unlike_length_are_refused():
    with pytest.raises(ValueError, match="five vectors of one length"):
        Predictions(*(np.zeros(n) for n in (2, 2, 2, 3, 2)))
