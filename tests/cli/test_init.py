"""`fedelta init` writes a config, says what it found, and writes over nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from fedelta.runs.config import load_config

Call = Callable[..., Result]


def test_init_writes_a_config_and_says_what_comes_next(
    succeed: Call, call: Call, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    result = succeed("init", rows_file, "-o", "my configs/first.yaml", "--schema")
    assert "fedelta run 'my configs/first.yaml'" in result.stdout
    assert "classification of 90 rows: cats 67%, dogs 33%" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    config = load_config("my configs/first.yaml")
    assert config.task["label"] == "label"
    assert config.data.source == str(rows_file)
    first, *_ = Path("my configs/first.yaml").read_text().splitlines()
    assert first == "# yaml-language-server: $schema=.config.schema.json"
    assert "properties" in json.loads(Path("my configs/.config.schema.json").read_text())
    again = call("init", rows_file, "-o", "my configs/first.yaml")
    assert again.exit_code == 2
    assert "is there already" in again.stderr
    succeed("init", rows_file, "-o", "my configs/first.yaml", "--force", "--label", "label")
    assert call("init", rows_file, "-o", tmp_path).exit_code == 2
    assert "split" in succeed("partition", "my configs/first.yaml").stdout.lower()


def test_nothing_is_written_for_data_that_cannot_be_used(call: Call, tmp_path: Path):
    (tmp_path / "rows.csv").write_text("text\none\ntwo\n")
    result = call("init", tmp_path / "rows.csv", "-o", tmp_path / "config.yaml")
    assert result.exit_code == 2
    assert "no column holds labels" in result.stderr
    assert result.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_what_stands_in_a_file_is_no_command_of_the_terminal(succeed: Call, tmp_path: Path):
    names = '"[red]te\x1b[31mxt[/]",label'
    lines = [f"[bold]a\x1b[2J text {k},{'[x]' if k % 2 else 'y'}" for k in range(40)]
    (tmp_path / "rows.csv").write_text("\n".join([names, *lines]) + "\n")
    result = succeed("init", tmp_path / "rows.csv", "-o", tmp_path / "config.yaml")
    assert "\x1b" not in result.stdout
    assert "[bold]a [2J text 0" in result.stdout
    assert "[x] 50%" in result.stdout
    assert "te\x1b[31mxt" in load_config(tmp_path / "config.yaml").task["text"]
