"""Paths of a config: from its own folder if they stand in a file, from the working directory if a person types them."""

from pathlib import Path

import pytest

from fedelta.runs.config import read_config
from fedelta.runs.config.paths import relative, resolved


@pytest.fixture
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "study").mkdir()
    path = tmp_path / "study/run.yaml"
    path.write_text("method: {path: ./mine.py, trim: 1}\ntask: tasks/stars.py\n")
    monkeypatch.chdir(tmp_path)
    return path


def test_a_files_paths_are_relative_to_it_from_wherever_it_is_read(config_file: Path, tmp_path: Path) -> None:
    for source in (config_file, Path("study/run.yaml"), "study/run.yaml"):
        found = read_config(source)
        assert found.method == {"path": str(tmp_path / "study/mine.py"), "name": "mine.py", "trim": 1}
        assert found.task == {"path": str(tmp_path / "study/tasks/stars.py"), "name": "stars.py"}
        assert read_config(found) == found


@pytest.mark.parametrize("change", ["method=mine.py", "method.path=mine.py", "method.name=mine.py"])
def test_what_is_typed_is_relative_to_the_working_directory(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_config({}, [change]).method["path"] == str(tmp_path / "mine.py")
    assert read_config({"method": "mine.py"}).method["path"] == str(tmp_path / "mine.py")


def test_names_and_what_is_wrong_stay_as_they_are() -> None:
    raw = {"method": "fedavg", "task": {"name": "classification", "path": 3}, "data": 5, 1: [2]}
    assert resolved(raw, Path("/elsewhere")) == raw  # pyright: ignore[reportArgumentType]


def test_only_paths_become_relative_whatever_a_text_begins_with() -> None:
    placed = {
        "task": {"name": "instruction", "prompt": "/no_think {instruction}", "labels": ["/r/python"]},
        "data": {"clients": ["/study/a.jsonl", "/study/b.jsonl"], "stratify": "/label"},
        "training": {"trainer": "/study/site.py:make"},
        "data.source": "/study/rows.jsonl",
        "method": {"name": "/study/mine.py", "note": "/study/mine.py"},
    }
    assert relative(placed, Path("/study/runs")) == {
        "task": placed["task"],
        "data": {"clients": ["../a.jsonl", "../b.jsonl"], "stratify": "/label"},
        "training": {"trainer": "../site.py:make"},
        "data.source": "../rows.jsonl",
        "method": {"name": "../mine.py", "note": "/study/mine.py"},
    }
