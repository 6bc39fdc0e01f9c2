"""Before a suite's first cell all that its cells have in common is built once, whatever their seeds."""

from collections import Counter
from typing import Any

import pytest

from fedelta.runs import experiment
from fedelta.runs.config import ConfigError
from fedelta.runs.config.checks import check
from fedelta.runs.outline import built
from fedelta.runs.suite.estimate import cost_built, jobs_for, may_share, rows_of
from fedelta.runs.suite.preflight import rehearsed
from fedelta.runs.suite.work import Work

from .conftest import Bench

TUNED = {"name": "zeropad", "tune": {"training.learning_rate": [0.01, 0.02], "seeds": [100, 101]}}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how often a model is loaded, and rows are dealt."""
    made: Counter[str] = Counter()

    def counted(name: str) -> None:
        original = getattr(experiment, name)

        def call(*args: Any, **options: Any) -> Any:
            made[name] += 1
            return original(*args, **options)

        monkeypatch.setattr(experiment, name, call)

    for name in ("deal", "load_adapted"):
        counted(name)
    return made


def work_of(bench: Bench, **keys: Any) -> Work:
    """Cells of a tuned method, whose first seeds are those of its tuning, and of one that is not tuned."""
    return bench.work(**{"methods": [TUNED, "flexlora", "hetlora"], **keys})


@pytest.mark.parametrize("to_reckon", [False, True])
def test_a_population_is_built_once_whatever_the_seeds_of_its_cells(bench: Bench, calls: Counter[str], to_reckon: bool) -> None:
    rehearsed(work_of(bench), to_reckon=to_reckon)
    assert calls == {"deal": 1, "load_adapted": 1}


def test_each_setting_with_ranks_of_its_own_is_another_population(bench: Bench, calls: Counter[str]) -> None:
    rehearsed(work_of(bench, sweep=[{"name": "a", "lora.rank": 2}, {"name": "b", "lora.rank": 4}]))
    assert calls["load_adapted"] == 2


def test_what_is_reckoned_on_one_population_is_what_each_run_costs(bench: Bench) -> None:
    work = work_of(bench)
    costs = rehearsed(work, to_reckon=True)
    for entry in work.plan.file.entries:
        config = work.plan.config("", entry, {})
        assert costs["", entry.label] == cost_built(built(config, check(config, work.plan.own), scored=False))
    assert [(row.label, row.bytes > 0) for row in rows_of(work, costs)] == [(e.label, True) for e in work.plan.file.entries]


def test_the_memory_of_the_first_cell_says_how_many_run_at_a_time(
    bench: Bench, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedelta.runs.suite.estimate.cores", lambda: 4)
    work = work_of(bench)
    costs = rehearsed(work, to_size=True)
    assert calls == {"deal": 1, "load_adapted": 1}
    assert list(costs) == [("", "zeropad")]
    memory = costs["", "zeropad"]["memory"]
    for free, at_once in ((None, 4), (2 * memory, 2), (memory - 1, 1)):
        monkeypatch.setattr("fedelta.runs.suite.estimate.free_memory", lambda free=free: free)
        assert jobs_for(work, costs) == at_once
    monkeypatch.setattr("fedelta.runs.suite.estimate.cores", lambda: 1)
    assert not may_share(work)
    assert jobs_for(work, costs) == 1


def test_finished_cells_are_reckoned_but_not_asked_for(bench: Bench, calls: Counter[str]) -> None:
    keys: dict[str, Any] = {"methods": ["flexlora"], "seeds": 1}
    bench.run(**keys)
    calls.clear()
    assert rehearsed(bench.work(**keys)) == {}
    assert not calls, "a suite that is finished needs no model"
    assert rehearsed(bench.work(**keys), to_reckon=True).keys() == {("", "flexlora")}


def test_a_text_that_is_too_long_ends_a_suite_before_its_first_cell(bench: Bench) -> None:
    long = {"name": "classification", "text": "text", "max_length": 600}
    bench.base = {**bench.base, "task": long, "data": {**bench.base["data"], "source": str(bench.path / "long.jsonl")}}
    rows = [f'{{"text": "{"purr " * (600 if k == 0 else 2)}", "label": "{label}"}}' for k, label in enumerate(["a", "b"] * 30)]
    (bench.path / "long.jsonl").write_text("\n".join(rows))
    with pytest.raises(ConfigError, match=r"flexlora seed 0: .* rows: 1 of \d+ texts are longer .*task.max_length = 512"):
        rehearsed(bench.work(methods=["flexlora"]))
