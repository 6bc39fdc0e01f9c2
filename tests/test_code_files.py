"""A user's own Python file: what it may hold, and that what runs is what was read."""

import json
import os
import sys
from pathlib import Path

import pytest

from fedelta.code_files import LARGEST, CodeFile, digest_of_class, read_code
from fedelta.method import Method
from fedelta.methods import method_in
from fedelta.tasks.task import Task

MINE = """
from dataclasses import dataclass
from fedelta.methods.fedavg import FedAvg

@dataclass(frozen=True, kw_only=True)
class Mine(FedAvg):
    trim: float = {trim}
"""


def file_with(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_gives_its_one_class_and_the_digest_of_what_ran(tmp_path: Path) -> None:
    code = read_code(file_with(tmp_path, MINE.format(trim=0.25)))
    cls = code.class_of(Method)
    assert cls.__name__ == "Mine"
    assert cls().trim == 0.25  # pyright: ignore[reportAttributeAccessIssue]
    assert digest_of_class(cls) == code.digest
    assert digest_of_class(Method) is None


def test_equal_files_give_the_same_class_and_others_another(tmp_path: Path) -> None:
    one, same = (file_with(tmp_path, MINE.format(trim=0.5), name) for name in ("a.py", "b.py"))
    other = file_with(tmp_path, MINE.format(trim=0.75), "c.py")
    assert read_code(one).class_of(Method) is read_code(same).class_of(Method)
    assert read_code(one).class_of(Method) is not read_code(other).class_of(Method)


def test_reading_runs_nothing_and_a_link_that_is_turned_in_between_has_no_effect(tmp_path: Path) -> None:
    mark, link = tmp_path / "mark", tmp_path / "link.py"
    good = file_with(tmp_path, MINE.format(trim=1.0), "good.py")
    bad = file_with(tmp_path, f"from pathlib import Path\nPath({str(mark)!r}).touch()\n{MINE.format(trim=2.0)}", "bad.py")
    read_code(bad)
    link.symlink_to(good)
    code = read_code(link)
    link.unlink()
    link.symlink_to(bad)
    assert code.class_of(Method)().trim == 1.0  # pyright: ignore[reportAttributeAccessIssue]
    assert code.digest == read_code(good).digest
    assert not mark.exists()


def test_a_file_called_as_a_module_of_python_hides_none(tmp_path: Path) -> None:
    read_code(file_with(tmp_path, MINE.format(trim=3.0), "json.py")).class_of(Method)
    assert sys.modules["json"] is json


def test_what_lies_beside_a_file_is_not_imported(tmp_path: Path) -> None:
    file_with(tmp_path, "", "beside_it.py")
    with pytest.raises(ValueError, match=r"mine\.py cannot be imported: ModuleNotFoundError: .*beside_it"):
        read_code(file_with(tmp_path, "import beside_it\n")).class_of(Method)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must define one Method with all that is abstract in it, and defines none"),
        (MINE.format(trim=0) + MINE.format(trim=0).replace("Mine", "Other"), "and defines Mine, Other"),
        ("from fedelta import Method\nclass Half(Method):\n    pass\n", "and defines none"),
        ("def broken(:\n", "cannot be imported: SyntaxError"),
        ("raise SystemExit(0)\n", "cannot be imported: SystemExit: 0"),
        ("x = '\0'\n", "cannot be imported: SyntaxError"),
    ],
)
def test_a_file_that_is_no_method_says_why(text: str, message: str, tmp_path: Path) -> None:
    before = set(sys.modules)
    with pytest.raises(ValueError, match=message):
        read_code(file_with(tmp_path, text)).class_of(Method)
    left = {name for name in set(sys.modules) - before if name.startswith("_fedelta_code_")}
    assert not any("cannot be imported" in message for _ in left), "a module that failed is left behind"


def test_other_things_than_files_are_refused_by_name(tmp_path: Path) -> None:
    folder, pipe, large = tmp_path / "folder.py", tmp_path / "pipe.py", tmp_path / "large.py"
    folder.mkdir()
    os.mkfifo(pipe)
    large.write_bytes(b"#" * (LARGEST + 1))
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.py"):
        read_code(tmp_path / "none.py")
    for path, message in (
        (folder, "is a folder"),
        (pipe, "is no regular file"),
        (large, "larger than 1 MiB"),
        (tmp_path, "must end in .py"),
    ):
        with pytest.raises(ValueError, match=message):
            read_code(path)


def test_a_task_is_no_method(tmp_path: Path) -> None:
    code = CodeFile(tmp_path / "mine.py", MINE.format(trim=4.0).encode())
    with pytest.raises(ValueError, match="must define one Task"):
        code.class_of(Task)


@pytest.mark.parametrize("word", ["name", "path", "label", "set", "tune"])
def test_a_field_of_a_reserved_name_is_refused_at_the_definition_and_where_it_is_inherited(word: str, tmp_path: Path) -> None:
    own = MINE.format(trim=5.0).replace("trim", word)
    with pytest.raises(ValueError, match=rf"Mine\.{word}: .* call the field otherwise, such as {word}_value"):
        method_in(read_code(file_with(tmp_path, own)))
    mixin = "@dataclass(frozen=True, kw_only=True)\nclass Mixin:\n    WORD: float = 0.0\n\n@dataclass".replace("WORD", word)
    inherited = MINE.format(trim=6.0).replace("@dataclass", mixin, 1).replace("Mine(FedAvg)", "Mine(FedAvg, Mixin)")
    with pytest.raises(ValueError, match=rf"Mine\.{word}: "):
        method_in(read_code(file_with(tmp_path, inherited)))
