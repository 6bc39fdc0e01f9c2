"""A record says when, how fast and on how busy a machine it was made, apart from what equal runs have alike."""

import json
from datetime import datetime
from typing import Any

import pytest

import fedelta
from fedelta.report.words import total_seconds
from fedelta.runs.machine import Stopwatch, cores, memory
from fedelta.runs.records import TIMES, read_record, without_times


@pytest.fixture(scope="module")
def records(tiny_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("records") / "run"
    changes = {"output": str(folder), "federation.rounds": 3, "evaluation.every": 2}
    return list(fedelta.run(tiny_config, changes).records)


def test_times_are_kept_by_what_they_were_spent_on(records: list[dict[str, Any]]):
    inner, always, evaluated = {"train", "aggregate"}, {"round", "diagnostics"}, {"evaluation", "save"}
    assert [r["seconds"].keys() - inner for r in records] == [always, always | evaluated, always | evaluated]
    for record in records:
        seconds = record["seconds"]
        assert seconds["train"] + seconds["aggregate"] == pytest.approx(seconds["round"], abs=2e-3)
        assert 0 < seconds["train"] < seconds["round"]
        assert total_seconds(record) == pytest.approx(sum(v for k, v in seconds.items() if k not in inner))


def test_a_record_says_when_and_on_how_busy_a_machine(records: list[dict[str, Any]]):
    for record in records:
        assert datetime.fromisoformat(record["at"]).utcoffset() is not None
        assert record["load"] >= 0
        assert record["memory"]["peak"] > 50e6
    peaks = [record["memory"]["peak"] for record in records]
    assert peaks == sorted(peaks)


def test_what_equal_runs_have_alike_is_all_but_the_times(records: list[dict[str, Any]]):
    assert set(TIMES) <= records[0].keys()
    assert records[0].keys() - without_times(records[0]).keys() == set(TIMES)


@pytest.mark.parametrize("wrong", [{"at": 3}, {"load": "high"}, {"memory": {"peak": -1}}, {"memory": []}])
def test_a_record_with_impossible_times_is_none(wrong: dict[str, Any], records: list[dict[str, Any]]):
    assert read_record(json.dumps(records[0]).encode()) == records[0]
    assert read_record(json.dumps({**records[0], **wrong}).encode()) is None


def test_a_record_of_before_is_still_read(records: list[dict[str, Any]]):
    old = {**without_times(records[0]), "seconds": {"round": 1.0}}
    assert read_record(json.dumps(old).encode()) == old
    assert total_seconds(old) == 1.0


def test_a_stopwatch_adds_up():
    clock = Stopwatch({"round": 1.23456})
    with clock.measure("save"):
        pass
    assert clock.seconds["round"] == 1.235
    assert clock.seconds.keys() == {"round", "save"}


def test_the_machine_is_read():
    assert 1 <= cores() <= 4096
    assert memory()["peak"] > 0
