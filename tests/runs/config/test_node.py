"""Node files: what belongs to one machine, and the bounds that its owner sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedelta.runs.config import ConfigError
from fedelta.runs.config.node import MOST_MEMORY, Allow, amount_of, node_from, read_node

FILE = """
name: north
data: rows/own.jsonl
test: /elsewhere/test.jsonl
state: state
device: cpu
allow:
  methods: [fedavg, flora]
  max_steps: 100
  max_rank: 8
  max_memory: 64MB
  base: 0123456789abcdef
"""


def test_a_node_file_says_all_of_one_site_and_its_paths_are_its_folders(tmp_path: Path) -> None:
    (tmp_path / "north.yaml").write_text(FILE, encoding="utf-8")
    node = read_node(tmp_path / "north.yaml")
    assert (node.name, node.device, node.client) == ("north", "cpu", None)
    assert node.data == str(tmp_path / "rows/own.jsonl")
    assert node.test == "/elsewhere/test.jsonl"
    assert node.folder() == tmp_path / "state"
    assert node.allow.most_memory() == 64_000_000
    assert node.allow.methods == ["fedavg", "flora"]


def test_without_bounds_there_is_one_on_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    node = node_from({"name": "north"})
    assert node.allow == Allow()
    assert node.allow.most_memory() == MOST_MEMORY
    assert node.folder().parts[-2:] == ("sites", "north")


AMOUNTS = {"1": None, 5: 5, "64MB": 64_000_000, "1.5 GiB": 3 * 2**29, "2kb": 2000, "7B": 7, "MB": None, 0: None, "0MB": None}


@pytest.mark.parametrize(("text", "bytes_"), AMOUNTS.items())
def test_amounts_of_memory(text: Any, bytes_: int | None) -> None:
    if bytes_ is None:
        with pytest.raises(ValueError, match="is no amount of memory"):
            amount_of(text)
    else:
        assert amount_of(text) == bytes_


WRONG = [
    ({}, "node file: name"),
    ({"name": "../up"}, "node file: name"),
    ({"name": "a", "alow": {}}, "unknown key 'alow'; did you mean 'allow'"),
    ({"name": "a", "allow": {"max_stpes": 1}}, "unknown key 'allow.max_stpes'; did you mean 'allow.max_steps'"),
    ({"name": "a", "allow": {"max_rank": 0}}, "allow.max_rank"),
    ({"name": "a", "allow": {"max_memory": "much"}}, "allow.max_memory: 'much' is no amount"),
    ({"name": "a", "allow": {"max_steps": True}}, "allow.max_steps: must not be true"),
]


@pytest.mark.parametrize(("values", "reason"), WRONG)
def test_a_wrong_key_is_named(values: Any, reason: str) -> None:
    with pytest.raises(ConfigError) as error:
        node_from(values)
    assert reason in str(error.value)


def test_a_node_file_that_is_not_there_or_no_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no node file at"):
        read_node(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("- a\n- b\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bad\.yaml must hold keys and values"):
        read_node(tmp_path / "bad.yaml")


def test_a_repeated_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "north.yaml"
    path.write_text("name: north\nallow:\n  max_steps: 10\n  max_steps: 1000\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"north\.yaml, line 4: the key 'max_steps' is there already, in line 3"):
        read_node(path)
