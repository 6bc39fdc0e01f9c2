"""Records that are handed on: to functions, and to TensorBoard."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fedelta
from fedelta.runs import sinks
from fedelta.runs.config import ConfigError
from fedelta.runs.sinks import scalars

Record = dict[str, Any]


class FakeWriter:
    """Stands for torch's writer of event files."""

    made: list["FakeWriter"]

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.purge_step, self.scalars, self.closed = folder, purge_step, list[tuple[str, float, int]](), False
        FakeWriter.made.append(self)

    def add_scalar(self, name: str, value: float, t: int) -> None:
        self.scalars.append((name, value, t))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def tensorboard(monkeypatch: pytest.MonkeyPatch) -> list[FakeWriter]:
    """The writers that were made, where TensorBoard is installed."""
    FakeWriter.made = []
    module = ModuleType("torch.utils.tensorboard")
    vars(module)["SummaryWriter"] = FakeWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(sinks, "find_spec", lambda name: object())
    return FakeWriter.made


@pytest.fixture
def config(tiny_config: Record, tmp_path: Path) -> Record:
    return tiny_config | {"output": str(tmp_path / "run")}


def test_a_sink_gets_each_record_when_its_round_is_on_disk(config: Record):
    seen: list[Record] = []

    def sink(record: Record) -> None:
        lines = (Path(config["output"]) / "rounds.jsonl").read_text().splitlines()
        assert json.loads(lines[-1]) == record
        seen.append(record)

    result = fedelta.run(config, sinks=[sink])
    assert seen == list(result.records)


def test_what_a_sink_raises_ends_a_run_that_can_be_taken_up(config: Record):
    def full(record: Record) -> None:
        raise OSError("the tracker is full")

    with pytest.raises(OSError, match="the tracker is full"):
        fedelta.run(config, sinks=[full])
    seen: list[Record] = []
    result = fedelta.run(resume=config["output"], sinks=[seen.append])
    assert [record["t"] for record in seen] == [1]
    assert len(result.records) == 2


@pytest.mark.parametrize("again", [False, True], ids=["new", "resumed"])
def test_what_is_no_function_is_refused_before_any_work(again: bool, config: Record):
    wrong: Any = ["wandb"]
    with pytest.raises(TypeError, match="sinks must be functions of a record, not 'wandb'"):
        fedelta.run(None if again else config, resume=config["output"] if again else None, sinks=wrong)
    assert not Path(config["output"]).exists()


def test_scalars_say_nothing_of_one_client_or_one_layer(config: Record):
    record = fedelta.run(config).final
    found = scalars(record)
    assert {"train_loss", "test/accuracy", "validation/loss", "bytes/up", "seconds/round", "cohort/asked"} <= found.keys()
    assert {"clients/accuracy/mean", "clients/accuracy/spread", "diagnostics/effective_rank"} <= found.keys()
    assert found["test/accuracy"] == record["test"]["accuracy"]
    assert not [name for name in found if "worst" in name or "layer" in name or "spectrum" in name]
    assert all(isinstance(value, float) for value in found.values())
    nodes = {"test": {"accuracy": {"mean": 0.5, "each": {"0": 0.5}}}}
    assert scalars(record | {"nodes": nodes, "train_loss": None}).keys() == found.keys() - {"train_loss"}


@pytest.mark.parametrize("named", ["tensorboard", ["tensorboard"]])
def test_tensorboard_gets_the_scalars_and_goes_on_where_a_run_does(
    named: str | list[str], config: Record, tensorboard: list[FakeWriter]
):
    result = fedelta.run(config | {"report_to": named})
    (writer,) = tensorboard
    assert Path(writer.folder) == result.folder / "tensorboard"
    assert ("test/accuracy", result.final["test"]["accuracy"], 1) in writer.scalars
    assert {t for _, _, t in writer.scalars} == {0, 1}
    assert (writer.purge_step, writer.closed) == (0, True)

    fedelta.run(resume=result.folder, overrides={"federation.rounds": 3})
    assert tensorboard[1].purge_step == 2
    assert {t for _, _, t in tensorboard[1].scalars} == {2}


def test_a_run_in_the_place_of_another_writes_under_its_last_name(config: Record, tensorboard: list[FakeWriter]):
    fedelta.run(config)
    result = fedelta.run(config | {"report_to": "tensorboard"}, force=True)
    assert [Path(writer.folder) for writer in tensorboard] == [result.folder / "tensorboard"]


def test_a_tracker_that_is_not_installed_is_refused_by_name_before_any_work(config: Record, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sinks, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'report_to = tensorboard, which is not installed: pip install "fedelta\[track\]"'):
        fedelta.run(config | {"report_to": "tensorboard"})
    assert not Path(config["output"]).exists()


def test_a_run_can_be_told_to_report_when_it_is_taken_up(config: Record, tensorboard: list[FakeWriter]):
    fedelta.run(config)
    fedelta.run(resume=config["output"], overrides={"federation.rounds": 3, "report_to": "tensorboard"})
    assert len(tensorboard) == 1


def test_the_real_thing_reads_what_was_written(config: Record):
    pytest.importorskip("tensorboard", reason='TensorBoard not installed: pip install "fedelta[track]"')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # pyright: ignore

    result = fedelta.run(config | {"report_to": "tensorboard"})
    result = fedelta.run(resume=result.folder, overrides={"federation.rounds": 3})
    found: Any = EventAccumulator(str(result.folder / "tensorboard"))
    found.Reload()
    accuracies = [(event.step, round(event.value, 4)) for event in found.Scalars("test/accuracy")]
    assert accuracies == [(record["t"], round(record["test"]["accuracy"], 4)) for record in result.records]
