"""Whole numbers in given proportions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def proportional(shares: Sequence[float] | np.ndarray, total: int) -> np.ndarray:
    """Returns whole numbers proportional to the shares and summing to `total`: the largest remainders get what rounding leaves.

    Ties go to the first. No share gets less than its rounded-down or more than its rounded-up part.
    """
    exact = np.asarray(shares, dtype=np.float64) / np.sum(shares) * total
    # A share that is whole but for rounding error must not lose one.
    counts = np.floor(exact + 1e-9).astype(np.int64)
    order = np.argsort(counts - exact, kind="stable")
    counts[order[: total - counts.sum()]] += 1
    return counts
