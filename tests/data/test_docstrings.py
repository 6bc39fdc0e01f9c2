"""The embedded text set: the same rows each time, no module in two splits, and a cache that may break."""

import collections
import gzip
import logging
import re
import sys
import textwrap

import pytest

from fedelta.data import docstrings
from fedelta.data.prose import GIVEAWAYS, likeness


@pytest.fixture
def few(monkeypatch):
    """Three small groups, so that a cold build takes a second."""
    groups = {"classes": ("networkx.classes", "networkx.utils"), "chance": ("sympy.stats",), "mail": ("stdlib.email",)}
    monkeypatch.setattr(docstrings, "GROUPS", groups)


@pytest.mark.usefixtures("few")
def test_rows_are_the_same_each_time():
    rows = docstrings.build()
    assert len(rows) > 200
    assert rows == docstrings.build()
    assert {row["label"] for row in rows} == {"classes", "chance", "mail"}
    assert {row["package"] for row in rows} == {"networkx", "sympy", "stdlib"}


@pytest.mark.usefixtures("few")
def test_no_text_twice_and_no_module_in_two_splits():
    rows = docstrings.build()
    splits = collections.defaultdict(set)
    for row in rows:
        splits[row["module"]].add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert len({likeness(row["text"]) for row in rows}) == len(rows)


@pytest.mark.usefixtures("few")
def test_no_name_gives_a_group_away():
    giveaway = re.compile(rf"\b({'|'.join(GIVEAWAYS)})\b", re.IGNORECASE)
    for row in docstrings.build():
        assert not giveaway.search(row["text"]), row["text"]
        assert not re.search(r"\w_\w|\bhttps?:|>>>|`", row["text"]), row["text"]


@pytest.mark.usefixtures("few")
def test_rows_of_a_group_in_a_split_are_capped(monkeypatch):
    monkeypatch.setattr(docstrings, "CAPS", {"train": 20, "validation": 3, "test": 5})
    counts = collections.Counter((row["label"], row["split"]) for row in docstrings.build())
    assert counts["classes", "train"] == counts["chance", "train"] == counts["mail", "train"] == 20
    assert max(counts[label, "test"] for label in docstrings.GROUPS) <= 5


@pytest.mark.usefixtures("few")
def test_the_cache_is_used_and_made_again_when_broken(tmp_path, monkeypatch, caplog):
    first = docstrings.load(tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for broken in (whole[:100], b"no gzip", gzip.compress(b"no json")):
        file.write_bytes(broken)
        with caplog.at_level(logging.WARNING):
            assert docstrings.load(tmp_path) == first
        assert "cannot be read" in caplog.text
        assert file.read_bytes() == whole
        caplog.clear()
    monkeypatch.setattr(docstrings, "build", lambda: pytest.fail("built although cached"))
    assert docstrings.load(tmp_path) == first
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.usefixtures("few")
def test_a_folder_that_cannot_be_written_is_done_without(tmp_path, caplog):
    (tmp_path / "file").touch()
    assert docstrings.load(tmp_path / "file" / "cache")["train"]
    assert "not cached" in caplog.text


@pytest.mark.usefixtures("few")
def test_nothing_is_imported(tmp_path):
    known = {name for name in sys.modules if name.startswith(("networkx", "sympy.stats"))}
    docstrings.load(tmp_path)
    assert {name for name in sys.modules if name.startswith(("networkx", "sympy.stats"))} == known


def test_the_key_follows_versions(monkeypatch):
    before = docstrings._cache_key()
    monkeypatch.setattr(docstrings.importlib.metadata, "version", lambda name: "0")
    assert docstrings._cache_key() != before


def test_an_absent_package_is_named(monkeypatch):
    monkeypatch.setattr(docstrings, "GROUPS", {"none": ("no_such_package",)})
    with pytest.raises(ModuleNotFoundError, match="pip install no_such_package"):
        docstrings.build()
    monkeypatch.setattr(docstrings, "GROUPS", {"none": ("stdlib.no_such_module",)})
    with pytest.raises(FileNotFoundError, match="group 'none'"):
        docstrings.build()


def test_files_that_do_not_parse_give_nothing(tmp_path):
    (tmp_path / "a.py").write_text("def {{ name }}():")
    assert list(docstrings._docstrings(tmp_path / "a.py")) == []


def test_docstrings_inside_branches_are_found(tmp_path):
    source = """
        "A."
        try:
            class B:
                "B."
                if 1:
                    def c(self):
                        "C."
        except OSError:
            def d():
                "D."
    """
    (tmp_path / "a.py").write_text(textwrap.dedent(source))
    assert sorted(docstrings._docstrings(tmp_path / "a.py")) == ["A.", "B.", "C.", "D."]


@pytest.mark.slow
def test_the_whole_set_is_large_and_balanced():
    found = docstrings.load()
    assert 2800 <= len(found["train"]) <= 4000
    for part in found.values():
        counts = collections.Counter(row["label"] for row in part)
        assert len(counts) == 4
        assert max(counts.values()) <= 0.35 * len(part)
    modules = [{row["module"] for row in part} for part in found.values()]
    assert sum(map(len, modules)) == len(set.union(*modules))
