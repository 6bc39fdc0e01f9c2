"""Processes of nodes on this machine: what they say is heard, and that they have ended."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from fedelta.runs import peers_here
from fedelta.runs.config.roster import Roster, roster_from
from fedelta.runs.peers_here import Nodes

PAIR: dict[str, Any] = {"nodes": [{"name": name, "rank": 1, "examples": 1} for name in ("a", "b")]}


def started(monkeypatch: pytest.MonkeyPatch, folder: Path, program: str, relay: bool = False) -> tuple[Nodes, Roster]:
    """Nodes that run a program in place of the command; its arguments are those of the command."""
    roster = roster_from({**PAIR, "relay": {"endpoint": "tls/h:1"}} if relay else PAIR)
    monkeypatch.setattr(peers_here, "FEDELTA", (sys.executable, "-c", program))
    return Nodes(folder, roster), roster


def test_a_line_that_is_no_record_keeps_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes, _ = started(monkeypatch, tmp_path, "print('Loading weights'); print('{\"t\": 0}')")
    with nodes:
        found = list(nodes.turns())
    assert sorted(found, key=str) == [("a", None), ("a", {"t": 0}), ("b", None), ("b", {"t": 0})]
    assert "a said what is no record: Loading weights" in caplog.text


def test_a_relay_that_ends_is_said_while_nodes_still_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wait = "import signal, sys; sys.argv[1] == 'relay' and sys.exit(3); signal.pause()"
    nodes, _ = started(monkeypatch, tmp_path, wait, relay=True)
    with nodes:
        assert next(nodes.turns()) == ("relay", None)
        assert nodes.running["relay"].wait() == 3


def test_processes_that_have_started_end_if_another_cannot_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "b.log").mkdir()
    nodes, _ = started(monkeypatch, tmp_path, "import signal; signal.pause()")
    with pytest.raises(IsADirectoryError), nodes:
        pass
    assert nodes.running["a"].poll() is not None
