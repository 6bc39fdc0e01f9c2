"""A method's value is chosen by validation, by the loss where scores are level, and beyond an edge of the grid."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedelta.report.study import Run
from fedelta.runs.suite.cells import Task, combinations, plan_of
from fedelta.runs.suite.schema import suite_of
from fedelta.runs.suite.start import Wanted, ready
from fedelta.runs.suite.tuning import Tried, best_of, choose, next_value


@pytest.mark.parametrize(
    ("tried", "best", "expected"),
    [
        ([0.001, 0.01, 0.1], 0.01, None),
        ([0.001, 0.01, 0.1], 0.1, 1.0),
        ([0.001, 0.01, 0.1], 0.001, 0.0001),
        ([0.01, 0.03], 0.03, 0.09),
        ([0.003, 0.001, 0.01], 0.01, 0.0333333),
        ([2, 4, 8], 8, 16),
        ([1, 4], 1, None),
        ([0.1], 0.1, None),
        (["a", "b"], "b", None),
        ([0, 1], 1, None),
        ([True, False], True, None),
    ],
)
def test_the_next_value_goes_on_by_the_grids_ratio(tried: list[Any], best: Any, expected: float | None):
    assert next_value(tried, best) == expected


def test_paths_of_a_grid_count_from_the_suites_folder_and_keep_their_names(tiny_config: dict[str, Any], tmp_path: Path):
    grid = {"lora.start": ["starts/a", "starts/b"]}
    methods = ["flexlora", {"name": "zeropad", "tune": {"lora.start": ["c", "d"]}}]
    (tmp_path / "suites").mkdir()
    suite = tmp_path / "suites" / "mine.yaml"
    suite.write_text(yaml.safe_dump({"base": tiny_config, "methods": methods, "tune": grid}), encoding="utf-8")
    made = ready(str(suite), Wanted(output=tmp_path / "runs"))
    plan, file = made.plan, made.plan.file
    tasks = [plan.tuning_task("", file.entries[0], 100, values) for values in combinations(file.entries[0])]
    assert [task.config.lora.start for task in tasks] == [str(tmp_path / "suites" / "starts" / name) for name in "ab"]
    assert [task.tuning for task in tasks] == ["starts/a", "starts/b"]
    written = yaml.safe_load(made.text)
    assert written["tune"] == {"lora.start": ["../suites/starts/a", "../suites/starts/b"]}
    assert written["methods"][1]["tune"] == {"lora.start": ["../suites/c", "../suites/d"]}


def test_level_accuracies_are_told_apart_by_the_loss():
    tried = [Tried({"lr": 1}, 0.80, 0.7, 100), Tried({"lr": 2}, 0.82, 0.9, 100), Tried({"lr": 3}, 0.70, 0.1, 100)]
    assert best_of(tried, "accuracy") == tried[0]  # 2 points are within the error of 100 rows, 12 are not
    assert best_of([Tried(t.values, t.score, t.loss, 10_000) for t in tried], "accuracy").values == {"lr": 2}
    assert best_of(tried, "perplexity") == tried[2]
    assert best_of([], "accuracy") is None


class Landscape:
    """Validation scores by a function of the learning rate, in place of runs."""

    def __init__(self, base: Any, score: Callable[[float], float | None], **keys: Any) -> None:
        raw = {"base": base, "methods": ["flexlora"], "seeds": 1, "tune": {"training.learning_rate": [0.01, 0.1]}, **keys}
        self.plan = plan_of(suite_of(raw, "mine", Path()), Path("runs"))
        self.score, self.asked = score, set[str]()

    def find(self, task: Task) -> Run | None:
        self.asked.add(f"{task.tuning} {task.seed}")
        score = self.score(task.config.training.learning_rate)
        if score is None:
            return None
        record = {"t": 0, "validation": {"accuracy": score, "loss": 1 - score}}
        return Run("", [record], task.config.model_dump(mode="json"), {"rows": {"validation": 10**6}})

    def choose(self, setting: str = ""):
        return choose(self.plan, setting, self.plan.file.entries[0], self.find, lambda task: True)


def test_an_inner_value_needs_no_other(tiny_config: dict[str, Any]):
    land = Landscape(tiny_config, lambda x: 1 - abs(x - 0.1), tune={"training.learning_rate": [0.01, 0.1, 0.5]})
    tuned = land.choose().tuned
    assert (tuned.values, tuned.at_edge) == ({"training.learning_rate": 0.1}, False)
    assert list(tuned.tried) == ["0.01", "0.1", "0.5"]
    assert tuned.tried["0.1"] == (1.0, 0.0)
    assert land.asked == {f"{x} {seed}" for x in ("0.01", "0.1", "0.5") for seed in (100, 101)}


def test_a_grid_grows_until_its_best_lies_within(tiny_config: dict[str, Any]):
    tuned = Landscape(tiny_config, lambda x: 1 - abs(x - 1.0) / 20).choose().tuned
    assert list(tuned.tried) == ["0.01", "0.1", "1", "10"]
    assert (tuned.values, tuned.at_edge) == ({"training.learning_rate": 1.0}, False)


def test_a_grid_grows_at_most_twice_and_then_says_so(tiny_config: dict[str, Any]):
    tuned = Landscape(tiny_config, lambda x: x / 1000).choose().tuned
    assert list(tuned.tried) == ["0.01", "0.1", "1", "10"]
    assert (tuned.values, tuned.at_edge) == ({"training.learning_rate": 10.0}, True)


def test_runs_that_are_not_there_are_waited_for(tiny_config: dict[str, Any]):
    land = Landscape(tiny_config, lambda x: None)
    waiting = choose(land.plan, "", land.plan.file.entries[0], land.find, lambda task: False)
    assert waiting.tuned is None
    assert [(task.tuning, task.seed) for task in waiting.waiting] == [(x, s) for x in ("0.01", "0.1") for s in (100, 101)]


def test_a_value_whose_run_failed_is_not_chosen(tiny_config: dict[str, Any]):
    tuned = Landscape(tiny_config, lambda x: None if x == 0.1 else 0.5, tune={"lora.lora_alpha": [1, 2]}).choose().tuned
    assert tuned is not None
    land = Landscape(tiny_config, lambda x: 0.5 if x == 0.01 else None, tune={"training.learning_rate": [0.01, 0.1, 1.0]})
    assert land.choose().values == {"training.learning_rate": 0.01}
    assert Landscape(tiny_config, lambda x: None).choose().tuned is None


def test_several_keys_are_tried_in_all_combinations(tiny_config: dict[str, Any]):
    land = Landscape(
        tiny_config,
        lambda x: 1 - abs(x - 0.1),
        tune={"training.learning_rate": [0.01, 0.1, 1.0], "training.batch_size": [4, 8, 16]},
    )
    tuned = land.choose().tuned
    assert len(tuned.tried) == 9 + 1  # of equal scores the first batch size, on an edge, and then no longer
    assert tuned.values["training.learning_rate"] == 0.1


def test_the_first_setting_may_choose_for_all(tiny_config: dict[str, Any]):
    keys = {"sweep": {"federation.rounds": [1, 2]}}
    tune = {"training.learning_rate": [0.01, 0.1, 0.5], "setting": "first"}
    land = Landscape(tiny_config, lambda x: 1 - abs(x - 0.1), tune=tune, **keys)
    seen: list[str] = []

    def find(task: Task) -> Run | None:
        seen.append(task.setting)
        return land.find(task)

    choose(land.plan, "rounds=2", land.plan.file.entries[0], find, lambda task: True)
    assert set(seen) == {"rounds=1"}
