"""A method, a task, a model: by name, from a file, as an object."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import fedelta
from fedelta.methods.fedavg import FedAvg
from fedelta.runs.config import ConfigError, RunConfig, load_config, read_config
from fedelta.runs.config.own import NOTHING, Own, is_own
from fedelta.tasks import Classification

MINE = """
from dataclasses import dataclass
from fedelta.methods.fedavg import FedAvg

@dataclass(frozen=True, kw_only=True)
class Mine(FedAvg):
    trim: float = 0.0
"""

STARS = """
from dataclasses import dataclass
from fedelta.tasks import Classification

@dataclass(frozen=True, kw_only=True)
class Stars(Classification):
    threshold: int = 4
    words: tuple[str, ...] = ()
"""


@dataclass(frozen=True, kw_only=True)
class OwnAverage(FedAvg):
    trim: float = 0.0


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(MINE)
    return str(tmp_path / "mine.py")


def test_get_method_and_get_task_take_a_path(mine: str, tmp_path: Path) -> None:
    made = fedelta.get_method(mine, trim=0.5)
    assert (type(made).__name__, getattr(made, "trim", None)) == ("Mine", 0.5)
    assert fedelta.get_method(Path(mine)) == fedelta.get_method(mine)
    with pytest.raises(ValueError, match=r"mine\.py' has no hyper-parameter 'trm'; did you mean 'trim'"):
        fedelta.get_method(mine, trm=0.5)
    (tmp_path / "stars.py").write_text(STARS)
    task: Any = fedelta.tasks.get_task(str(tmp_path / "stars.py"), words=["a"])  # pyright: ignore[reportAttributeAccessIssue]
    assert task.words == ("a",)


def test_a_config_names_a_file_with_its_settings_and_is_read_back_the_same(mine: str) -> None:
    given = {"method": {"path": mine, "trim": 0.5, "label": "ours"}}
    config = load_config(given, allow_files=[mine])
    assert config.method == {"name": "mine.py", **given["method"]}
    assert is_own(config)
    assert not is_own(RunConfig())
    assert read_config(config) == config
    own = Own(frozenset(fedelta.runs.config.allowed.allowed([mine])))  # pyright: ignore[reportAttributeAccessIssue]
    made: Any = own.method_of(config, own.files_of(config))
    assert made.trim == 0.5


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("mine.py", r"method is the file .*mine\.py, and a config alone cannot make its code run: .*--allow-file .*mine\.py"),
        ({"name": "compose", "server": "mine.py"}, "no method is called 'mine.py'"),
        ({"name": "compose", "server": {"name": "mine.py"}}, "no method is called 'mine.py'"),
        ({"path": "mine.py", "name": "FedAvg"}, "the name 'FedAvg' is that of a method of the library"),
        ({"path": "mine"}, r"path is '.*mine', but a Python file is needed"),
        ({"path": 3}, "path is 3, but a Python file is needed"),
        ({"name": "fedavg", "tune": {}}, "tune has a meaning in a suite"),
        ({"name": "fedavg", "label": 3}, "label should be a text"),
        ({"trim": 1}, "needs a name"),
        ("__main__:Mine", "was an object of a program: give it again in Python"),
    ],
)
def test_what_a_config_alone_cannot_have(
    choice: Any, message: str, mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_config({"method": choice})


def test_a_files_settings_are_checked_as_those_of_the_library_are(mine: str) -> None:
    with pytest.raises(ConfigError, match="has no hyper-parameter 'trm'"):
        load_config({"method": {"path": mine, "trm": 1}}, allow_files=[mine])
    with pytest.raises(ConfigError, match="needs equal ranks"):
        load_config({"method": mine, "lora": {"rank": [1, 2]}, "partition": {"clients": 2}}, allow_files=[mine])


def test_an_object_is_written_down_by_its_name_if_the_library_has_it_and_else_by_its_class() -> None:
    config = Own(method=fedelta.get_method("fedprox", mu=0.5), task=Classification(labels=("a", "b"))).in_config(RunConfig())
    assert config.method == {"name": "fedprox", "mu": 0.5}
    assert config.task["labels"] == ["a", "b"]
    assert load_config(config) == config
    config = Own(method=OwnAverage(trim=0.5)).in_config(RunConfig())
    assert config.method == {"name": f"{__name__}:OwnAverage", "trim": 0.5}
    assert is_own(config)
    composed = fedelta.get_method("compose", local="fedprox", server="flexlora")
    config = load_config(Own(method=composed).in_config(RunConfig()))
    assert NOTHING.method_of(config, {}) == composed


def test_a_model_is_a_name() -> None:
    assert read_config({"model": "minilm"}).model == read_config({"model": {"name": "minilm"}}).model
    assert read_config({"model": "minilm"}, ["model.dtype=bfloat16"]).model.dtype == "bfloat16"
