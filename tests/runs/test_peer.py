"""The folder of a node: what it goes on from, and what it does not touch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fedelta.engines import checkpoint
from fedelta.exchange.parcels import Parcel
from fedelta.runs.config import ConfigError, load_config
from fedelta.runs.config.node import Node
from fedelta.runs.folder import RunFolder
from fedelta.runs.peer import opened
from fedelta.runs.peers_here import roster_of_config
from fedelta.runs.runner import run


class Alone:
    """The post of a node whose neighbours say hello once, and fall silent."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self._greetings = dict.fromkeys(names, True)
        self._hello = Parcel("hello", {})

    def send(self, to: int, parcel: Parcel) -> None: ...

    def announce(self, parcel: Parcel) -> None:
        self._hello = parcel

    def take(self, seconds: float) -> tuple[int, Parcel] | None:
        if not self._greetings:
            return None
        k, _ = self._greetings.popitem()
        return k, Parcel("hello", {**self._hello.header, "sender": k, "t": 0})

    def close(self) -> None: ...


@pytest.fixture
def asked(tiny_config: dict[str, Any]) -> dict[str, Any]:
    task = {"name": "classification", "labels": ["cats", "dogs"]}
    return {**tiny_config, "task": task, "federation": {"rounds": 2, "topology": "ring", "engine": "sequential"}}


def records(asked: dict[str, Any], folder: Path, stop: int | None = None) -> list[int]:
    """The rounds that a node without neighbours runs in a folder, until it is killed after round `stop` is on disk."""
    config = load_config(asked)
    roster = roster_of_config(config, ["tls/h:1", "tls/h:2", "tls/h:3"]).model_copy(update={"silence": 0.05})
    node = Node(name="node-1", state=str(folder.parent / "state"))
    found: list[int] = []
    with opened(config, node, roster, folder) as going:
        for record in going.records(Alone):
            found.append(record["t"])
            if record["t"] == stop:
                break
    return found


def test_a_node_goes_on_from_its_checkpoint_by_the_same_call(asked: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "node"
    assert records(asked, folder, stop=0) == [0]
    assert records(asked, folder) == [1]
    assert [record["t"] for record in RunFolder(folder).records()] == [0, 1]
    assert all(record["cohort"] == [1] for record in RunFolder(folder).records())


def test_a_node_that_was_killed_before_its_first_checkpoint_begins_again(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "node"

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(checkpoint, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            records(asked, folder)
    assert [record["t"] for record in RunFolder(folder).records()] == [0]
    assert records(asked, folder) == [0, 1]
    assert [record["t"] for record in RunFolder(folder).records()] == [0, 1]


def test_a_folder_of_another_run_stays_as_it_is(asked: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run({**asked, "output": str(folder)})
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"holds the rounds of a run with another .*method.*: give this one another --output"):
        records(asked, folder)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    begun = tmp_path / "begun"
    records(asked, begun, stop=0)
    with pytest.raises(ConfigError, match="holds the rounds of a run with another seed"):
        records({**asked, "seed": 5}, begun)
