"""The programs that race: a command each, and what it needs around it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from common.workloads import Length

HERE = Path(__file__).resolve().parent
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
START_TIMEOUT = 60.0


@dataclass(frozen=True)
class Settings:
    """The work, as `ours.py` reads it."""

    model: str
    batch: int
    length: Length
    clients: int
    steps: int
    rounds: int


@dataclass(frozen=True)
class Program:
    """A command that does the work of a folder, and what it needs."""

    command: Sequence[str | Path]
    variables: Mapping[str, str]

    def run(self) -> float:
        """Its seconds.

        Raises:
            RuntimeError: with the end of what it said, if it fails.
        """
        began = time.perf_counter()
        done = subprocess.run(self.command, env={**os.environ, **self.variables}, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, self.command))} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        return time.perf_counter() - began


@contextmanager
def fedelta(environment: Path, folder: Path, settings: Settings, cores: int) -> Generator[Program]:
    """One process with a thread for each core; `environment` is this one."""
    yield _ours(folder, settings, cores, "fedelta")


@contextmanager
def fedelta_on_one_core(environment: Path, folder: Path, settings: Settings, cores: int) -> Generator[Program]:
    """One thread, for comparison."""
    yield _ours(folder, settings, 1, "fedelta_on_one_core")


def _ours(folder: Path, settings: Settings, threads: int, name: str) -> Program:
    work = ["--name", name, "--settings", json.dumps(asdict(settings)), "--threads", str(threads)]
    return Program([sys.executable, HERE / "ours.py", folder, *work], {**OFFLINE, "OMP_NUM_THREADS": str(threads)})


def in_environment(environment: Path) -> dict[str, str]:
    """The variables of a program that runs one process of one thread on each core."""
    path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**OFFLINE, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent), "PATH": path}


@contextmanager
def pfl(environment: Path, folder: Path, settings: Settings, cores: int) -> Generator[Program]:
    """pfl-research's simulator under torchrun."""
    command = [environment / "bin" / "torchrun", "--nproc-per-node", str(cores), HERE / "pfl_fedavg.py", folder]
    yield Program(command, in_environment(environment))


@contextmanager
def flower(environment: Path, folder: Path, settings: Settings, cores: int) -> Generator[Program]:
    """Flower's simulation: `flwr run` with the Ray backend, and a SuperLink that is up as long as the context."""
    home, port = folder / "flower_home", free_port()
    variables = {**in_environment(environment), "FLWR_HOME": str(home)}
    home.mkdir(exist_ok=True)
    connection = f'[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    (home / "config.toml").write_text(connection, encoding="utf-8")
    link = [environment / "bin" / "flower-superlink", "--insecure", "--simulation", "--disable-runtime-dependency-installation"]
    federation = f"num-supernodes={settings.clients} client-resources-num-cpus=1 init-args-num-cpus={cores}"
    command = [environment / "bin" / "flwr", "run", HERE / "flower", "--stream"]
    options = ["--run-config", f'work="{folder}"', "--federation-config", federation]
    with (home / "superlink.log").open("w") as log:
        superlink = subprocess.Popen(
            [*link, "--host", "127.0.0.1", "--port", str(port)], env={**os.environ, **variables}, stdout=log, stderr=log
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/health", superlink, home / "superlink.log")
            yield Program([*command, *options], variables)
        finally:
            superlink.terminate()
            superlink.wait()


OURS = {"fedelta": fedelta, "fedelta_on_one_core": fedelta_on_one_core}
RIVALS = {"flower": flower, "pfl": pfl}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the address answers.

    Raises:
        RuntimeError: if the process has ended, or `START_TIMEOUT` has passed.
    """
    until = time.monotonic() + START_TIMEOUT
    while process.poll() is None and time.monotonic() < until:
        try:
            with urlopen(address, timeout=1):
                return
        except (URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise RuntimeError(f"Flower's SuperLink did not come up: {log.read_text(encoding='utf-8')[-2000:]}")
