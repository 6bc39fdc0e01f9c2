"""Names of files, their aliases and spellings, and the messages about names that are not known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedelta.method import Method
from fedelta.methods import list_methods, method_class
from fedelta.registry import (
    aliases_in,
    check_name,
    check_settings,
    class_in,
    file_named,
    find_name,
    names_in,
    nearest,
    one_spelling,
)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package whose files raise when they are imported, but for `sound` and `double`."""
    name = f"wing_of_{tmp_path.name}"
    folder = tmp_path / name
    (folder / "helpers").mkdir(parents=True)
    files = {
        "__init__": "raise RuntimeError('the package itself is not imported to list it')",
        "helpers/__init__": "",
        "_template": "raise RuntimeError",
        "loud": "class Loud:\n    aliases: tuple[str, ...] = ('shouting_one',)\nraise RuntimeError('imported')",
        "two_words": "class TwoWords:\n    aliases = ('pair',)\n    other = 1\n",
    }
    for file, text in files.items():
        (folder / f"{file}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_names_and_aliases_are_found_without_an_import(package: str) -> None:
    assert names_in(package) == ("loud", "two_words")
    assert aliases_in(package) == {"shouting_one": "loud", "pair": "two_words"}
    assert package not in sys.modules


@pytest.mark.parametrize("name", ["two_words", "TwoWords", "two-words", "twowords", "TWO_WORDS", "pair", "Pair"])
def test_a_name_is_found_however_it_is_spelled(package: str, name: str) -> None:
    assert find_name("thing", package, name) == "two_words"


def test_an_alias_keeps_its_name_in_one_spelling(package: str) -> None:
    assert one_spelling(package, "Two-Words") == "two_words"
    assert one_spelling(package, "shoutingOne") == "shouting_one"
    assert one_spelling(package, "Three-Words") == "Three-Words"
    assert file_named(package, "Three-Words") is None


def test_an_unknown_file_is_answered_with_the_nearest_name_or_alias(package: str) -> None:
    with pytest.raises(ValueError, match=r"'TwoWodrs'; did you mean 'two_words'\? There are loud, two_words$"):
        find_name("thing", package, "TwoWodrs")
    with pytest.raises(ValueError, match="did you mean 'shouting_one'"):
        find_name("thing", package, "shoutingone1")


def test_listing_methods_and_tasks_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from fedelta.registry import aliases_in, find_name, names_in\n"
        "assert 'flexlora' in names_in('fedelta.methods') and names_in('fedelta.tasks')\n"
        "assert find_name('method', 'fedelta.methods', 'FedIT') == 'fedavg'\n"
        "assert not {'torch', 'numpy', 'fedelta.methods', 'fedelta.tasks'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_aliases_read_from_the_files_are_those_of_the_classes() -> None:
    declared = {alias: name for name in list_methods() for alias in method_class(name).aliases}
    assert aliases_in("fedelta.methods") == declared
    assert len(declared) == sum(len(method_class(name).aliases) for name in list_methods())
    assert not set(declared) & set(list_methods())


@pytest.mark.parametrize("name", ["FlexLoRA", "flex-lora", "flex_lora", "FLEXLORA"])
def test_a_method_is_found_however_it_is_spelled(name: str) -> None:
    assert method_class(name) is method_class("flexlora")


def test_a_file_holds_one_class() -> None:
    with pytest.raises(ImportError, match=r"fedelta\.methods\._template must define one Merge, and defines 0"):
        class_in("fedelta.methods", "_template", type("Merge", (), {}))
    with pytest.raises(ImportError, match=r"fedelta\.optim must define one object, and defines \d+"):
        class_in("fedelta", "optim", object)
    assert issubclass(class_in("fedelta.methods", "fedavg", Method), Method)


def test_messages_name_the_nearest_and_all_there_are() -> None:
    check_name("fruit", "pear", ["apple", "pear"])
    with pytest.raises(ValueError, match=r"^no fruit is called 'paer'; did you mean 'pear'\? There are apple, pear$"):
        check_name("fruit", "paer", ["apple", "pear"])
    check_settings("basket", ["size"], ["size"])
    with pytest.raises(ValueError, match=r"^basket has no setting 'siz'; did you mean 'size'\? It has size$"):
        check_settings("basket", ["size", "siz"], ["size"])
    with pytest.raises(ValueError, match=r"^basket has no handle 'left'; it has none$"):
        check_settings("basket", ["left"], [], kind="handle")
    assert nearest("Flex-LoRA", ["flexlora", "fedavg"]) == "; did you mean 'flexlora'?"
    assert not nearest("xyz", ["flexlora"])
