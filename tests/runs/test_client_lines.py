"""clients.jsonl: each client, or quantiles and the ten worst; dropped and cut like the records when a run is taken up."""

import json
from pathlib import Path
from typing import Any

import pytest

import fedelta
from fedelta.methods import get_method
from fedelta.models.toy import toy_federation
from fedelta.runs import client_lines
from fedelta.runs.folder import RunFolder
from fedelta.runs.runner import rounds


def a_round(ranks: tuple[int, ...] = (2, 2, 2)) -> Any:
    return next(iter(fedelta.federate(get_method("fedavg"), toy_federation(ranks), rounds=1)))


def test_up_to_a_thousand_clients_each_has_its_entry():
    done = a_round()
    line = client_lines.client_line(done, {0: {"accuracy": 0.5}, 7: {"accuracy": 0.25, "loss": 2.0}})
    assert list(line["clients"]) == ["0", "1", "2", "7"]
    entry = line["clients"]["0"]
    assert entry == {
        "weight": done.updates[0].weight,
        "steps": done.updates[0].metrics["num_steps"],
        "loss": done.updates[0].metrics["loss"],
        "scores": {"accuracy": 0.5},
    }
    assert line["clients"]["7"] == {"scores": {"accuracy": 0.25, "loss": 2.0}}, "it was scored, and took no part"
    assert "scores" not in line["clients"]["1"]


def test_of_more_clients_there_are_quantiles_and_the_ten_worst():
    scores = {k: {"accuracy": k / 2000, "loss": k / 1000} for k in range(1001)}
    line = client_lines.client_line(a_round(), scores)
    assert "clients" not in line
    assert line["count"] == 1001
    assert line["quantiles"]["scores.accuracy"] == pytest.approx(
        {"0.0": 0, "0.05": 0.025, "0.25": 0.125, "0.5": 0.25, "0.75": 0.375, "0.95": 0.475, "1.0": 0.5}
    )
    assert list(line["worst"]["scores.accuracy"]) == [str(k) for k in range(10)], "the smallest accuracy is the worst"
    assert list(line["worst"]["scores.loss"]) == [str(k) for k in range(1000, 990, -1)], "the largest loss is the worst"
    assert set(line["worst"]["loss"]) == {"0", "1", "2"}
    assert "weight" not in line["worst"]
    assert len(json.dumps(line)) < 4000
    assert "clients" in client_lines.client_line(a_round(), {k: {"accuracy": 0.5} for k in range(1000)})


def test_a_line_that_a_kill_cut_off_does_not_count_and_a_later_one_of_a_round_does(tmp_path: Path):
    path = tmp_path / "clients.jsonl"
    assert client_lines.read(path) == []
    lines = [{"t": 0, "clients": {}}, {"t": 1, "clients": {"0": {"loss": 1.0}}}, {"t": 1, "clients": {"0": {"loss": 2.0}}}]
    for line in lines:
        client_lines.append(path, line)
    with path.open("a") as file:
        file.write('{"t": 2, "clie')
    assert client_lines.read(path) == [lines[0], lines[2]]
    client_lines.rewind(path, 5)
    assert path.read_text() == f"{json.dumps(lines[0])}\n{json.dumps(lines[2])}\n"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"t": true}', '{"t": -1}', '{"t": 0, "clients": 3}', '{"t": 0, "clients": {"0": 3}}',
             '{"t": 0, "clients": {"0": {"scores": [1]}}}', '{"t": 0, "worst": {"loss": 1}}', "[" * 100_000, "\xff"],
)  # fmt: skip
def test_a_line_that_is_none_is_left_out_and_named_when_the_run_goes_on(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "clients.jsonl"
    path.write_bytes(text.encode("latin-1") + b'\n{"t": 1, "clients": {}}\n')
    assert client_lines.read(path) == [{"t": 1, "clients": {}}]
    client_lines.rewind(path, 2)
    assert "1 damaged lines are dropped" in caplog.text
    assert path.read_text() == '{"t": 1, "clients": {}}\n'


def test_a_resumed_run_goes_back_with_its_records(tiny_config: dict[str, Any], tmp_path: Path):
    whole = fedelta.run(tiny_config, {"output": str(tmp_path / "whole")})
    left = rounds(tiny_config, {"output": str(tmp_path / "left")})
    next(left)
    left.close()
    file = RunFolder(tmp_path / "left").clients_file
    beyond = '{"t": 1, "clients": {"0": {"loss": 99.0}}}\n{"t": 7, "clients": {}}\n{"t": 2'
    file.write_text(file.read_text() + beyond)
    fedelta.run(resume=tmp_path / "left")
    assert file.read_bytes() == RunFolder(whole.folder).clients_file.read_bytes()
    lines = client_lines.read(file)
    assert [line["t"] for line in lines] == [0, 1]
    assert lines[1]["clients"]["0"].keys() == {"weight", "steps", "loss", "scores"}
    assert sum(entry["weight"] for entry in lines[1]["clients"].values()) == pytest.approx(1)


def test_a_run_whose_file_was_taken_away_goes_on(tiny_config: dict[str, Any], tmp_path: Path):
    left = rounds(tiny_config, {"output": str(tmp_path / "run")})
    next(left)
    left.close()
    RunFolder(tmp_path / "run").clients_file.unlink()
    fedelta.run(resume=tmp_path / "run")
    assert [line["t"] for line in client_lines.read(RunFolder(tmp_path / "run").clients_file)] == [1]


def test_the_worst_client_of_the_record_is_that_of_the_lines(tiny_config: dict[str, Any], tmp_path: Path):
    result = fedelta.run(tiny_config, {"output": str(tmp_path / "run")})
    last = client_lines.read(RunFolder(result.folder).clients_file)[-1]["clients"]
    worst = result.final["clients"]["accuracy"]
    assert last[str(worst["worst_client"])]["scores"]["accuracy"] == worst["worst"]
