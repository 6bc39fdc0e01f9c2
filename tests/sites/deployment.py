"""A deployment of Flower on this machine: a SuperLink with TLS, SuperNodes with keys of their own, a worker for each site."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

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


def environment(home: Path) -> dict[str, str]:
    """Returns an environment in which Flower keeps to a folder, and programs of this Python are found."""
    return {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
    }


class Processes:
    """Processes in a folder, each with a log there; the block of a `with` ends them, and whatever they have started.

    Args:
        folder: in which they run.
        environment: of them all; its FLWR_HOME is theirs alone, so that it tells whose a process is.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder, self.environment = folder, dict(environment)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for name in reversed(list(self._processes)):
            self.kill(name)
        for process, _ in list(self.family()):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def start(self, name: str, command: Sequence[str]) -> None:
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

    def ready(self, name: str, true: Callable[[], object], what: str) -> None:
        """Waits until a program is ready; says what it said if it ends before."""

        def ready_or_over() -> object:
            assert self._processes[name].poll() is None, f"{name} has ended: {self.log(name)[-2000:]}"
            return true()

        until(ready_or_over, what)

    def kill(self, name: str, how: int = signal.SIGKILL) -> None:
        """Ends a process and all that it started, at once."""
        process = self._processes.pop(name)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        process.wait(timeout=30)

    def children(self, program: str, node: int | None = None) -> list[int]:
        """Returns the ids of this deployment's processes that run a program, such as flwr-serverapp; or of one node's alone.

        A SuperLink starts its own in a session of theirs, so that groups do not tell whose they are; the environment does.
        """
        found = [i for i, words in self.family() if any(program in word for word in words[:3])]
        if node is None:
            return found
        return [i for i in found if os.getpgid(i) == self._processes[f"node-{node}"].pid]

    def family(self) -> Iterator[tuple[int, list[str]]]:
        """Yields id and words of each process that has this deployment's environment, as far as they can be read."""
        mark = f"FLWR_HOME={self.environment['FLWR_HOME']}".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        yield int(entry.name), (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")


class Deployment(Processes):
    """All processes of a federation.

    Args:
        folder: for certificates, states and logs.
        config: of the run, a file.
        sites: how many; site k is client k and has the node file `site-k.yaml`.
        workers: each site has a long-lived process; else its ClientApp builds the site for each message.
    """

    def __init__(self, folder: Path, config: Path, sites: int, *, workers: bool = True) -> None:
        super().__init__(folder, environment(folder / "home"))
        self.config, self.sites, self.workers = config, sites, workers
        self.app = folder / "app"
        self.port = free_port()

    def __enter__(self) -> Self:
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

    def start_superlink(self) -> None:
        database = ["--database", str(self.folder / "state.db")]
        listen = ["--host", "127.0.0.1", "--port", str(self.port)]
        safety = [*self._tls(), "--enable-supernode-auth", "--disable-runtime-dependency-installation"]
        self.start("superlink", ["flower-superlink", *safety, *database, *listen])
        self.ready("superlink", lambda: listens(self.port), "a SuperLink that listens")

    def start_worker(self, k: int, *, config: Path | None = None, program: Sequence[str] = ("fedelta", "site")) -> None:
        """Starts the worker of a site; from a config of its own, or as another program with the same arguments."""
        self.socket(k).unlink(missing_ok=True)  # of a worker that was killed
        self.start(f"worker-{k}", [*program, str(config or self.config), "--node", str(self._node_file(k))])
        self.ready(f"worker-{k}", lambda: self.socket(k).exists(), f"a worker of site {k}")

    def start_node(self, k: int, *options: str, authority: Path | None = None, key: Path | None = None) -> None:
        """Starts the SuperNode of a site; one that trusts another authority, or has another key."""
        certs = self.folder / "certs"
        to = ["--superlink", f"127.0.0.1:{self.port}", "--root-certificates", str(authority or certs / "ca.crt")]
        own = ["--auth-supernode-private-key", str(key or certs / f"site-{k}.node"), "--port", str(free_port())]
        consent = f' config="{self.config}"' if not self.workers else ""
        which = ["--node-config", f'node="{self._node_file(k)}"{consent}']
        self.start(f"node-{k}", ["flower-supernode", *to, *own, *self._tls(), *which, *options])

    def pause(self, name: str, how: int = signal.SIGSTOP) -> None:
        """Stops a process where it is; SIGCONT lets it go on."""
        os.killpg(self._processes[name].pid, how)

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
            time.sleep(1.0)  # each look is a process
            status.append(self.call("flwr", "ls", "--run-id", run, "deployment"))
            return "finished" in status[-1]

        until(ended, f"the end of run {run}", seconds)
        return status[-1]

    def said(self, run: str) -> str:
        """Returns the log of a run's server."""
        return self.call("flwr", "log", run, "deployment", "--show")

    def call(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout[-2000:]} {done.stderr[-2000:]}")
        return done.stdout

    def socket(self, k: int) -> Path:
        return self.folder / f"state-{k}" / SOCKET

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
