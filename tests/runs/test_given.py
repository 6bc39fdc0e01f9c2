"""A run whose clients are objects of a program: it leaves what every run leaves, and is taken up."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import LoraConfig
from typer.testing import CliRunner

import fedelta
from fedelta import Method, Round
from fedelta.cli import app
from fedelta.client import LocalClient
from fedelta.methods.fedavg import FedAvg
from fedelta.models.toy import toy_federation
from fedelta.runs.config import ConfigError
from fedelta.runs.folder import RunFolder
from fedelta.runs.records import without_times
from fedelta.runs.runner import rounds
from fedelta.tasks.classification import Classification

RANKS = (2, 2, 2)
PLAIN = {"name": "mine", "federation": {"rounds": 2}}
ROWS = [{"text": "purr mew the", "label": "cats"}, {"text": "bark growl a", "label": "dogs"}] * 4


@dataclass(frozen=True, kw_only=True)
class Halved(FedAvg):
    """Moves half as far, by a factor that a test chooses."""

    factor: float = 0.5


def score(done: Round) -> dict[str, dict[str, float]]:
    return {"validation": {"accuracy": 1 / (done.t + 1)}, "test": {"accuracy": float(done.t)}}


@pytest.fixture
def hf(tiny_model: Path) -> list[LocalClient]:
    lora = LoraConfig(target_modules=["query", "value"], lora_alpha=8)
    task = Classification(labels=("cats", "dogs"))
    return fedelta.hf_clients(str(tiny_model), None, [ROWS, ROWS[:6]], lora, [1, 2], task=task, local_steps=1, batch_size=4)


def test_a_run_of_toy_clients_leaves_the_folder_of_any_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = fedelta.run(PLAIN, {"output": str(folder)}, clients=toy_federation(RANKS), evaluate=score)
    assert {"config.yaml", "rounds.jsonl", "clients.jsonl", "run.json", "report.html", "checkpoint"} <= {
        path.name for path in folder.iterdir()
    }
    assert [record["test"]["accuracy"] for record in result.records] == [0.0, 1.0]
    assert yaml.safe_load((folder / "config.yaml").read_text())["federation"]["where"] == "program"
    best = [json.loads(line)["validation"]["accuracy"] for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert best == [1.0, 0.5]
    assert (folder / "adapters/best").is_dir()


def test_its_numbers_are_those_of_the_engine(tmp_path: Path) -> None:
    from fedelta.engines.server import federate

    result = fedelta.run(PLAIN, {"output": str(tmp_path / "run")}, clients=toy_federation(RANKS))
    here = [done.loss for done in federate(FedAvg(), toy_federation(RANKS), rounds=2)]
    assert [record["train_loss"] for record in result.records] == pytest.approx(here, rel=1e-12)


def test_clients_of_a_model_are_scored_on_rows_and_told_in_the_config(hf: list[LocalClient], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = {**PLAIN, "method": "flexlora"}
    result = fedelta.run(config, {"output": str(folder)}, clients=hf, evaluate={"validation": ROWS[:2], "test": ROWS})
    assert set(result.final["test"]) == {"accuracy", "macro_f1", "loss"}
    assert result.adapter is not None
    told = RunFolder(folder).config()
    assert told.lora.rank == [1, 2]
    assert told.lora.lora_alpha == 8
    assert told.lora.target_modules == ["query", "value"]
    assert told.task["labels"] == ["cats", "dogs"]
    assert (told.training.batch_size, told.training.local_steps) == (4, 1)
    assert told.partition.clients == 2
    assert Path(told.model.name).name == Path(str(hf[0].model.layout.config["base_model_name_or_path"])).name  # pyright: ignore[reportAttributeAccessIssue]


def test_a_stopped_run_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    whole = fedelta.run(PLAIN, {"output": str(tmp_path / "whole")}, clients=toy_federation(RANKS), evaluate=score)
    left = rounds(PLAIN, {"output": str(tmp_path / "left")}, clients=toy_federation(RANKS), evaluate=score)
    next(left)
    left.close()
    again = fedelta.run(resume=tmp_path / "left", clients=toy_federation(RANKS), evaluate=score)
    for a, b in zip(whole.records, again.records, strict=True):
        assert without_times(a) == without_times(b)
    states = [tmp_path / name / "adapters/last/adapter_model.safetensors" for name in ("whole", "left")]
    assert states[0].read_bytes() == states[1].read_bytes()


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        (lambda: toy_federation((2, 2)), r"partition\.clients was 3, is 2"),
        (lambda: toy_federation((1, 1, 1)), r"lora\.rank was 2, is 1"),
        (lambda: toy_federation(RANKS, seed=1), "begin from another adapter"),
        (lambda: toy_federation(RANKS, num_examples=(9, 9, 9)), "client 0 was .*num_examples"),
    ],
)
def test_other_clients_than_those_that_began_are_refused(clients: Any, message: str, tmp_path: Path) -> None:
    fedelta.run(PLAIN, {"output": str(tmp_path / "run")}, clients=toy_federation(RANKS))
    with pytest.raises(ConfigError, match=message):
        fedelta.run(overrides={"federation.rounds": 3}, resume=tmp_path / "run", clients=clients())


def test_other_rows_to_score_on_are_refused_and_the_same_go_on(hf: list[LocalClient], tmp_path: Path) -> None:
    folder, more, config = tmp_path / "run", {"federation.rounds": 3}, {**PLAIN, "method": "flexlora"}
    fedelta.run(config, {"output": str(folder)}, clients=hf, evaluate={"test": ROWS})
    with pytest.raises(ConfigError, match="evaluate has other rows"):
        fedelta.run(overrides=more, resume=folder, clients=hf, evaluate={"test": ROWS[1:]})
    assert fedelta.run(overrides=more, resume=folder, clients=hf, evaluate={"test": ROWS}).final["test"]


def test_an_adapter_of_a_program_is_put_to_use(hf: list[LocalClient], tmp_path: Path) -> None:
    folder, rows = tmp_path / "run", tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    result = fedelta.run({**PLAIN, "method": "flexlora"}, {"output": str(folder)}, clients=hf, evaluate={"test": ROWS})
    done = CliRunner().invoke(app, ["evaluate", str(folder), str(rows), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["loss"] == pytest.approx(result.final["test"]["loss"], rel=1e-5)
    done = CliRunner().invoke(app, ["evaluate", str(folder)])
    assert done.exit_code == 2
    assert "the rows of this run were objects of a program: give the rows" in " ".join(done.output.split())
    fedelta.run(PLAIN, {"output": str(tmp_path / "toy")}, clients=toy_federation(RANKS))
    for command in (["evaluate", str(tmp_path / "toy"), str(rows)], ["run", str(tmp_path / "toy/config.yaml"), "--dry-run"]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 2
        assert "program" in done.output


def test_the_folder_says_who_can_go_on_with_it(tmp_path: Path) -> None:
    fedelta.run(PLAIN, {"output": str(tmp_path / "run")}, clients=toy_federation(RANKS))
    result = CliRunner().invoke(app, ["run", "--resume", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "the program that made its clients carries it out" in " ".join(result.output.split())


def test_an_own_method_is_given_again_with_the_same_hyper_parameters(tmp_path: Path) -> None:
    folder, more = tmp_path / "run", {"federation.rounds": 3}
    fedelta.run(PLAIN, {"output": str(folder)}, clients=toy_federation(RANKS), method=Halved(factor=0.25))
    assert RunFolder(folder).config().method == {"name": f"{__name__}:Halved", "factor": 0.25}
    for given, message in (
        (None, "was an object of a program: give it again"),
        (Halved(), r"method\.factor was 0\.25, is 0\.5"),
    ):
        with pytest.raises(ConfigError, match=message):
            fedelta.run(overrides=more, resume=folder, clients=toy_federation(RANKS), method=given)
    again = fedelta.run(overrides=more, resume=folder, clients=toy_federation(RANKS), method=Halved(factor=0.25))
    assert again.final["t"] == 2


def test_a_method_is_a_name_a_file_or_an_object_beside_a_config_too(tiny_config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom fedelta.methods.flexlora import FlexLoRA\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Mine(FlexLoRA):\n    pass\n"
    )
    given: Sequence[str | Method] = ("flexlora", str(tmp_path / "mine.py"), fedelta.get_method("flexlora"))
    losses = [
        fedelta.run(tiny_config, {"output": str(tmp_path / str(k))}, method=method).final["train_loss"]
        for k, method in enumerate(given)
    ]
    assert len(set(losses)) == 1
    names = [RunFolder(tmp_path / str(k)).config().method["name"] for k in range(3)]
    assert names == ["flexlora", "mine.py", "flexlora"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": {"lora": {"rank": 3}, "data": {"source": "x"}}}, "data and lora cannot stand in a config"),
        ({"config": {"federation": {"where": "flower"}}}, "clients that are given train in this process"),
        ({"evaluate": {"test": [{"text": "x"}]}}, "do not say how rows become examples"),
        ({"evaluate": {"train": []}}, "give them under validation or test"),
        ({"clients": []}, "clients is empty"),
        ({"task": "classification"}, "leave task out"),
        ({"clients": None, "evaluate": score}, "evaluate belongs to clients"),
    ],
)
def test_what_contradicts_the_clients_is_refused_before_anything_is_written(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        fedelta.run(
            **{"config": {}, "clients": toy_federation(RANKS), "overrides": {"output": str(tmp_path / "run")}} | options
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "found", [3, {"train": {"x": 1.0}}, {"test": 1.0}, {"test": {"x": float("nan")}}, {"test": {"x": "1"}}]
)
def test_scores_that_are_none_are_refused_by_what_they_are(found: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="evaluate must return finite numbers by metric"):
        fedelta.run(PLAIN, {"output": str(tmp_path / "run")}, clients=toy_federation(RANKS), evaluate=lambda done: found)


@pytest.mark.parametrize(
    "options", [{"method": 3}, {"task": Classification}, {"clients": 3}, {"clients": [3]}, {"evaluate": 3}]
)
def test_other_kinds_of_objects_are_refused_by_name(options: dict[str, Any], tmp_path: Path) -> None:
    given = {"clients": toy_federation(RANKS)} if "evaluate" in options else {}
    with pytest.raises(TypeError, match="|".join(options)):
        fedelta.run({}, {"output": str(tmp_path / "run")}, **given, **options)


def test_progress_is_shown_where_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fedelta.run(PLAIN, {"output": str(tmp_path / "a")}, clients=toy_federation(RANKS))
    assert capsys.readouterr().out == ""
    fedelta.run(PLAIN, {"output": str(tmp_path / "b")}, clients=toy_federation(RANKS), progress=True)
    assert capsys.readouterr().out.count("round") == 2
