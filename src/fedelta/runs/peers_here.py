"""Runs all nodes of a run without a server on this machine, to try it: certificates, a roster, a process for each node.

FOLDER/config.yaml    the config that all nodes read
FOLDER/roster.yaml    who they are, and their ports
FOLDER/certs/         certificates of a trial
FOLDER/<name>/        the run's folder of each node
FOLDER/<name>.log     what it said
"""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from fedelta.exchange import files
from fedelta.lowrank import dist2, norm
from fedelta.models.adapter_files import load_adapter
from fedelta.runs.config import ConfigError, RunConfig, dump_config, read_config
from fedelta.runs.config.allowed import Allowed
from fedelta.runs.config.checks import check
from fedelta.runs.config.own import Own
from fedelta.runs.config.roster import Roster, read_roster, roster_for, roster_from, write_roster
from fedelta.runs.deal import deal
from fedelta.runs.records import Record
from fedelta.tree import Adapter

logger = logging.getLogger("fedelta.runs")

RELAY = "relay"
"""The name of the process that is the relay."""

FEDELTA = (sys.executable, "-c", "from fedelta.cli import main; main()")
"""Starts the command in this very environment."""

LAST_WORDS = 10.0
"""Seconds in which a process that was asked to end must have ended."""


def names_for(config: RunConfig, count: int) -> list[str]:
    """Returns the nodes' names: those of `data.clients`, or node-0, node-1, ..."""
    return list(config.client_files()) or [f"node-{k}" for k in range(count)]


def roster_of_config(config: RunConfig, endpoints: Sequence[str | None], may_run: Allowed = frozenset()) -> Roster:
    """Returns the roster of a config whose rows all lie here; its endpoints say how many nodes there are.

    Raises:
        ConfigError: for another number of clients.
        ValueError, OSError, ImportError: for rows that cannot be read.
    """
    dealt = deal(config, check(config, Own(may_run)).task)
    if len(dealt.parts) != len(endpoints):
        key = "partition.clients" if config.data.clients is None else "data.clients"
        raise ConfigError(f"the config has {len(dealt.parts)} clients, not {len(endpoints)}: change that number, or {key}")
    sizes = [len(part) for part in dealt.parts]
    return roster_for(names_for(config, len(sizes)), dealt.ranks, sizes, endpoints)


def prepare(config: RunConfig, folder: Path, count: int, *, relayed: bool, may_run: Allowed = frozenset()) -> Roster:
    """Writes what the nodes need into a folder, or reads it where it is there already.

    Args:
        config: of the run.
        folder: of all nodes.
        count: of nodes.
        relayed: they only dial out, to a relay.
        may_run: digests of the Python files that may run.

    Raises:
        ConfigError: for a folder of another config or number of nodes.
    """
    from fedelta.engines.runners.sites.certificates import make_certificates

    roster_file, config_file = folder / "roster.yaml", folder / "config.yaml"
    if roster_file.is_file():
        roster = read_roster(roster_file)
        if read_config(config_file) != config or len(roster.nodes) != count or (roster.relay is not None) != relayed:
            raise ConfigError(f"{folder} holds nodes of another config: give another --output, or take away {folder}")
        return roster
    ports = free_ports(count + 1)
    roster = roster_of_config(config, [None if relayed else _here(port) for port in ports[:count]], may_run)
    if relayed:
        roster = roster_from({**roster.model_dump(), "relay": {"name": RELAY, "endpoint": _here(ports[count])}})
    make_certificates(folder / "certs", [*roster.names(), *([RELAY] if relayed else [])])
    files.commit(config_file, dump_config(config).encode())
    write_roster(roster_file, roster)
    return roster


@dataclass
class Nodes:
    """Starts a process for each node on this machine, and ends them all.

    Args:
        folder: as `prepare` left it.
        roster: of the nodes.
        may_run: digests of the Python files that may run.
    """

    folder: Path
    roster: Roster
    may_run: Allowed = frozenset()
    running: dict[str, subprocess.Popen[str]] = field(default_factory=dict[str, "subprocess.Popen[str]"])
    _said: queue.Queue[tuple[str, Record | None]] = field(default_factory=queue.Queue[tuple[str, "Record | None"]])

    def __enter__(self) -> Nodes:
        try:
            if self.roster.relay is not None:
                self._start(RELAY, ["relay", "--roster", str(self.folder / "roster.yaml")])
            for name in self.roster.names():
                self._start(name, command_for(self.folder, name, self.may_run))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(LAST_WORDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def turns(self) -> Iterator[tuple[str, Record | None]]:
        """Yields name and record of each round of any node as it ends, and name and None where a process ends.

        Ends with the last node; a relay that ends before is yielded, too.
        """
        left = set(self.roster.names())
        while left:
            name, record = self._said.get()
            if record is None:
                left.discard(name)
            yield name, record

    def _start(self, name: str, arguments: Sequence[str]) -> None:
        threads = str(max(1, (os.cpu_count() or 1) // len(self.roster.nodes)))
        with (self.folder / f"{name}.log").open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [*FEDELTA, *arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={"OMP_NUM_THREADS": threads, **os.environ},
                start_new_session=True,  # Ctrl-C reaches this process alone, which ends the others
            )
        self.running[name] = process
        if process.stdout is not None:
            threading.Thread(target=self._read, args=(name, process, process.stdout), daemon=True).start()

    def _read(self, name: str, process: subprocess.Popen[str], lines: IO[str]) -> None:
        for line in lines:
            try:
                self._said.put((name, json.loads(line)))
            except ValueError:  # of a library that prints: nobody may wait for a record that never comes
                logger.warning("%s said what is no record: %.200s", name, line.strip())
        process.wait()
        self._said.put((name, None))


def command_for(folder: Path, name: str, may_run: Allowed = frozenset()) -> list[str]:
    """Returns the arguments of the command that runs one node, or starts it again; files that may run go by their digests."""
    config, roster = str(folder / "config.yaml"), str(folder / "roster.yaml")
    return ["gossip", config, "--node", name, "--roster", roster, "--output", str(folder / name), *_leave(may_run), "--json"]


def _leave(may_run: Allowed) -> Iterator[str]:
    for digest in sorted(may_run):
        yield from ("--allow-file", digest)


def distances(folder: Path, names: Sequence[str]) -> Mapping[str, float]:
    """Returns how far each node's adapter is from that of the first, relative to the size of that, in dW over all layers."""
    adapters = {name: load_adapter(folder / name / "adapters" / "last") for name in names}
    first = adapters[names[0]]
    size = math.hypot(*(float(norm(x)) for x in first.layers.values()))

    def distance(adapter: Adapter) -> float:
        return math.sqrt(math.fsum(float(dist2(x, first.layers[n])) for n, x in adapter.layers.items())) / (size or 1.0)

    return {name: distance(adapter) for name, adapter in adapters.items()}


def _here(port: int) -> str:
    return f"tls/127.0.0.1:{port}"


def free_ports(count: int) -> list[int]:
    """Returns ports that nobody listens at now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
