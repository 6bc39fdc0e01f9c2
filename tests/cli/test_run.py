"""`fedelta run` on a tiny random model and a few rows: what is printed, what is written."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from fedelta.models.adapter_files import load_adapter

Call = Callable[..., Result]
Lines = Callable[[Result], list[Any]]


def test_a_run_leaves_config_log_adapters_checkpoint_and_picture(finished: Path):
    from fedelta.runs.config import load_config

    there = {p.name for p in finished.iterdir()}
    assert {"config.yaml", "rounds.jsonl", "clients.jsonl", "adapters", "checkpoint", "curves.png", "report.html"} <= there
    assert load_config(finished / "config.yaml").name == "tiny"
    assert {"last", "best", "rank-1", "rank-2", "rank-4"} <= {p.name for p in (finished / "adapters").iterdir()}
    assert [x.rank for x in load_adapter(finished / "adapters" / "rank-2").layers.values()] == [2] * 4


def test_the_screen_shows_split_rounds_and_summary(succeed: Call, config_file: Path, tmp_path: Path):
    shown = succeed("run", config_file, "--output", tmp_path / "run").stdout
    for part in ("Split of the training rows", "round   0", "round   1", "test accuracy", "majority class", "0.6667"):
        assert part in shown
    assert "adapters, log and picture" in shown
    assert f"page to open: {tmp_path / 'run/report.html'}" in shown.replace("\n", "")


def test_json_prints_one_record_for_each_round_and_nothing_else(
    succeed: Call, json_lines: Lines, config_file: Path, tmp_path: Path
):
    result = succeed("run", config_file, "--output", tmp_path / "run", "--json")
    records = json_lines(result)
    assert [record["t"] for record in records] == [0, 1]
    assert {"train_loss", "bytes", "test", "validation", "clients", "cohort"} <= records[-1].keys()
    assert records == [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]


def test_quiet_prints_nothing(succeed: Call, config_file: Path, tmp_path: Path):
    assert succeed("run", config_file, "--output", tmp_path / "run", "--quiet").output == ""


def test_a_folder_in_use_is_refused_with_the_remedies(call: Call, config_file: Path, finished: Path):
    before = (finished / "rounds.jsonl").read_text()
    result = call("run", config_file, "--output", finished)
    assert result.exit_code == 2
    for remedy in ("--resume", "--output", "--force"):
        assert remedy in result.stderr
    assert (finished / "rounds.jsonl").read_text() == before


def test_force_drops_an_earlier_run_but_no_foreign_file(call: Call, succeed: Call, config_file: Path, tmp_path: Path):
    folder = tmp_path / "run"
    succeed("run", config_file, "--output", folder, "--quiet", "--set", "federation.rounds=1")
    succeed("run", config_file, "--output", folder, "--quiet", "--force")
    assert len((folder / "rounds.jsonl").read_text().splitlines()) == 2
    (folder / "notes.txt").write_text("mine")
    assert call("run", config_file, "--output", folder, "--force").exit_code == 2
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_resumed_run_ends_with_the_same_bytes(succeed: Call, config_file: Path, finished: Path, tmp_path: Path):
    folder = tmp_path / "run"
    succeed("run", config_file, "--output", folder, "--quiet", "--set", "federation.rounds=1")
    succeed("run", "--resume", folder, "--quiet", "--set", "federation.rounds=2")
    for name in ("last", "rank-1", "rank-4"):
        file = Path("adapters", name, "adapter_model.safetensors")
        assert (folder / file).read_bytes() == (finished / file).read_bytes()


def test_a_resumed_run_cannot_become_another(call: Call, finished: Path):
    result = call("run", "--resume", finished, "--set", "seed=5")
    assert result.exit_code == 2
    assert "seed cannot change" in result.stderr


@pytest.mark.parametrize(("method", "clients"), [("flora", 3), ("centralised", 1)])
def test_a_dry_run_says_what_the_run_sends(
    succeed: Call, json_lines: Lines, method: str, clients: int, config_file: Path, tmp_path: Path
):
    run = ["run", config_file, "--json", "--set", f"method={method}", "--set", "federation.rounds=3", "--set", "lora.rank=2"]
    plan = json_lines(succeed(*run, "--dry-run"))[0]
    records = json_lines(succeed(*run, "--output", tmp_path / "run"))
    assert plan["bytes"]["total"] == sum(r["bytes"]["down"] + r["bytes"]["up"] for r in records)
    assert (plan["clients"], plan["rounds"], plan["steps"]) == (clients, 3, 3 * 3 * 2)  # 3 rounds of 3 x 2 steps


def test_a_dry_run_writes_nothing(succeed: Call, config_file: Path, tmp_path: Path):
    shown = succeed("run", config_file, "--output", tmp_path / "run", "--dry-run").stdout
    assert "sent in all" in shown
    assert "memory: frozen base" in shown
    assert not (tmp_path / "run").exists()


def test_ctrl_c_ends_after_the_round_and_the_run_goes_on_later(
    succeed: Call, json_lines: Lines, entry: str, config_file: Path, finished: Path, tmp_path: Path
):
    folder = tmp_path / "run"
    command = ["run", str(config_file), "--output", str(folder), "--json", "--set", "federation.rounds=500"]
    # A process that inherits an ignored SIGINT, as background jobs do, has to be interruptible, too.
    running = subprocess.Popen(
        [sys.executable, "-c", entry, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    running.stdout.readline()
    running.send_signal(signal.SIGINT)
    rest, errors = running.communicate(timeout=120)
    assert running.returncode == 130, errors
    done = len(rest.splitlines()) + 1
    assert done < 500
    assert len((folder / "rounds.jsonl").read_text().splitlines()) == done
    assert f"--resume {folder}" in errors
    assert "Traceback" not in errors
    records = json_lines(succeed("run", "--resume", folder, "--json", "--set", f"federation.rounds={done + 1}"))
    assert [record["t"] for record in records] == [done]
