"""`fedelta partition` shows the split."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import Result

Call = Callable[..., Result]
Lines = Callable[[Result], list[Any]]


def test_partition_shows_and_draws_the_split(succeed: Call, json_lines: Lines, config_file: Path, tmp_path: Path):
    rows = json_lines(succeed("partition", config_file, "--json"))[0]
    assert [row["rank"] for row in rows] == [1, 2, 4]
    assert all(row["labels"].keys() == {"cats", "dogs"} for row in rows)
    assert "cats" in succeed("partition", config_file, "--plot", tmp_path / "split.png").stdout
    assert (tmp_path / "split.png").stat().st_size > 1000
