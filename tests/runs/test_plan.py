"""A dry run reckons the cost of every method without training, and warns of nothing that the run itself would not."""

import logging
from typing import Any

import pytest

from fedelta.methods import list_methods
from fedelta.runs.config import load_config
from fedelta.runs.config.checks import check
from fedelta.runs.config.section import RefusedByClaim
from fedelta.runs.experiment import build
from fedelta.runs.plan import plan

ROUNDS = 40


@pytest.mark.parametrize("method", list_methods())
def test_every_method_is_planned_without_training(tiny_config: dict[str, Any], method: str, monkeypatch, caplog) -> None:
    changes = {"method": method, "lora.rank": 2, "federation.rounds": ROUNDS, "federation.participation": 1.0}
    config = load_config(tiny_config, changes)
    try:
        experiment = build(config, check(config))
    except RefusedByClaim:
        pytest.skip(f"{method} does not serve this run, and says so before any cost is reckoned")
    monkeypatch.setattr(type(experiment.clients[0]), "train", _never)
    with caplog.at_level(logging.WARNING):
        found = plan(experiment)
    assert (found.rounds, found.clients) == (ROUNDS, 1 if method == "centralised" else 3)
    assert found.steps > 0
    assert "rounds are few" not in caplog.text


def _never(*_: object, **__: object) -> None:
    raise AssertionError("a dry run trains")
