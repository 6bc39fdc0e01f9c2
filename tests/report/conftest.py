"""Records as a run writes them."""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def record() -> Callable[..., dict[str, Any]]:
    """Makes the record of a round, with changes."""
    return a_record


def a_record(t: int, **changes: Any) -> dict[str, Any]:
    scores = {"accuracy": 0.5 + t / 10, "loss": 1.0 - t / 10}
    return {
        "t": t,
        "train_loss": 1.5 - t / 10,
        "test": scores,
        "validation": scores,
        "clients": {"accuracy": {"mean": 0.6, "worst": 0.25, "worst_client": 2, "spread": 0.1}},
        "bytes": {"down": 3 * 2**20, "up": 2**20},
        "cohort": [0, 1, 2],
        "dropped": {},
        "diagnostics": {"effective_rank": 3.0, "stable_rank": None},
        "seconds": {"round": 60.0, "evaluation": 30.0},
        **changes,
    }
