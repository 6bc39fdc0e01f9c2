"""A run whose model and rows are not here is reckoned from their shape and size, and as exactly as one that is here."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedelta.runs import hub_facts
from fedelta.runs.config import ConfigError, RunConfig, load_config
from fedelta.runs.config.checks import check
from fedelta.runs.experiment import build
from fedelta.runs.outline import built
from fedelta.runs.plan import Plan, plan

NEWS: dict[str, Any] = {
    "model": "distilbert/distilbert-base-uncased",
    "lora": {"rank": 5, "target_modules": ["q_lin"]},
    "data": {"source": "fancyzhx/ag_news"},
    "partition": {"clients": 4},
    "training": {"batch_size": 16, "local_epochs": 1},
    "federation": {"rounds": 3, "participation": 0.5},
}


def planned(**changes: Any) -> Plan:
    config = load_config(NEWS, changes)
    return plan(built(config, check(config)))


@pytest.mark.parametrize("method", ["fedavg", "fedgalore", "centralised"])
def test_shape_and_size_are_those_of_the_hub(method: str) -> None:
    found = planned(method=method)
    head = 768 * 768 + 768 + 4 * 768 + 4
    assert found.trained == 6 * 5 * (768 + 768) + head
    # 66,362,880 weights, the head as it was before it is trained, and 512 positions in 8 bytes.
    assert found.memory["frozen base"] == 4 * (66_362_880 + head) + 8 * 512
    assert found.steps == 3 * 2 * 96_000 // 4 // 16  # of 120,000 rows a tenth is kept to choose by, and one to report on


@pytest.mark.parametrize("method", ["flexlora", "fedex_lora", "fedgalore", "raflora", "flora", "replication", "subspace_reg"])
def test_an_outline_costs_what_the_run_costs(tiny_config: dict[str, Any], method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(tiny_config, {"method": method})
    experiment = build(config, check(config))
    known = plan(experiment)
    _know(config, len(experiment.deal.splits.train), monkeypatch)
    absent = load_config(tiny_config, {"method": method, "model.name": "somebody/tiny", "data.source": "somebody/rows"})
    found = plan(built(absent, check(absent)))
    # Messages name the base by its fingerprint, and an empty adapter has some numbers of its own: a few bytes in a thousand.
    assert found.bytes["total"] == pytest.approx(known.bytes["total"], rel=5e-3)
    assert replace(found, bytes={}) == replace(known, bytes={})


def _know(config: RunConfig, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the model and the rows of a config known under names on the Hub, where they are not."""
    shape = json.loads((Path(config.model.name) / "config.json").read_text(encoding="utf-8"))
    shape = {key: value for key, value in shape.items() if key not in ("id2label", "label2id", "architectures", "dtype")}
    labels = {"labels": 2}
    facts = {"models": {"somebody/tiny": shape}, "rows": {"somebody/rows": {"train": round(rows / 0.6), **labels}}}
    monkeypatch.setattr(hub_facts, "_facts", facts.__getitem__)


def test_rows_that_test_a_client_are_not_trained_on() -> None:
    assert planned(**{"data.client_test_fraction": 0.5}).steps == planned().steps // 2


def test_what_is_neither_here_nor_known_is_refused(tiny_config: dict[str, Any]) -> None:
    config = load_config(tiny_config, {"model.name": "somebody/unknown"})
    with pytest.raises(OSError, match="somebody/unknown"):
        built(config, check(config))
    with pytest.raises((OSError, ValueError, ImportError), match="somebody/rows"):
        planned(**{"data.source": "somebody/rows"})


def test_a_fault_of_the_config_is_one_here_too() -> None:
    with pytest.raises((ValueError, ConfigError), match="q_nowhere"):
        planned(**{"lora.target_modules": ["q_nowhere"]})


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"data.fields": {"text": "txet"}}, r"row 0 has no field 'txet'"),
        ({"partition": {"clients": 50_000}, "lora.rank": 2}, r"50000|50,000"),
    ],
    ids=["field", "clients"],
)
def test_a_fault_of_rows_that_are_here_is_no_reason_to_take_them_for_absent(
    tiny_config: dict[str, Any], changes: dict[str, Any], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source is known by its size, too: to reckon with that would hide the mistake until the run begins."""
    monkeypatch.setattr(hub_facts, "_facts", {"models": {}, "rows": {tiny_config["data"]["source"]: {"train": 90}}}.__getitem__)
    config = load_config(tiny_config, changes)
    with pytest.raises((ValueError, OSError), match=fault):
        built(config, check(config))
