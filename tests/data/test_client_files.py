"""The files of clients, and the names that they get."""

import os
from pathlib import Path

import pytest

from fedelta.data.client_files import by_name, matching


@pytest.fixture
def sites(tmp_path: Path) -> Path:
    """A folder with three files of clients, one of them further down, and a folder that looks like a file."""
    for name in ("south.jsonl", "north.jsonl.gz", "deep/west.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "folder.jsonl").mkdir()
    return tmp_path


def test_a_pattern_means_files_in_the_order_of_their_paths(sites: Path):
    assert matching("*.jsonl*", sites) == [str(sites / "north.jsonl.gz"), str(sites / "south.jsonl")]
    assert matching("**/*.jsonl", sites) == [str(sites / "deep/west.jsonl"), str(sites / "south.jsonl")]
    assert matching(f"{sites}/*.jsonl*", Path("/nowhere")) == matching("*.jsonl*", sites)


def test_a_folder_whose_name_looks_like_a_pattern_is_no_pattern(tmp_path: Path):
    folder = tmp_path / "[a]*"
    folder.mkdir()
    for name in ("x.csv", "y.csv"):
        (folder / name).write_text("")
    assert [os.path.basename(file) for file in matching("*.csv", folder)] == ["x.csv", "y.csv"]


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("*.csv", "matches no file, taken from"),
        ("s*.jsonl", "matches one file alone"),
        ("south.jsonl", "is one file: give a pattern"),
    ],
)
def test_a_pattern_that_means_no_clients_is_refused(pattern: str, reason: str, sites: Path):
    with pytest.raises(ValueError, match=reason):
        matching(pattern, sites)


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a/north.jsonl", "b/süd.jsonl.gz"], ["north", "süd"]),
        (["north/train.csv", "south/train.csv"], ["north", "south"]),
        (["x/a.csv", "x/b.csv", "y/a.csv"], ["x-a", "x-b", "y-a"]),
        (["x/a.csv", "z/x/a.csv"], ["0", "1"]),
        (["a\nb.csv", "c.csv"], ["0", "1"]),
        (["site.1.jsonl", "site.2.jsonl"], ["site.1", "site.2"]),
    ],
)
def test_a_file_is_called_by_what_tells_it_apart(files: list[str], names: list[str]):
    assert by_name(files) == dict(zip(names, files, strict=True))
