"""The page on trackers: its Python, with trackers that only listen."""

import re
import shutil
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "track.md"
BLOCKS = re.findall(r"^```py\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


class Tracked:
    """A tracked run that remembers the rounds that it was told of."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def log(self, values: Mapping[str, float], step: int) -> None:
        assert values["test/accuracy"] <= 1.0
        self.steps.append(step)


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch) -> Tracked:
    found = Tracked()

    def nothing(*_: Any, **__: Any) -> None:
        pass

    names: dict[str, dict[str, Any]] = {
        "wandb": {"init": lambda **_: nullcontext(found)},
        "trackio": {"init": nothing, "log": found.log, "finish": nothing},
        "mlflow": {"start_run": lambda **_: nullcontext(), "log_param": nothing, "log_metrics": found.log},
    }
    for name, values in names.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    return found


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_each_block_runs(
    code: str, tracked: Tracked, tiny_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    shutil.rmtree("runs", ignore_errors=True)
    Path("config.yaml").write_text(yaml.safe_dump(tiny_config), encoding="utf-8")
    exec(compile(code, str(PAGE), "exec"), {"__name__": "track"})
    assert (tmp_path / "runs" / "tiny" / "rounds.jsonl").is_file()
    assert tracked.steps == ([0, 1] if "scalars" in code else [])


def test_the_page_has_each_tracker():
    assert len(BLOCKS) == 5
    assert all(any(f"import {name}\n" in code for code in BLOCKS) for name in ("wandb", "trackio", "mlflow"))
