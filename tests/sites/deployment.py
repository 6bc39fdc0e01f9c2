"""A deployment of Flower on this machine: a SuperLink with TLS, SuperNodes with keys of their own, a worker for each site."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from fedelta.engines.runners.sites.certificates import make_certificates
from fedelta.engines.runners.sites.worker import SOCKET

BIN = Path(sys.executable).parent
TLS = {"ca-certfile": "ca.crt", "certfile": "server.crt", "keyfile": "server.key"}
"""By the role that Flower's options name, a file of the certificates."""

PATIENCE = 180.0
"""Seconds that anything may take on a busy machine."""


def until(true: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Waits for something to become true; says what did not."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not happen within {seconds:g} s")
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Deployment:
    """All processes of a federation, in a folder; the block of a `with` ends them, and whatever they have started.

    Args:
        folder: for certificates, states and logs.
        config: of the run, a file.
        sites: how many; site k is client k and has the node file `site-k.yaml`.
        workers: each site has a long-lived process; else its ClientApp builds the site for each message.
    """

    def __init__(self, folder: Path, config: Path, sites: int, *, workers: bool = True) -> None:
        self.folder, self.config, self.sites, self.workers = folder, config, sites, workers
        self.app = folder / "app"
        self.port = free_port()
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "FLWR_HOME": str(folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "OMP_NUM_THREADS": "1",
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Deployment:
        names = [f"site-{k}" for k in range(self.sites)]
        make_certificates(self.folder / "certs", ["server"], node_keys=names)
        self._write_home()
        self.call("fedelta", "flower", "init", str(self.config), str(self.app))
        try:
            self.start_superlink()
            for k in range(self.sites):
                self.call("flwr", "supernode", "register", str(self.folder / f"certs/site-{k}.node.pub"), "deployment")
                self._write_node(k)
                if self.workers:
                    self.start_worker(k)
                self.start_node(k)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for name in reversed(list(self._processes)):
            self.kill(name)

    def start_superlink(self) -> None:
        database = ["--database", str(self.folder / "state.db")]
        listen = ["--host", "127.0.0.1", "--port", str(self.port)]
        safety = [*self._tls(), "--enable-supernode-auth", "--disable-runtime-dependency-installation"]
        self._start("superlink", ["flower-superlink", *safety, *database, *listen])
        until(lambda: listens(self.port), "a SuperLink that listens")

    def start_worker(self, k: int) -> None:
        self._start(f"worker-{k}", ["fedelta", "site", str(self.config), "--node", str(self._node_file(k))])
        until(lambda: self.socket(k).exists(), f"a worker of site {k}")

    def start_node(self, k: int) -> None:
        certs = self.folder / "certs"
        to = ["--superlink", f"127.0.0.1:{self.port}", "--root-certificates", str(certs / "ca.crt")]
        key = ["--auth-supernode-private-key", str(certs / f"site-{k}.node"), "--port", str(free_port())]
        own = f' config="{self.config}"' if not self.workers else ""
        which = ["--node-config", f'node="{self._node_file(k)}"{own}']
        self._start(f"node-{k}", ["flower-supernode", *to, *key, *self._tls(), *which])

    def _tls(self) -> list[str]:
        return [f"--ssl-{role}={self.folder / 'certs' / file}" for role, file in TLS.items()]

    def run(self, *options: str) -> str:
        """Starts the run on the deployment; returns its id."""
        said = self.call("flwr", "run", str(self.app), "deployment", *options, "--format", "json")
        return str(json.loads(said[said.index("{") :])["run-id"])

    def wait(self, folder: Path, rounds: int, seconds: float = PATIENCE) -> None:
        """Waits until a run's folder has the records of so many rounds."""
        records = folder / "rounds.jsonl"
        until(lambda: records.is_file() and records.read_bytes().count(b"\n") >= rounds, f"round {rounds - 1}", seconds)

    def wait_end(self, run: str, seconds: float = PATIENCE) -> str:
        """Waits until a run has ended; returns what Flower says of it."""
        status: list[str] = []

        def ended() -> bool:
            status.append(self.call("flwr", "ls", "--run-id", run, "deployment"))
            return "finished" in status[-1]

        until(ended, f"the end of run {run}", seconds)
        return status[-1]

    def call(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout[-2000:]} {done.stderr[-2000:]}")
        return done.stdout

    def kill(self, name: str, how: int = signal.SIGKILL) -> None:
        """Ends a process and all that it started, at once."""
        process = self._processes.pop(name)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        process.wait(timeout=30)

    def children(self, program: str) -> list[int]:
        """Returns the ids of processes of this deployment's superlink and nodes that run a program, such as flwr-serverapp."""
        groups = {p.pid for p in self._processes.values()}
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    if any(program.encode() in w for w in words[:3]) and os.getpgid(int(entry.name)) in groups:
                        found.append(int(entry.name))
                except (OSError, ProcessLookupError):
                    continue
        return found

    def socket(self, k: int) -> Path:
        return self.folder / f"state-{k}" / SOCKET

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _start(self, name: str, command: Sequence[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def _node_file(self, k: int) -> Path:
        return self.folder / f"site-{k}.yaml"

    def _write_node(self, k: int) -> None:
        node: dict[str, Any] = {"name": f"site-{k}", "client": k, "state": f"state-{k}"}
        self._node_file(k).write_text(yaml.safe_dump(node), encoding="utf-8")

    def _write_home(self) -> None:
        (self.folder / "home").mkdir()
        text = f'[superlink]\ndefault = "deployment"\n\n[superlink.deployment]\naddress = "127.0.0.1:{self.port}"\n'
        text += f'root-certificates = "{self.folder / "certs/ca.crt"}"\n'
        (self.folder / "home/config.toml").write_text(text, encoding="utf-8")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
