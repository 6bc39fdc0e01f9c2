"""The page on real sites: its commands are run in their order, with its server's app killed on the way, and end as it says."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PORTS = ("9092", "9094", "9095")
"""The page's ports, in whose place the test has free ones."""


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that makes the page's last section."""
    monkeypatch.syspath_prepend(REPOSITORY / "tools")
    return importlib.import_module("places")


class Reader:
    """A reader of the page in a folder, with a terminal for each program that stays.

    Args:
        folder: where the commands are run.
        deployment: the module of that name.
    """

    def __init__(self, folder: Path, deployment: ModuleType) -> None:
        self.folder, self.deployment = folder, deployment
        self.ports = {port: str(deployment.free_port()) for port in PORTS}
        self.processes = deployment.Processes(folder, deployment.environment(folder / "flower"))
        self.exports = ""
        self.staying: list[str] = []

    def does(self, where: str, commands: str) -> None:
        """Runs a block; returns when it has ended, or when the program that stays is ready."""
        for port, own in self.ports.items():
            commands = commands.replace(port, own)
        if where.startswith("everywhere"):
            self.exports = commands
        elif where.endswith("stays"):
            self._starts(where.partition(",")[0], commands)
        elif where.endswith("until the run has ended"):
            self._loses_the_server(commands)
        else:
            self._waits_for(commands)

    def ends_all(self) -> None:
        """Presses Ctrl-C in each terminal, the nodes' first; all must end by themselves."""
        for name in sorted(self.staying, key=lambda name: "supernode" not in name):
            self.processes.kill(name, signal.SIGINT)

    def _waits_for(self, commands: str) -> None:
        done = subprocess.run(
            self._bash(commands), cwd=self.folder, env=self.processes.environment, capture_output=True, text=True, timeout=500
        )
        said = f"{commands}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        assert done.returncode == 0, said
        assert "ServerApp raised an exception" not in done.stdout, said

    def _starts(self, place: str, commands: str) -> None:
        """Starts a program in a terminal of its own, and waits until it is there."""
        name = f"{commands.split()[0]}-{place}"
        self.processes.start(name, self._bash(f"exec {commands}"))
        self.staying.append(name)
        if name.startswith("flower-superlink"):
            port = int(self.ports["9092"])
            self.processes.ready(name, lambda: self.deployment.listens(port), "a SuperLink that listens")
        elif name.startswith("fedelta"):
            self.processes.ready(name, (self.folder / place / "state/site.sock").exists, f"a worker at {place}")

    def _loses_the_server(self, commands: str) -> None:
        """Kills the app of a server that has played a round."""
        self.processes.start("first-try", self._bash(commands))
        records = self.folder / "server/run/rounds.jsonl"
        self.deployment.until(lambda: records.is_file() and records.read_bytes().count(b"\n"), "the first round")
        apps = self.processes.children("flwr-serverapp")
        assert apps
        for app in apps:
            os.kill(app, signal.SIGKILL)
        self.processes.kill("first-try")  # what follows the log

    def _bash(self, commands: str) -> list[str]:
        return ["bash", "-euc", self.exports + commands]


@pytest.mark.deployed
def test_page(deployment: ModuleType, places: ModuleType, minilm: Path, tmp_path: Path) -> None:
    reader = Reader(tmp_path, deployment)
    with reader.processes:
        for where, commands in places.blocks(places.PAGE.read_text(encoding="utf-8")):
            reader.does(where, commands)
        reader.ends_all()
    assert (tmp_path / "server/run/rounds.jsonl").read_text().count("\n") == 3


def test_only_addresses_differ_at_places_of_their_own(places: ModuleType) -> None:
    text = places.PAGE.read_text(encoding="utf-8")
    elsewhere = places.BLOCK.findall(text.partition(places.BEGIN)[2])
    trial = ("for the trial", "server, after a death")
    here = [block for block in places.blocks(text) if block[0] not in trial]
    assert len(elsewhere) == len(here) > 10
    for (where, there), (same, commands) in zip(elsewhere, here, strict=True):
        assert where == same
        back = re.sub(r"\w+\.example:(?=\w+/)", "", there).replace("scp ", "cp ")
        assert back.replace("server.example", "localhost").replace("0.0.0.0", "127.0.0.1") == commands
    assert "localhost" not in "".join(there for _, there in elsewhere)


def test_every_place_is_one_that_the_section_knows(places: ModuleType) -> None:
    known = re.compile(r"(everywhere|server|north|south|for the trial)(, .*)?")
    odd = [where for where, _ in places.blocks(places.PAGE.read_text(encoding="utf-8")) if not known.fullmatch(where)]
    assert not odd
