"""A run whose model and rows are not here is reckoned from their shape and size, and as exactly as one that is here."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn
from typer.testing import CliRunner

from fedelta.cli import app
from fedelta.runs import hub_facts
from fedelta.runs.config import ConfigError, Model, RunConfig, load_config
from fedelta.runs.config.checks import check
from fedelta.runs.outline import built
from fedelta.runs.plan import plan

AG_NEWS: dict[str, Any] = {
    "model": "distilbert/distilbert-base-uncased",
    "lora": {"rank": 5, "target_modules": ["q_lin"]},
    "data": {"source": "fancyzhx/ag_news"},
    "partition": {"clients": 4},
    "training": {"batch_size": 16, "local_epochs": 1},
    "federation": {"rounds": 3, "participation": 0.5},
}

HEAD = 768 * 768 + 768 + 4 * 768 + 4
"""Weights of DistilBERT's head for four labels."""


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing can be fetched, and nothing was."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


def config_of(**changes: Any) -> RunConfig:
    return load_config({**AG_NEWS, **changes})


@pytest.mark.parametrize("method", ["fedavg", "flexlora", "fedgalore", "centralised"])
def test_shape_and_size_are_those_of_the_hub(method: str) -> None:
    experiment = built(config_of(method=method), check(config_of(method=method)))
    found = plan(experiment)
    layers = 6 * 5 * (768 + 768)
    assert found.trained == layers + HEAD
    assert found.memory["frozen base"] == 4 * (66_362_880 + (0 if method else 0))
    assert found.steps == 3 * 2 * 96_000 // 4 // 16  # a tenth of 120,000 rows to choose by, and one to report on
    assert all(x.is_meta for x in experiment.model.module.parameters())
