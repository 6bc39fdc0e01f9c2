"""What the scripts of studies decide before any training: who gets which rows, and how many rounds fit."""

import importlib.util
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from fedelta.runs.config import RunConfig
from fedelta.runs.folder import RunFolder
from fedelta.runs.suite.schema import read_suite

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"

SUITES = sorted(path for path in EXPERIMENTS.glob("*/*.yaml") if "\nmethods:" in path.read_text(encoding="utf-8"))

Script = Callable[[str], ModuleType]


@pytest.fixture
def script() -> Iterator[Script]:
    """Imports a script by its path in `experiments`, for one test."""
    names: list[str] = []

    def load(path: str) -> ModuleType:
        name = f"study_{len(names)}"
        spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        names.append(name)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in names:
        sys.modules.pop(name)


@pytest.mark.parametrize("path", SUITES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_suite_is_read(path: Path) -> None:
    if path.parent.name != "codecs":  # its channels are its script's own key
        assert read_suite(path).settings()


def test_near_equal_contexts_of_hellaswag_go_to_one_part(script: Script) -> None:
    beginning = "he takes the large red rope and pulls"
    texts = ["a", f"{beginning} it", "b", "c", "d", f"{beginning.upper()} hard", f"{beginning} it"]
    labels = ["Tug"] * 6 + ["Climbing"]
    rows = [{"row": i, "ctx": text, "activity_label": label} for i, (text, label) in enumerate(zip(texts, labels, strict=True))]
    parts = {name: [row["row"] for row in part] for name, part in script("hellaswag/prepare.py").split(rows).items()}
    # Row 5 would be test by its own number, and goes with row 1; row 6 is of another activity.
    assert parts == {"train": [1, 2, 3, 4, 5, 6], "test": [0]}


def test_nodes_get_the_reported_skew_and_no_row_twice(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = script("tad_lora/prepare.py")
    written: dict[str, list[dict[str, int]]] = {}
    monkeypatch.setattr(prepare, "write", written.__setitem__)
    rows = [{"id": i, "label": i % 2} for i in range(6000)]
    prepare.deal("sst2", rows, [{1: share, 0: 1 - share} for share in prepare.POSITIVE], 400)
    positive = Counter(row["node"] for row in written["sst2_train"] if row["label"])
    assert [positive[node] for node in range(10)] == [360] * 3 + [40] * 3 + [200] * 4
    both = [row["id"] for part in written.values() for row in part]
    assert len(written["sst2_train"]) == 4000
    assert len(set(both)) == len(both)


def test_only_runs_that_are_finished_are_averaged(script: Script, tmp_path: Path) -> None:
    averaged, run = script("tad_lora/averaged.py"), RunFolder(tmp_path / "seed-0")
    run.write_config(RunConfig.model_validate({"federation": {"rounds": 2}}))
    fixed = {"cohort": [0], "dropped": {}, "train_loss": 1.0, "bytes": {"down": 1, "up": 1}, "seconds": {}}
    found: list[bool] = []
    for t in range(2):
        run.append({**fixed, "t": t, "test": {"accuracy": 0.5 + t / 4}})
        found.append(averaged.is_finished(run.path))
    assert found == [False, True]
    assert averaged.of_nodes(run.path) == 0.75
    run.diverged_file.write_text("{}", encoding="utf-8")
    assert not averaged.is_finished(run.path)


@pytest.mark.parametrize(("left", "rounds"), [(500.0, 44), (10_000.0, 60), (50.0, 0), (-5.0, 0)])
def test_the_rounds_of_a_cell_fit_into_the_time(script: Script, left: float, rounds: int) -> None:
    gpu = script("subspace_reg/gpu.py")
    costs = [gpu.Cost(round=1.0, evaluation=2.0), gpu.Cost(round=2.0, evaluation=1.0)]
    # Two methods on five seeds, four at once: three waves, each with 72 s to load where that is what the first one took.
    assert gpu.sized(costs, left, 78.0) == rounds
