"""The command line on a tiny random model and a few rows: what is printed, what is written, how errors end."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast
from typer.main import get_command
from typer.testing import CliRunner, Result

from fedelta.cli import app
from fedelta.models.adapter_files import load_adapter

OPTIONS = {
    "": ["--debug", "--version"],
    "aggregate": ["--method", "--output", "--ranks", "--set", "--weights", "-o"],
    "check": ["--all", "--json"],
    "evaluate": ["--client", "--json", "--limit", "--rank", "--round", "--set", "--split", "--trust-remote-code"],
    "export": ["--client", "--merged", "--output", "--rank", "--round", "--set", "--trust-remote-code", "-o"],
    "inspect": ["--json", "--plot"],
    "methods": ["--json"],
    "partition": ["--json", "--plot", "--set"],
    "run": ["--dry-run", "--force", "--json", "--output", "--quiet", "--resume", "--set", "--trust-remote-code", "-q"],
}
"""Every option there is. Scripts rely on them: change this table only with a line in CHANGELOG.md."""

ENTRY = "import sys; from fedelta.cli import main; sys.argv[0] = 'fedelta'; main()"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def succeed(*arguments: object) -> Result:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result


def json_lines(result: Result) -> list[Any]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def config_file(tiny_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run as a file."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_config), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    succeed("run", config_file, "--output", folder, "--quiet")
    return folder


# --- what there is ---------------------------------------------------------------------------------------------------


def test_the_options_are_those_of_the_table():
    group = get_command(app)
    commands: dict[str, Any] = {"": group, **group.commands}  # pyright: ignore[reportAttributeAccessIssue]
    found = {
        name: sorted(o for p in command.params for o in p.opts if o.startswith("-") and p.name != "help")
        for name, command in commands.items()
    }
    assert found == OPTIONS


def test_help_does_not_wait_for_torch():
    code = "import sys, fedelta.cli as c; c.app(['run', '--help'], standalone_mode=False); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--resume" in done.stdout


def test_version():
    from fedelta import __version__

    assert succeed("--version").stdout == f"fedelta {__version__}\n"


def test_methods_are_listed_with_source_ranks_and_traffic():
    rows = json_lines(succeed("methods", "--json"))[0]
    assert {"fedavg", "flexlora", "flora"} <= {row["name"] for row in rows}
    assert {row["name"]: row["hetero_rank"] for row in rows}["fedavg"] is False
    assert all(row["paper"] and row["travels"] for row in rows)
    assert "arXiv" in succeed("methods").stdout


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_leaves_config_log_adapters_checkpoint_and_picture(finished: Path):
    from fedelta.runs.config import load_config

    assert {"config.yaml", "rounds.jsonl", "adapters", "checkpoint", "curves.png"} <= {p.name for p in finished.iterdir()}
    assert load_config(finished / "config.yaml").name == "tiny"
    assert {"last", "best", "rank-1", "rank-2", "rank-4"} <= {p.name for p in (finished / "adapters").iterdir()}
    assert [x.rank for x in load_adapter(finished / "adapters" / "rank-2").layers.values()] == [2] * 4


def test_the_screen_shows_split_rounds_and_summary(config_file: Path, tmp_path: Path):
    shown = succeed("run", config_file, "--output", tmp_path / "run").stdout
    for part in ("Split of the training rows", "round   0", "round   1", "test accuracy", "majority class", "0.6667"):
        assert part in shown
    assert "adapters, log and picture" in shown


def test_json_prints_one_record_for_each_round_and_nothing_else(config_file: Path, tmp_path: Path):
    result = succeed("run", config_file, "--output", tmp_path / "run", "--json")
    records = json_lines(result)
    assert [record["t"] for record in records] == [0, 1]
    assert {"train_loss", "bytes", "test", "validation", "clients", "cohort"} <= records[-1].keys()
    assert records == [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]


def test_quiet_prints_nothing(config_file: Path, tmp_path: Path):
    assert succeed("run", config_file, "--output", tmp_path / "run", "--quiet").output == ""


def test_a_folder_in_use_is_refused_with_the_remedies(config_file: Path, finished: Path):
    before = (finished / "rounds.jsonl").read_text()
    result = call("run", config_file, "--output", finished)
    assert result.exit_code == 2
    for remedy in ("--resume", "--output", "--force"):
        assert remedy in result.stderr
    assert (finished / "rounds.jsonl").read_text() == before


def test_force_drops_an_earlier_run_but_no_foreign_file(config_file: Path, tmp_path: Path):
    folder = tmp_path / "run"
    succeed("run", config_file, "--output", folder, "--quiet", "--set", "federation.rounds=1")
    succeed("run", config_file, "--output", folder, "--quiet", "--force")
    assert len((folder / "rounds.jsonl").read_text().splitlines()) == 2
    (folder / "notes.txt").write_text("mine")
    assert call("run", config_file, "--output", folder, "--force").exit_code == 2
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_resumed_run_ends_with_the_same_bytes(config_file: Path, finished: Path, tmp_path: Path):
    folder = tmp_path / "run"
    succeed("run", config_file, "--output", folder, "--quiet", "--set", "federation.rounds=1")
    succeed("run", "--resume", folder, "--quiet", "--set", "federation.rounds=2")
    for name in ("last", "rank-1", "rank-4"):
        file = Path("adapters", name, "adapter_model.safetensors")
        assert (folder / file).read_bytes() == (finished / file).read_bytes()


def test_a_resumed_run_cannot_become_another(finished: Path):
    result = call("run", "--resume", finished, "--set", "seed=5")
    assert result.exit_code == 2
    assert "seed cannot change" in result.stderr


@pytest.mark.parametrize(("method", "clients"), [("flora", 3), ("centralised", 1)])
def test_a_dry_run_says_what_the_run_sends(method: str, clients: int, config_file: Path, tmp_path: Path):
    run = ["run", config_file, "--json", "--set", f"method={method}", "--set", "federation.rounds=3", "--set", "lora.rank=2"]
    plan = json_lines(succeed(*run, "--dry-run"))[0]
    records = json_lines(succeed(*run, "--output", tmp_path / "run"))
    assert plan["bytes"]["total"] == sum(r["bytes"]["down"] + r["bytes"]["up"] for r in records)
    assert (plan["clients"], plan["rounds"], plan["steps"]) == (clients, 3, 3 * 3 * 2)  # 3 rounds of 3 x 2 steps


def test_a_dry_run_writes_nothing(config_file: Path, tmp_path: Path):
    shown = succeed("run", config_file, "--output", tmp_path / "run", "--dry-run").stdout
    assert "sent in all" in shown
    assert "memory: frozen base" in shown
    assert not (tmp_path / "run").exists()


def test_ctrl_c_ends_after_the_round_and_the_run_goes_on_later(config_file: Path, finished: Path, tmp_path: Path):
    folder = tmp_path / "run"
    command = ["run", str(config_file), "--output", str(folder), "--json", "--set", "federation.rounds=500"]
    # A process that inherits an ignored SIGINT, as background jobs do, has to be interruptible, too.
    running = subprocess.Popen(
        [sys.executable, "-c", ENTRY, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
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


# --- splits and adapters ---------------------------------------------------------------------------------------------


def test_partition_shows_and_draws_the_split(config_file: Path, tmp_path: Path):
    rows = json_lines(succeed("partition", config_file, "--json"))[0]
    assert [row["rank"] for row in rows] == [1, 2, 4]
    assert all(row["labels"].keys() == {"cats", "dogs"} for row in rows)
    assert "cats" in succeed("partition", config_file, "--plot", tmp_path / "split.png").stdout
    assert (tmp_path / "split.png").stat().st_size > 1000


def test_aggregate_writes_adapters_that_load(finished: Path, tmp_path: Path):
    inputs = [finished / "adapters" / name for name in ("rank-1", "rank-4")]
    out = tmp_path / "merged"
    succeed("aggregate", *inputs, "--method", "flexlora", "--ranks", "2", "--weights", "1,3", "-o", out)
    assert {x.rank for x in load_adapter(out).layers.values()} == {2}
    succeed("aggregate", *inputs, "--method", "flexlora", "--ranks", "2,4", "-o", out)
    assert {x.rank for x in load_adapter(out / "rank-4").layers.values()} == {4}
    succeed("aggregate", *inputs, "--method", "flexlora", "--set", "sigma_on=A", "-o", tmp_path / "each")
    assert {x.rank for x in load_adapter(tmp_path / "each" / "rank-1").layers.values()} == {1}


def test_aggregate_does_not_write_over_an_adapter(finished: Path, tmp_path: Path):
    succeed("export", finished, "-o", tmp_path / "mine", "--rank", 2)
    before = (tmp_path / "mine/adapter_model.safetensors").read_bytes()
    result = call("aggregate", tmp_path / "mine", finished / "adapters/rank-2", "--ranks", "2", "-o", tmp_path / "mine")
    assert result.exit_code == 2
    assert "mine is not empty: give another folder" in result.stderr
    assert (tmp_path / "mine/adapter_model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "fedavg"], "equal ranks"),
        (["--method", "flexlor"], "did you mean 'flexlora'?"),
        (["--method", "flexlora", "--ranks", "two"], "--ranks 'two' is not a list of numbers between commas"),
        (["--method", "flexlora", "--weights", "1"], "weights"),
        (["--method", "flexlora", "--set", "sigma=B"], "did you mean 'sigma_on'?"),
    ],
)
def test_aggregate_refuses_what_does_not_fit(arguments: list[str], message: str, finished: Path, tmp_path: Path):
    inputs = [finished / "adapters" / name for name in ("rank-1", "rank-4")]
    result = call("aggregate", *inputs, *arguments, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_inspect_shows_spectra_and_overlaps(finished: Path, tmp_path: Path):
    folders = [finished / "adapters" / name for name in ("rank-1", "rank-4")]
    found = json_lines(succeed("inspect", *folders, "--json", "--plot", tmp_path / "spectra.png"))[0]
    assert set(found["adapters"]) == {str(folder) for folder in folders}
    (pair,) = found["overlaps"]
    # FlexLoRA gives rank 1 the first component of what it gives rank 4, so its subspaces lie in the other's.
    assert all(layer["A"]["overlap"] == pytest.approx(1, abs=1e-5) for layer in pair["layers"])
    assert (tmp_path / "spectra.png").stat().st_size > 1000
    assert "stable" in succeed("inspect", *folders).stdout


def test_evaluate_scores_a_run_and_its_adapters_alike(finished: Path, rows_file: Path):
    best = json_lines(succeed("evaluate", finished, rows_file, "--json"))[0]
    folder = json_lines(succeed("evaluate", finished / "adapters" / "best", rows_file, "--json"))[0]
    assert best["examples"] == 90
    assert {**best, "adapter": ""} == {**folder, "adapter": ""}
    assert "accuracy" in succeed("evaluate", finished, rows_file, "--rank", 2, "--limit", 10).stdout


def test_evaluate_takes_a_peft_folder_of_no_run(finished: Path, rows_file: Path, tiny_model: Path, tmp_path: Path):
    succeed("export", finished, "-o", tmp_path / "adapter", "--round", "last")
    alone = json_lines(succeed("evaluate", tmp_path / "adapter", rows_file, "--json", "--set", f"model.name={tiny_model}"))[0]
    of_run = json_lines(succeed("evaluate", finished, rows_file, "--json", "--round", "last"))[0]
    assert alone["loss"] == pytest.approx(of_run["loss"], abs=1e-6)


def test_export_copies_an_adapter_or_merges_it(finished: Path, rows_file: Path, tmp_path: Path):
    succeed("export", finished, "-o", tmp_path / "adapter", "--rank", 4)
    exported, kept = (
        folder / "adapter_model.safetensors" for folder in (tmp_path / "adapter", finished / "adapters" / "rank-4")
    )
    assert exported.read_bytes() == kept.read_bytes()
    succeed("export", finished, "-o", tmp_path / "model", "--merged", "--round", "last")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert merged.config.id2label == {0: "cats", 1: "dogs"}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "model")
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    with torch.inference_mode():
        logits = merged(**tokenizer([row["text"] for row in rows], return_tensors="pt", padding=True)).logits
    right = sum(merged.config.id2label[int(i)] == row["label"] for i, row in zip(logits.argmax(-1), rows, strict=True))
    assert json_lines(succeed("evaluate", finished, rows_file, "--json", "--round", "last"))[0]["accuracy"] == right / 90


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--round", "best", "--rank", "2"], "leave --round out, or say last"),
        (["--rank", "3"], "has no adapter 'rank-3'; it has best, last, rank-1, rank-2, rank-4"),
        (["--client", "0"], "has no adapter 'client-0'"),
    ],
)
def test_export_names_what_there_is(arguments: list[str], message: str, finished: Path, tmp_path: Path):
    result = call("export", finished, "-o", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_export_does_not_write_into_a_folder_in_use(finished: Path, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    result = call("export", finished, "-o", tmp_path)
    assert result.exit_code == 2
    assert "is not empty" in result.stderr


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "give a config to run, or --resume"),
        (["run", "missing.yaml"], "no config file at missing.yaml"),
        (["run", "quickstart", "--set", "lora.rnk=3"], "unknown key 'lora.rnk'; did you mean 'rank'?"),
        (["run", "--resume", "nowhere"], "nowhere is not the folder of a run"),
        (["run", "--resume", "nowhere", "--force"], "leave --output and --force out"),
        (["partition", "quickstart", "--set", "data.source=missing.csv"], "no file missing.csv"),
        (["inspect", "nowhere"], "no adapter folder nowhere"),
        (["evaluate", "nowhere", "rows.jsonl"], "no folder nowhere"),
        (["evaluate", "nowhere", "rows.jsonl", "--rank", "2"], "is not the folder of a run"),
    ],
    ids=" ".join,
)
def test_an_error_is_one_message_with_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stdout == ""


def test_debug_shows_where_an_error_came_from():
    command = [sys.executable, "-c", ENTRY, "--debug", "run", "missing.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "ConfigError" in done.stderr


# --- laws ------------------------------------------------------------------------------------------------------------


def test_check_names_the_law_that_a_file_breaks(tmp_path: Path) -> None:
    path = tmp_path / "forgetful.py"
    path.write_text(
        "from fedelta.methods.fedavg import FedAvg\n"
        "class Forgetful(FedAvg):\n"
        "    def traffic(self, t, template, peer, peers):\n"
        "        return 1, 1\n",
        encoding="utf-8",
    )
    result = call("check", path)
    assert result.exit_code == 1
    assert "declared 1 numbers down and 1 up" in " ".join(result.stdout.split())
    assert [
        v["law"] for v in json_lines(call("check", path, "--json"))[0][str(path)]["verdicts"] if v["outcome"] == "broken"
    ] == ["bytes"]


def test_check_takes_names_and_aliases_and_counts_verdicts() -> None:
    shown = succeed("check", "fedit", "local_only").stdout
    assert [line.split()[:3] for line in shown.splitlines()[2:4]] == [["fedit", "all", "kept"], ["local_only", "all", "kept"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give the methods or tasks to check, or --all"),
        (["fedavg", "--all"], "give the methods or tasks to check, or --all"),
        (["fedavgg"], "did you mean 'fedavg'?"),
        (["nowhere.py"], "no file nowhere.py"),
    ],
    ids=str,
)
def test_check_says_what_it_cannot_check(arguments: list[str], message: str) -> None:
    result = call("check", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
