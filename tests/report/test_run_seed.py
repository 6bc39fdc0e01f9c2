"""The seed by which a report tells the runs of one method apart, from one number or several."""

from typing import Any

import pytest

from fedelta.report.study import Run


@pytest.mark.parametrize(
    ("seed", "found"),
    [
        (3, 3),
        ({"data": 0, "partition": 3, "schedule": 3, "start": 3}, 3),
        ({"data": 0, "partition": 0, "schedule": 4, "start": 4}, 4),
        ({"data": 7, "partition": 0, "schedule": 0, "start": 0}, 0),
        ({"partition": 5}, 5),
        ({"data": 0, "partition": 1, "schedule": 2, "start": 3}, 2),
    ],
)
def test_the_seed_that_is_not_the_datas_tells_runs_apart(seed: Any, found: int):
    assert Run("run", [], {"seed": seed}).seed == found


def test_runs_of_several_seeds_do_the_same():
    first, second = (Run("run", [], {"seed": {"data": 0, "partition": s}, "method": {"name": "fedavg"}}) for s in (1, 2))
    assert first.settings == second.settings == {"method.name": "fedavg"}
