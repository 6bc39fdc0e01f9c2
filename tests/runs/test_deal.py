"""Rows of clients that have files of their own, in a run in one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fedelta
from fedelta.runs.config import ConfigError, RunConfig, load_config, read_config
from fedelta.runs.config.checks import check
from fedelta.runs.deal import Deal, deal

LABELS = {"a": ["cats", "dogs", "cats"], "b": ["dogs", "cats"], "c": ["cats", "dogs", "dogs", "cats"]}


@pytest.fixture
def own_files(tmp_path: Path) -> dict[str, str]:
    """A file for each of three clients, whose texts say whose they are."""
    for name, labels in LABELS.items():
        write(tmp_path / f"{name}.jsonl", [{"text": f"{name}{k} purr", "label": label} for k, label in enumerate(labels)])
    return {name: str(tmp_path / f"{name}.jsonl") for name in LABELS}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def dealt(config: RunConfig) -> Deal:
    return deal(config, check(config).task)


def texts(found: Deal) -> list[list[str]]:
    return [[found.splits.train[i]["text"] for i in part] for part in found.parts]


WHOLE = [["a0 purr", "a1 purr", "a2 purr"], ["b0 purr", "b1 purr"], ["c0 purr", "c1 purr", "c2 purr", "c3 purr"]]


@pytest.mark.parametrize("form", [dict, list])
def test_each_client_has_its_own_file_and_nothing_is_carved(form: Any, own_files: dict[str, str]) -> None:
    given = own_files if form is dict else list(own_files.values())
    found = dealt(read_config({"data": {"clients": given}}))
    assert texts(found) == WHOLE
    assert (found.splits.validation, found.splits.test) == ([], [])
    assert found.task.labels == ("cats", "dogs")
    assert list(found.ranks) == [8, 8, 8]


def test_files_of_validation_and_test_rows_stand_beside(own_files: dict[str, str]) -> None:
    clients = {"a": own_files["a"]}
    found = dealt(read_config({"data": {"clients": clients, "test": own_files["c"], "validation": own_files["b"]}}))
    assert [row["text"] for row in found.splits.test] == WHOLE[2]
    assert [row["text"] for row in found.splits.validation] == WHOLE[1]


def test_held_out_rows_come_from_a_clients_own(own_files: dict[str, str]) -> None:
    found = dealt(
        read_config(
            {"data": {"clients": own_files, "client_test_fraction": 0.34}, "lora": {"rank": [1, 2, 4]}, "method": "flexlora"}
        )
    )
    assert [len(part) for part in found.held_out] == [1, 1, 1]
    for k, (train, test) in enumerate(zip(found.parts, found.held_out, strict=True)):
        both = [found.splits.train[i]["text"] for i in sorted([*train, *test])]
        assert both == WHOLE[k]
    assert list(found.ranks) == [1, 2, 4]


def test_fields_limits_and_gaps_are_those_of_each_file(own_files: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    write(Path(own_files["b"]), [{"said": "b0", "label": ""}, {"said": "b1", "label": "dogs"}])
    for name in ("a", "c"):
        write(Path(own_files[name]), [{"said": f"{name}{k}", "label": x} for k, x in enumerate(LABELS[name])])
    data = {"clients": own_files, "fields": {"text": "said", "label": "label"}, "empty": "drop", "limit": {"train": 2}}
    found = dealt(read_config({"data": data}))
    assert [len(part) for part in found.parts] == [2, 1, 2]
    assert found.splits.left_out == {"b": 1}
    with pytest.raises(ValueError, match="client 'b': 1 of 2 rows have an empty 'label'"):
        dealt(read_config({"data": {**data, "empty": "error"}}))


WRONG = [
    ({"partition": {"scheme": "iid", "clients": 3}}, "partition has no meaning where data.clients names"),
    ({"data.source": "docs.jsonl"}, "data.source has no meaning where data.clients names"),
    ({"data.stratify": "label"}, "data.stratify has no meaning"),
    ({"data.clients": []}, "data.clients: names no file"),
    ({"lora.rank": [1, 2]}, "lists 2 ranks for the number of data.clients = 3"),
    ({"federation.quorum": 4}, "federation.quorum"),
]


@pytest.mark.parametrize(("changes", "reason"), WRONG)
def test_what_does_not_go_together_is_refused_by_key(changes: Any, reason: str, own_files: dict[str, str]) -> None:
    given = {"data": {"clients": own_files}, "method": "flexlora"}
    with pytest.raises(ConfigError, match=reason):
        load_config(given, changes)


@pytest.mark.parametrize("part", ["test", "validation"])
def test_rows_to_report_by_are_no_clients(part: str, own_files: dict[str, str], tmp_path: Path) -> None:
    link = tmp_path / "link.jsonl"
    link.symlink_to(own_files["c"])
    for file in (own_files["c"], str(link)):
        with pytest.raises(ConfigError, match=f"has the {part} rows, and client 'c' would train on them"):
            load_config({"data": {"clients": own_files, part: file}, "method": "flexlora"})


def test_a_number_is_a_name(own_files: dict[str, str]) -> None:
    found = read_config({"data": {"clients": {1: own_files["a"], 2: own_files["b"]}}})
    assert list(found.client_files()) == ["1", "2"]


def test_of_several_files_the_one_without_a_field_is_named(own_files: dict[str, str]) -> None:
    write(Path(own_files["b"]), [{"body": "b0 purr", "label": "dogs"}])
    with pytest.raises(ValueError, match=r"b\.jsonl: row 0 has no field 'text'; it has 'body', 'label'"):
        dealt(read_config({"data": {"clients": own_files}}))


def test_a_file_that_is_not_there_is_named(own_files: dict[str, str]) -> None:
    Path(own_files["b"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.jsonl"):
        dealt(read_config({"data": {"clients": own_files}}))


def test_a_run_on_files_of_clients_is_taken_up_only_with_the_same_rows(
    own_files: dict[str, str], tiny_config: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = {key: value for key, value in tiny_config.items() if key not in ("partition", "data")}
    test = tmp_path / "test.jsonl"
    test.write_bytes(Path(own_files["c"]).read_bytes())
    given = {**raw, "data": {"clients": own_files, "test": str(test)}, "output": str(tmp_path / "run")}
    done = fedelta.run(given)
    assert "leaves 0 rows" not in caplog.text
    assert [len(r["cohort"]) for r in done.records] == [3, 3]
    assert "accuracy" in done.final["test"]
    fedelta.run(resume=done.folder, overrides={"federation.rounds": 3})
    write(Path(own_files["a"]), [{"text": "purr", "label": "dogs"}] * 3)
    with pytest.raises(ConfigError, match=r"a file of data\.clients"):
        fedelta.run(resume=done.folder, overrides={"federation.rounds": 4})
