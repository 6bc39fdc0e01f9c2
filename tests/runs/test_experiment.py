"""A run builds each thing once, and its settings are those of its config."""

from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fedelta
from fedelta.cli import app
from fedelta.engines.settings import RunSettings
from fedelta.exchange.channel import Channel
from fedelta.exchange.codecs import get_codec
from fedelta.models import loading
from fedelta.peers import Peer
from fedelta.runs import base, deal, experiment
from fedelta.runs.config import Federation, checks, load_config
from fedelta.runs.config.choices import settings_of

FEDERATION: dict[str, Any] = {
    "rounds": 7,
    "weights": "uniform",
    "max_share": 0.5,
    "quorum": 2,
    "link_drop": 0.25,
    "spool": False,
}
"""A value other than the default for each key that a run's settings take as it is."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a run builds what it names, loads data, loads a model and chooses an engine."""
    counted: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            counted[name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    count(checks, "choices_of")
    count(deal, "load_splits")
    count(experiment, "load_adapted")
    count(experiment, "choose")
    count(base, "find_base")
    count(loading, "find_base")
    return counted


ONCE = {"choices_of": 1, "load_splits": 1, "load_adapted": 1, "choose": 1, "find_base": 1}


def test_a_run_builds_each_thing_once(tiny_config: dict[str, Any], tmp_path: Path, calls: Counter[str]) -> None:
    fedelta.run(tiny_config, {"output": str(tmp_path / "run"), "federation.rounds": 1})
    assert calls == ONCE


def test_a_run_on_the_screen_shows_the_data_that_it_dealt(
    tiny_config: dict[str, Any], tmp_path: Path, calls: Counter[str]
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(str(tiny_config), encoding="utf-8")
    done = CliRunner().invoke(app, ["run", str(path), "--output", str(tmp_path / "run"), "--set", "federation.rounds=1"])
    assert "Split of the training rows" in done.stdout
    assert "majority class" in done.stdout
    assert calls == ONCE


def test_every_option_of_a_run_comes_from_its_key() -> None:
    built = settings_of(Federation(**FEDERATION), seed=3)
    assert {name: getattr(built, name) for name in FEDERATION} == FEDERATION
    assert built.seed == 3
    peers = [Peer(id=k, rank=1, num_examples=1) for k in range(4)]
    assert len(settings_of(Federation(participation=0.5), seed=3).cohort(0, peers, 3)) == 2
    coded = settings_of(Federation.model_validate({"channel": ["top_k", {"name": "bf16"}]}), seed=3).channel
    assert coded == Channel((get_codec("top_k"), get_codec("bf16")))
    # the engine is chosen when the clients are there; the other options belong to the caller of a run
    chosen_later = {"engine", "token_budget", "score", "start", "debug"}
    assert {entry.name for entry in fields(RunSettings)} == FEDERATION.keys() | {"seed", "cohort", "channel"} | chosen_later


def test_the_engine_is_written_as_it_was_chosen(tiny_config: dict[str, Any]) -> None:
    config = load_config(tiny_config)
    built = experiment.build(config, checks.check(config))
    federation = built.config.federation
    assert config.federation.engine == "auto"
    assert (federation.engine, federation.token_budget) == (built.choice.engine, built.choice.token_budget)
