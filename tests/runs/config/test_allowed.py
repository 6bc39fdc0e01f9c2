"""Files that may run: those that a person names, and those of the user's own list."""

from hashlib import sha256
from pathlib import Path

import pytest

import fedelta
from fedelta.runs.config.allowed import allowed, allowed_list, remember
from fedelta.runs.config.read import named_files


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.py"
    path.write_text("x = 1\n")
    return path


def test_nothing_may_run_unless_it_is_named(mine: Path) -> None:
    digest = sha256(mine.read_bytes()).hexdigest()
    assert allowed() == frozenset()
    assert allowed([mine]) == allowed([str(mine)]) == allowed([digest]) == {digest}
    with pytest.raises(TypeError, match="put it in a list"):
        allowed(str(mine))
    with pytest.raises(FileNotFoundError, match="no file"):
        allowed(["none.py"])


@pytest.mark.skipif("sys.platform in ('win32', 'darwin')", reason="the list lies elsewhere")
def test_the_users_list_keeps_digests_and_forgets_an_edited_file(mine: Path) -> None:
    digest = remember(mine)
    assert remember(mine) == digest
    assert allowed_list() == mine.parent / "settings/fedelta/allowed_files"
    assert allowed_list().read_text() == f"{digest}  {mine}\n"  # as sha256sum writes it
    assert allowed() == {digest}
    mine.write_text("x = 2\n")
    assert sha256(mine.read_bytes()).hexdigest() not in allowed()
    allowed_list().write_text("nonsense\n\n" + allowed_list().read_text())
    assert allowed() == {digest}


def test_a_file_is_one_line_of_the_list_whatever_it_is_called(mine: Path) -> None:
    digest = remember(mine)
    allowed_list().write_text(allowed_list().read_text() + "typed by hand")
    other = mine.with_name("other.py")
    other.write_text("x = 3\n")
    both = {digest, remember(other)}
    assert allowed() == both
    forged = mine.with_name(f"a\n{'0' * 64}  b.py")
    forged.write_text("x = 4\n")
    with pytest.raises(ValueError, match="give the file another name"):
        remember(forged)
    assert "0" * 64 not in allowed()


@pytest.mark.parametrize(
    "change",
    [
        ["method=mine.py"],
        ["method={path: mine.py, trim: 1}"],
        ["method.path=mine.py"],
        ["method.name=./mine.py"],
        {"task": "mine.py"},
    ],
)
def test_changes_name_their_files(change: list[str] | dict[str, str], mine: Path) -> None:
    assert named_files(change) == [str(mine)]


@pytest.mark.parametrize("change", ["method=fedavg", "method.trim=mine.py", "name=mine.py", "data.source=mine.py", "method=3"])
def test_other_changes_name_none(change: str, mine: Path) -> None:
    assert named_files([change]) == []


def test_a_line_that_is_no_text_counts_for_nothing(mine: Path):
    digest = remember(mine)
    allowed_list().write_bytes(b"\xff\xfe\n" + allowed_list().read_bytes())
    assert allowed() == {digest}


def test_one_file_in_the_place_of_a_list_is_named(mine: Path):
    with pytest.raises(TypeError, match="allow_files takes a list of files, got"):
        fedelta.run({"method": {"path": str(mine)}}, allow_files=str(mine))
