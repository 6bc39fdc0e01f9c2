"""Own files on the command line: a path where a name may stand, and the user's list."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import Result

import fedelta
from fedelta.models.adapter_files import load_adapter, save_adapter
from fedelta.models.toy import random_adapter
from fedelta.tree import Adapter

METHOD = """
from dataclasses import dataclass
from fedelta.methods.flexlora import FlexLoRA

@dataclass(frozen=True, kw_only=True)
class Mine(FlexLoRA):
    trim: float = 0.0
"""

TASK = """
from dataclasses import dataclass
from fedelta.tasks import Classification

@dataclass(frozen=True, kw_only=True)
class Named(Classification):
    suffix: str = ""

    def label_field(self):
        return None

    def label_of(self, row):
        return row["label"] + self.suffix
"""

Call = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(METHOD)
    (tmp_path / "named.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    return tmp_path


def test_aggregate_takes_a_file(folder: Path, succeed: Call, call: Call) -> None:
    for k in range(2):
        save_adapter(Adapter(random_adapter(2, seed=k).layers, {}), folder / f"in-{k}")
    inputs = ["in-0", "in-1"]
    succeed("aggregate", *inputs, "-o", "out", "--method", "mine.py", "--ranks", "2", "--set", "trim=0.5")
    [wanted] = fedelta.aggregate(inputs, method="flexlora", ranks=[2])
    found = load_adapter(folder / "out")
    for name, layer in wanted.layers.items():
        torch.testing.assert_close(found.layers[name].dense(), layer.dense())
    wrong = call("aggregate", *inputs, "-o", "again", "--method", "mine.py", "--set", "trm=0.5")
    assert wrong.exit_code == 2
    assert "did you mean 'trim'?" in wrong.stderr


def test_check_takes_a_file_and_says_what_is_wrong_with_one(folder: Path, succeed: Call, call: Call) -> None:
    assert "Mine" in succeed("check", "mine.py").stdout
    (folder / "bad.py").write_text(METHOD.replace("trim", "label"))
    wrong = call("check", "bad.py")
    assert wrong.exit_code == 2
    assert "Mine.label: a config could not give this field a value" in " ".join(wrong.stderr.split())


def test_a_files_task_deals_the_rows(folder: Path, config_file: Path, succeed: Call, call: Call) -> None:
    shown = succeed("partition", config_file, "--set", "task={path: named.py, suffix: -s}", "--json").stdout
    assert "cats-s" in shown
    (folder / "run.yaml").write_text(config_file.read_text() + "task: {path: named.py, suffix: -s}\n")
    assert call("partition", "run.yaml").exit_code == 2
    assert "cats-s" in succeed("partition", "run.yaml", "--allow-file", "named.py", "--json").stdout


@pytest.mark.skipif("sys.platform in ('win32', 'darwin')", reason="the list lies elsewhere")
def test_allow_says_what_it_wrote_and_where(folder: Path, succeed: Call, call: Call) -> None:
    place = folder / "settings/fedelta/allowed_files"
    assert str(place) in "".join(succeed("allow").stderr.split())
    assert not place.exists()
    said = succeed("allow", "mine.py", "named.py").stderr
    assert [line.split("  ")[0] in said.replace("\n", "") for line in place.read_text().splitlines()] == [True, True]
    assert call("allow", "none.py").exit_code == 2
