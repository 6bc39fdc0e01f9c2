"""Metrics of a model's predictions: accuracy, macro-F1, Matthews correlation, loss, perplexity, or a function of yours.

A metric is any function `Predictions -> float`. It needs no model and no data, so one pass over the test set serves all of
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from fedelta.registry import check_name
from fedelta.tasks.metrics.predictions import UNDECIDED, Ints, Predictions

Metric = Callable[[Predictions], float]


def accuracy(predictions: Predictions) -> float:
    """Returns the share of right decisions: of examples for a classification, of answer tokens for text."""
    return float(predictions.correct.sum() / predictions.count.sum())


def exact_match(predictions: Predictions) -> float:
    """Returns the share of examples that are right in all decisions; of texts, those that greedy decoding writes as they are.

    Each token is predicted from the right ones before it. If all predictions are right, these are what the model has written
    itself, up to the end mark; if one is wrong, the text differs there.
    """
    return float((predictions.correct == predictions.count).mean())


def loss(predictions: Predictions) -> float:
    """Returns the mean negative log-likelihood per decision, in nats."""
    return float(predictions.loss_sum.sum() / predictions.count.sum())


def perplexity(predictions: Predictions) -> float:
    """Returns exp(loss); infinite where that exceeds float64, that is beyond a loss of 709 nats."""
    mean = loss(predictions)
    return math.exp(mean) if mean < 709 else math.inf


def confusion(predictions: Predictions) -> Ints:
    """Returns (c, c) counts, rows by right class and columns by predicted class, over the classes that occur in either.

    Raises:
        ValueError: the examples are not single decisions, so they have no class.
    """
    pairs = np.stack([predictions.target, predictions.predicted])
    if (pairs == UNDECIDED).any():
        raise ValueError(
            "macro_f1 and mcc need one class per example, but this task decides token by token: "
            "use accuracy, loss or perplexity"
        )
    classes, index = np.unique(pairs, return_inverse=True)
    target, predicted = index.reshape(pairs.shape)
    size = len(classes)
    return np.bincount(target * size + predicted, minlength=size * size).reshape(size, size)


def macro_f1(predictions: Predictions) -> float:
    """Returns the unweighted mean over classes of F1 = 2 TP / (2 TP + FP + FN).

    The mean goes over the classes that occur among the right or the predicted ones; each of these has a defined F1, and
    a class that occurs in neither says nothing and is left out.
    """
    table = confusion(predictions)
    return float(np.mean(2 * np.diag(table) / (table.sum(axis=0) + table.sum(axis=1))))


def mcc(predictions: Predictions) -> float:
    """Returns Matthews' correlation for any number of classes (Gorodkin 2004, R_K), from -1 to 1.

    It is undefined, 0 / 0, where all right or all predicted classes are the same; 0 is returned then: such predictions
    tell nothing about the class.
    """
    table = confusion(predictions).astype(np.float64)
    total, hits = table.sum(), np.trace(table)
    right, guessed = table.sum(axis=1), table.sum(axis=0)
    spread = (total**2 - right @ right) * (total**2 - guessed @ guessed)
    return float((hits * total - right @ guessed) / math.sqrt(spread)) if spread > 0 else 0.0


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "exact_match": exact_match,
    "macro_f1": macro_f1,
    "mcc": mcc,
    "loss": loss,
    "perplexity": perplexity,
}


def get_metric(metric: str | Metric) -> tuple[str, Metric]:
    """Returns a metric's name and function, from either; a function is known by its `__name__`.

    Raises:
        ValueError: no metric has that name.
    """
    if callable(metric):
        return getattr(metric, "__name__", type(metric).__name__), metric
    check_name("metric", metric, METRICS)
    return metric, METRICS[metric]


def score(predictions: Predictions, metrics: Sequence[str | Metric]) -> dict[str, float]:
    """Returns each metric's value by its name.

    Raises:
        ValueError: there are no predictions, or a name is unknown.
    """
    if not len(predictions):
        raise ValueError("no predictions to score: the evaluated set has zero examples")
    return {name: float(function(predictions)) for name, function in map(get_metric, metrics)}


LOWER_IS_BETTER = frozenset({"loss", "perplexity"})
"""The metrics of which a small value is good; a user's own are taken to be good when large."""


def is_better(new: float, old: float, metric: str) -> bool:
    """Returns True if a value of a metric beats another; NaN beats nothing."""
    return new < old if metric in LOWER_IS_BETTER else new > old
