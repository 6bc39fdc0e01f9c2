"""A run that is killed (SIGKILL) at any moment and taken up again ends with the bytes of one that was never stopped.

`FEDELTA_KILLS=20 pytest tests/e2e/test_kill.py` kills more often than the three times of an ordinary test run.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedelta.runs.records import without_times

KILLS = int(os.environ.get("FEDELTA_KILLS", "3"))
METHODS = ("flora", "hetlora", "flexlora")  # a moving base, memory at clients, neither
ROUNDS = 12
ENTRY = "import sys; from fedelta.cli import main; sys.argv[0] = 'fedelta'; main()"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", ENTRY, "run", "--quiet", *map(str, arguments)]


def finish(*arguments: object) -> None:
    subprocess.run(command(*arguments), check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})


def outcome(folder: Path) -> dict[str, Any]:
    """The bytes of all that a run leaves, and its log without times and the picture of it."""
    files = {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    log = [json.loads(line) for line in files.pop(Path("rounds.jsonl")).decode().splitlines()]
    files.pop(Path("curves.png"))  # may hold times of drawing
    files.pop(Path("report.html"))  # has the times of the rounds
    files.pop(Path("run.json"))  # says when the run began
    files.pop(Path("config.yaml"))  # names its own folder
    return {"files": files, "log": [without_times(record) for record in log]}


def kill_in_round(folder: Path, config: Path, wanted: int, wait: float) -> bool:
    """Starts or resumes a run, kills it `wait` seconds after `wanted` rounds are logged; False if it ended before."""
    arguments = ["--resume", folder] if (folder / "config.yaml").exists() else [config, "--output", folder]
    process = subprocess.Popen(command(*arguments), env={**os.environ, "OMP_NUM_THREADS": "1"})
    log, deadline = folder / "rounds.jsonl", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and log.read_bytes().count(b"\n") >= wanted:
            break
        time.sleep(0.0005)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("kill", range(KILLS))
def test_a_killed_run_ends_with_the_bytes_of_one_that_was_not(
    kill: int, tiny_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    method = METHODS[kill % len(METHODS)]
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tiny_config | {"method": method, "federation": {"rounds": ROUNDS}}))
    whole = tmp_path_factory.getbasetemp() / f"whole-{method}"
    if not whole.exists():
        finish(config, "--output", whole)
    draw = random.Random(kill)
    stopped = tmp_path / "stopped"
    killed = kill_in_round(stopped, config, wanted=draw.randrange(1, ROUNDS - 2), wait=draw.uniform(0, 0.08))
    assert killed, "the run ended before it was killed: nothing was tested"
    finish("--resume", stopped)
    assert outcome(stopped) == outcome(whole)
