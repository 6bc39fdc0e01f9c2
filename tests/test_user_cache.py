"""The user's cache folder: where it is, and that what is written there is whole."""

from pathlib import Path

import pytest

from fedelta.user_cache import cache_folder, write_first, write_whole


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("FEDELTA_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("FEDELTA_CACHE")
    assert cache_folder().name == "fedelta"


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path):
    file = tmp_path / "new" / "file"
    for content in (b"first", b"second"):
        write_whole(file, content)
        assert file.read_bytes() == content
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"):
        write_whole(tmp_path / "folder", b"")  # a folder stands in its place
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "inside", "new"]


def test_of_several_that_write_a_file_first_the_first_does(tmp_path: Path):
    for content in (b"first", b"second"):
        write_first(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_system_without_links_takes_a_new_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_links(source: Path, target: Path) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr("os.link", no_links)
    write_first(tmp_path / "file", b"first")
    assert (tmp_path / "file").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
