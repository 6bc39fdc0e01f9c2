"""Predictions of a model for many examples, in plain arrays: metrics need no model and no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Ints = np.ndarray
Floats = np.ndarray

UNDECIDED = -1
"""The class index of an example that is not one decision, such as an answer of many tokens."""


@dataclass(frozen=True)
class Predictions:
    """Predictions for n examples, in their order.

    An example holds `count` decisions: one for a classification, one per answer token for text.

    Args:
        predicted: (n,) int, the class index that the model prefers; `UNDECIDED` where there is no single decision.
        target: (n,) int, the right class index, or `UNDECIDED`.
        correct: (n,) int, how many of the example's decisions are right.
        count: (n,) int, how many decisions the example holds, at least one.
        loss_sum: (n,) float64, the negative log-likelihood in nats, summed over the example's decisions.
    """

    predicted: Ints
    target: Ints
    correct: Ints
    count: Ints
    loss_sum: Floats

    def __post_init__(self) -> None:
        sizes = {name: np.shape(value) for name, value in vars(self).items()}
        if len(set(sizes.values())) != 1 or any(len(shape) != 1 for shape in sizes.values()):
            raise ValueError(f"predictions need five vectors of one length, but have {sizes}")

    def __len__(self) -> int:
        return len(self.count)

    def take(self, order: Sequence[int] | Ints) -> Predictions:
        """Returns the predictions of some examples, in the given order of positions."""
        return Predictions(**{name: value[order] for name, value in vars(self).items()})

    @staticmethod
    def join(parts: Sequence[Predictions]) -> Predictions:
        """Returns the predictions of several batches as one."""
        names = Predictions.__dataclass_fields__
        return Predictions(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
