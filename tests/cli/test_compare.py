"""`fedelta compare`: what is written and printed, and with which exit code it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import Result

from fedelta.runs.folder import RunFolder
from fedelta.runs.suite import play

Call = Callable[..., Result]
Lines = Callable[[Result], list[Any]]

MINE = """
from dataclasses import dataclass

from fedelta.methods.zeropad import ZeroPad


@dataclass(frozen=True, kw_only=True)
class Mine(ZeroPad):
    paper = "an example"
"""


@pytest.fixture
def suite(tiny_config: dict[str, Any], tmp_path: Path) -> Path:
    """A suite of two methods, one of which cannot serve unequal ranks, and one seed of one round."""
    base = {**tiny_config, "federation": {"rounds": 1}}
    path = tmp_path / "ranks.yaml"
    path.write_text(yaml.safe_dump({"base": base, "methods": ["zeropad", "fedavg"], "seeds": 1}), encoding="utf-8")
    return path


def test_a_suite_ends_with_a_table_a_page_and_a_csv_file(succeed: Call, suite: Path, tmp_path: Path):
    result = succeed("compare", suite, "-o", tmp_path / "out", "--jobs", "1")
    assert "zeropad" in result.stdout
    assert "fedavg  not applicable: method 'fedavg' needs equal ranks" in result.stdout
    assert str(tmp_path / "out" / "report.html") in result.stdout
    assert "done    zeropad seed 0   accuracy" in result.stderr
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"suite.yaml", "results.csv", "results.tex", "summary.json", "report.html", "cells"} <= there
    states = [line.split(",") for line in (tmp_path / "out" / "results.csv").read_text().splitlines()]
    state, label = states[0].index("state"), states[0].index("label")
    assert {(row[label], row[state]) for row in states[1:]} == {("zeropad", "done"), ("fedavg", "not applicable")}


def test_equal_suites_give_equal_files_from_folders_and_from_the_store(succeed: Call, suite: Path, tmp_path: Path):
    store = tmp_path / "cells.jsonl.gz"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        succeed("compare", suite, "-o", tmp_path / name / "out", "--store", store, "--jobs", "1", "--quiet", "--rounds")
    assert not (tmp_path / "two" / "out" / "cells").exists()
    for name in ("results.csv", "rounds.csv", "results.tex", "summary.json", "results.png"):
        one, two = ((tmp_path / folder / "out" / name).read_bytes() for folder in ("one", "two"))
        assert one == two, name
    pages = [(tmp_path / folder / "out" / "report.html").read_text(encoding="utf-8") for folder in ("one", "two")]
    assert pages[0] == pages[1]


def test_a_config_and_methods_make_a_suite_file_that_can_be_run(
    succeed: Call, json_lines: Lines, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE, encoding="utf-8")
    options = ("--seeds", "5,6", "--baseline", "zeropad", "--set", "federation.rounds=1")
    succeed("compare", config_file, "--methods", "mine.py,zeropad", *options, "--quiet", "--jobs", "1")
    written = Path("runs/tiny-compare/suite.yaml")
    said = yaml.safe_load(written.read_text())
    assert said["methods"] == ["../../mine.py", "zeropad"]
    assert (said["seeds"], said["baseline"]) == ([5, 6], "zeropad")
    assert said["base"]["federation"]["rounds"] == 1
    again = succeed("compare", written, "--json", "--allow-file", "mine.py", "--jobs", "1")
    assert json_lines(again) == []
    refused = succeed("compare", written, "--dry-run", "--json", "--allow-file", "mine.py")
    assert [row["done"] for row in json_lines(refused)[0]["cells"]] == [2, 2]


def test_a_file_that_nobody_named_does_not_run(call: Call, suite: Path, tmp_path: Path):
    (tmp_path / "mine.py").write_text("raise SystemExit('it ran')\n", encoding="utf-8")
    suite.write_text(suite.read_text(encoding="utf-8").replace("- zeropad", "- mine.py"), encoding="utf-8")
    result = call("compare", suite, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "--allow-file" in result.stderr
    assert "it ran" not in result.output


def test_json_says_what_happens_line_by_line(succeed: Call, json_lines: Lines, suite: Path, tmp_path: Path):
    events = json_lines(succeed("compare", suite, "-o", tmp_path / "out", "--json", "--jobs", "1"))
    assert [event["event"] for event in events] == ["begun", "round", "done"]
    assert (events[1]["method"], events[1]["seed"], events[1]["record"]["t"]) == ("zeropad", 0, 0)


def test_a_dry_run_trains_nothing_and_says_what_it_would_cost(succeed: Call, suite: Path, tmp_path: Path):
    result = succeed("compare", suite, "-o", tmp_path / "out", "--dry-run", "--jobs", "2")
    for part in ("What one cell costs", "1 runs", "2 at a time", "time unknown", "not applicable: fedavg"):
        assert part in " ".join(result.stdout.split()), part
    assert not (tmp_path / "out" / "cells").exists()


def test_a_dry_run_needs_neither_a_known_model_nor_known_rows(call: Call, suite: Path, tmp_path: Path):
    asked = ["compare", suite, "-o", tmp_path / "out", "--set", "model.name=distilbert/distilbert-base-uncased"]
    asked += ["--set", "lora.target_modules=[q_lin]", "--set", "data.source=fancyzhx/ag_news"]
    result = call(*asked, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "zeropad" in result.stdout
    assert "reckoned from its shape" in " ".join(result.stderr.split())
    assert call(*asked).exit_code == 2  # for a run both must be there


def test_all_faults_of_a_suite_end_it_before_the_first_cell(call: Call, suite: Path, tmp_path: Path):
    suite.write_text(
        suite.read_text(encoding="utf-8").replace("- zeropad", "- zeropd\n- {name: hetlora, gama: 1}"), encoding="utf-8"
    )
    result = call("compare", suite, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "did you mean 'zeropad'" in result.stderr
    assert "gama" in result.stderr
    assert not (tmp_path / "out").exists()


REFUSING = MINE.replace(
    'paper = "an example"',
    """paper = "an example"

    def check(self, template, peers):
        super().check(template, peers)
        if any(peer.rank > 2 for peer in peers):
            raise ValueError("mine has room for a rank of 2")""",
)


def test_what_a_method_refuses_only_when_it_sees_its_clients_ends_a_suite_before_the_first_cell(
    call: Call, suite: Path, tmp_path: Path
):
    mine = tmp_path / "mine.py"
    mine.write_text(REFUSING, encoding="utf-8")
    suite.write_text(suite.read_text(encoding="utf-8").replace("- fedavg", "- mine.py\n- replication"), encoding="utf-8")
    keys = yaml.safe_load(suite.read_text(encoding="utf-8"))
    result = call("compare", suite, "-o", tmp_path / "out", "--allow-file", mine)
    assert result.exit_code == 2
    assert "mine seed 0: mine has room for a rank of 2" in " ".join(result.stderr.split())
    assert not (tmp_path / "out" / "cells").exists()
    keys["base"]["data"]["validation_fraction"] = 0
    suite.write_text(yaml.safe_dump(keys), encoding="utf-8")
    result = call("compare", suite, "-o", tmp_path / "out", "--allow-file", mine)
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert "method 'replication' weighs updates by their validation scores" in said
    assert "set data.validation_fraction, such as 0.1" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "3"], "a suite file says that itself"),
        (["--methods", "zeropad"], "leave --methods out"),
        (["--only", "metod=x"], "write setting=..., method=... or seed=..."),
        (["--only", "method=fedprox"], "there are zeropad, fedavg"),
        (["--jobs", "none"], "give a number from 1 on, or auto"),
        (["--store", "cells.csv"], "a store is a .jsonl.gz"),
        (["--set", "method=fedprox"], "--set has method, but which method runs is said in `methods` alone"),
        (["--set", "method.mu=0.5"], "--set has method.mu, but hyper-parameters stand in a method's own mapping"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(call: Call, suite: Path, tmp_path: Path, arguments: list[str], message: str):
    result = call("compare", suite, "-o", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_a_config_without_methods_is_told_from_a_suite(call: Call, suite: Path, tmp_path: Path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(yaml.safe_load(suite.read_text(encoding="utf-8"))["base"]), encoding="utf-8")
    result = call("compare", config, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "config.yaml is a config, not a suite: say what is compared, such as --methods" in " ".join(result.stderr.split())
    assert "unknown key" not in result.stderr


def test_a_seed_that_a_setting_does_not_have_is_refused(call: Call, suite: Path, tmp_path: Path):
    keys = yaml.safe_load(suite.read_text(encoding="utf-8"))
    keys |= {"seeds": 3, "sweep": [{"name": "cheap"}, {"name": "dear", "seeds": 1}]}
    suite.write_text(yaml.safe_dump(keys), encoding="utf-8")
    result = call("compare", suite, "-o", tmp_path / "out", "--only", "setting=dear", "--only", "seed=2")
    assert result.exit_code == 2
    assert "no such cell; of its seeds cheap has 0, 1, 2; dear has 0" in " ".join(result.stderr.split())


def test_a_failed_cell_gives_a_table_all_the_same_and_exit_code_1(
    call: Call, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    suite.write_text(suite.read_text(encoding="utf-8").replace("- fedavg", "- flexlora"), encoding="utf-8")
    whole = play.opened

    def failing(config: Any, **keys: Any):
        if config.method["name"] == "flexlora":
            raise RuntimeError("no room")
        return whole(config, **keys)

    monkeypatch.setattr(play, "opened", failing)
    result = call("compare", suite, "-o", tmp_path / "out", "--jobs", "1")
    assert result.exit_code == 1
    assert "failed  flexlora seed 0   no room" in result.stderr
    assert "zeropad" in result.stdout


def test_ctrl_c_ends_after_the_round_with_code_130_and_can_be_gone_on_from(
    succeed: Call, suite: Path, tmp_path: Path, entry: str
):
    text = yaml.safe_load(suite.read_text(encoding="utf-8"))
    text["base"]["federation"] = {"rounds": 30}
    suite.write_text(yaml.safe_dump(text), encoding="utf-8")
    arguments = ["compare", str(suite), "-o", str(tmp_path / "out"), "--jobs", "2"]
    process = subprocess.Popen([sys.executable, "-c", entry, *arguments], stderr=subprocess.PIPE, text=True)
    cell = RunFolder(tmp_path / "out" / "cells" / "all" / "zeropad" / "seed-0")
    end = time.monotonic() + 120
    while len(cell.survey()[0]) < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert "call it once more" in said
    before = cell.records()
    assert 2 <= len(before) < 30
    succeed(*arguments[:-2], "--quiet", "--jobs", "1")
    assert cell.records()[: len(before)] == before
    assert len(cell.records()) == 30
    assert json.loads((tmp_path / "out" / "summary.json").read_text())


def test_rows_that_are_not_there_end_a_suite_before_the_first_cell(call: Call, suite: Path, tmp_path: Path):
    text = yaml.safe_load(suite.read_text(encoding="utf-8"))
    text["sweep"] = [{"name": "first"}, {"name": "second", "data.source": "gone.jsonl"}]
    suite.write_text(yaml.safe_dump(text), encoding="utf-8")
    result = call("compare", suite, "-o", tmp_path / "out", "--jobs", "1")
    assert result.exit_code == 2
    assert "second zeropad seed 0" in " ".join(result.stderr.split())
    assert "gone.jsonl" in result.stderr
    assert not (tmp_path / "out" / "cells").exists()


def test_a_warning_that_all_cells_have_is_said_once(succeed: Call, suite: Path, tmp_path: Path):
    text = yaml.safe_load(suite.read_text(encoding="utf-8"))
    text |= {"seeds": 2, "base": {**text["base"], "task": {"name": "classification", "max_length": 3}}}
    suite.write_text(yaml.safe_dump(text), encoding="utf-8")
    said = succeed("compare", suite, "-o", tmp_path / "out", "--jobs", "1").stderr
    assert " ".join(said.split()).count("train: ") == 1
