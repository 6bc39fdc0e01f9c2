"""`fedelta run` over several processes: how it dies, how it is stopped, and how it goes on in a single one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedelta.runs import shards
from fedelta.runs.records import without_times
from fedelta.runs.runner import run

ENTRY = "import sys; from fedelta.cli import main; sys.argv[0] = 'fedelta'; main()"
LONG = 10_000
"""Rounds of a run that does not end by itself."""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def config(tiny_config: dict[str, Any]) -> dict[str, Any]:
    """A run with a base that moves, seldom evaluated."""
    federation = {"rounds": LONG, "engine": "sequential"}
    return {**tiny_config, "method": "flora", "federation": federation, "evaluation": {"every": LONG, "diagnostics": False}}


def file_of(config: Mapping[str, Any], folder: Path) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    return path


def ranks(count: int, *arguments: object, folders: Mapping[int, Path] | None = None) -> list[subprocess.Popen[str]]:
    """Starts `fedelta run --quiet` in several processes, as a launcher would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", ENTRY, "run", "--quiet", *map(str, arguments)]
    started: list[subprocess.Popen[str]] = []
    for rank in range(count):
        here = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        environment = {**os.environ, **here, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        folder = (folders or {}).get(rank)
        started.append(subprocess.Popen(command, env=environment, cwd=folder, stderr=subprocess.PIPE, text=True))
    return started


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Returns exit codes and what was said; none of the processes may hang."""
    try:
        said = [process.communicate(timeout=60)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def wait_for_rounds(folder: Path, count: int) -> None:
    log, deadline = folder / "rounds.jsonl", time.monotonic() + 90
    while not (log.exists() and log.read_bytes().count(b"\n") >= count):
        assert time.monotonic() < deadline, "no rounds were done"
        time.sleep(0.01)


def rounds_of(folder: Path) -> list[Any]:
    return [without_times(json.loads(line)) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def states_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((folder / "adapters").rglob("*.safetensors"))}


def test_a_rank_that_is_killed_ends_the_run_which_goes_on_in_one_process(config: dict[str, Any], tmp_path: Path) -> None:
    split, whole = tmp_path / "split", tmp_path / "whole"
    processes = ranks(2, file_of(config, tmp_path), "--output", split)
    try:
        wait_for_rounds(split, 3)
    finally:
        processes[1].kill()
    (code, said), *others = ended(processes)
    assert code == 2
    assert said.startswith("error: rank 1: it has ended: killed")
    assert "go on with --resume" in said
    assert len(said.splitlines()) == 1
    assert [code for code, _ in others] == [-signal.SIGKILL]

    rounds = len(rounds_of(split)) + 2
    run(resume=split, overrides={"federation.rounds": rounds})
    run({**config, "output": str(whole)}, {"federation.rounds": rounds})
    assert rounds_of(split) == rounds_of(whole)
    assert states_of(split) == states_of(whole)
    assert states_of(whole)


def test_ctrl_c_ends_all_after_a_round_and_other_groups_are_told(
    config: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, federation = tmp_path / "split", {"rounds": LONG, "engine": "batched"}
    arguments = ["run", file_of({**config, "federation": federation}, tmp_path), "--output", folder]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "--no-python", sys.executable, "-c", ENTRY, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for_rounds(folder, 1)
        process.send_signal(signal.SIGINT)
        shown, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "ending after this round" in said
    assert "stopped after a whole round" in said
    assert shown.count("Split of the training rows") == 1
    done = rounds_of(folder)
    assert all(len(record["cohort"]) == 3 and not record["dropped"] for record in done)

    run(resume=folder, overrides={"federation.rounds": len(done) + 1})
    assert "shares 2 -> 1" in caplog.text


def test_a_config_that_cannot_be_run_ends_all_with_one_message(config: dict[str, Any], tmp_path: Path) -> None:
    wrong = file_of({**config, "lora": {"rank": 10**6}}, tmp_path)
    (code, said), other = ended(ranks(2, wrong, "--output", tmp_path / "run"))
    assert code == 2
    assert "error: " in said
    assert other == (0, "")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not Path("/proc/self/cwd").is_dir(), reason="needs a path that leads elsewhere in each process")
def test_a_rank_that_lacks_the_data_says_so_by_rank_0(config: dict[str, Any], tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    rows = Path(config["data"]["source"])
    (here / "rows.jsonl").write_bytes(rows.read_bytes())
    # A path that is one machine's own; those in a config are absolute by the time that rank 0 sends it.
    given = file_of({**config, "data": {**config["data"], "source": "/proc/self/cwd/rows.jsonl"}}, here)
    (code, said), other = ended(ranks(2, given, "--output", tmp_path / "run", folders={0: here, 1: elsewhere}))
    assert code == 2
    assert "error: rank 1: " in said
    assert "rows.jsonl" in said
    assert other == (0, "")
    assert not (tmp_path / "run").exists()


# --- in this process -------------------------------------------------------------------------------------------------


def test_several_processes_without_a_number_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert shards.rank() == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="RANK is not set: start the processes by torchrun"):
        shards.rank()
    monkeypatch.setenv("RANK", "1")
    assert shards.rank() == 1


def test_a_rank_has_the_gpu_of_its_number_unless_the_config_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert shards.own_device("auto", "cuda") == "cuda:3"
    assert shards.own_device("cuda", "cuda") == "cuda:3"
    assert shards.own_device("cuda:1", "cuda") == "cuda:1"
    assert shards.own_device("auto", "cpu") == "cpu"
    assert shards.own_device("cpu", "cpu") == "cpu"


def test_a_rank_with_other_data_or_another_base_is_refused() -> None:
    here = {"platform": {"torch": "2.9", "threads": 1}, "rows": {"train": "a"}, "base": "b"}
    shards.compare(1, here, here)
    for key, what in (("rows", "data"), ("base", "base model")):
        with pytest.raises(ValueError, match=f"rank 2 has another {what} than rank 0"):
            shards.compare(2, here, {**here, key: "other"})


def test_a_rank_on_another_platform_is_told(caplog: pytest.LogCaptureFixture) -> None:
    here = {"platform": {"torch": "2.9", "threads": 1}, "rows": {}, "base": "b"}
    shards.compare(1, here, {**here, "platform": {"torch": "2.9", "threads": 4}})
    assert "threads 4 where rank 0 has 1" in caplog.text
