"""The lines that come with a built-in config hold for what they were measured on, and for nothing else."""

import json
from importlib.resources import files
from typing import Any

import pytest

from fedelta.runs.config import load_config
from fedelta.runs.lines import config_digest, lines_for

CONFIG = load_config("quickstart")


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    return json.loads(files("fedelta").joinpath("runs/configs/quickstart-lines.json").read_text(encoding="utf-8"))


def test_the_committed_lines_are_those_of_the_config_as_it_is(known: dict[str, Any]):
    assert known["config"] == config_digest(CONFIG), "the config has changed: measure its lines anew (tools/lines.py)"
    assert known["command"].startswith("fedelta compare ")
    assert known["commit"]
    assert not known["commit"].endswith("+"), "they were measured by changed code"
    assert known["scores"]["local_only"]["test"]["accuracy"] < known["scores"]["centralised"]["test"]["accuracy"]


def test_lines_hold_for_the_same_rows_settings_and_versions(known: dict[str, Any]):
    found = lines_for(CONFIG, known["rows"], known["versions"])
    assert found == {key: known[key] for key in ("command", "commit", "scores")}
    patched = {**known["versions"], "torch": ".".join([*known["versions"]["torch"].split(".")[:2], "99"])}
    assert lines_for(CONFIG, known["rows"], patched) == found


@pytest.mark.parametrize("changes", [{"method": "zeropad"}, {"name": "other"}, {"device": "cpu"}])
def test_lines_hold_for_another_method_name_or_device(changes: dict[str, Any], known: dict[str, Any]):
    assert lines_for(load_config("quickstart", changes), known["rows"], known["versions"])


@pytest.mark.parametrize("changes", [{"seed": 1}, {"federation.rounds": 3}, {"partition.concentration": 1.0}, {"lora.rank": 4}])
def test_lines_of_other_settings_are_left_out(changes: dict[str, Any], known: dict[str, Any]):
    assert lines_for(load_config("quickstart", changes), known["rows"], known["versions"]) is None


def test_lines_of_other_rows_or_versions_are_left_out(known: dict[str, Any]):
    assert lines_for(CONFIG, {**known["rows"], "test": "0" * 64}, known["versions"]) is None
    assert lines_for(CONFIG, {}, known["versions"]) is None
    assert lines_for(CONFIG, known["rows"], {**known["versions"], "torch": "1.0.0"}) is None
    assert lines_for(CONFIG, known["rows"], {}) is None
