"""Predictions and what they are worth, behind one import path."""

from fedelta.tasks.metrics.functions import (
    LOWER_IS_BETTER,
    METRICS,
    Metric,
    accuracy,
    confusion,
    exact_match,
    get_metric,
    is_better,
    loss,
    macro_f1,
    mcc,
    perplexity,
    score,
)
from fedelta.tasks.metrics.predictions import UNDECIDED, Predictions

__all__ = [
    "LOWER_IS_BETTER",
    "METRICS",
    "UNDECIDED",
    "Metric",
    "Predictions",
    "accuracy",
    "confusion",
    "exact_match",
    "get_metric",
    "is_better",
    "loss",
    "macro_f1",
    "mcc",
    "perplexity",
    "score",
]
