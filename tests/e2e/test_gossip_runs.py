"""Whole runs without a server: what is written of nodes and graph, how a run goes on, what is refused before it starts."""

import json
from pathlib import Path
from typing import Any

import pytest

import fedelta
from fedelta.engines import checkpoint
from fedelta.runs.config import ConfigError, load_config
from fedelta.runs.config.checks import check
from fedelta.runs.experiment import build
from fedelta.runs.folder import RunFolder
from fedelta.runs.plan import plan
from fedelta.runs.records import without_times as untimed
from fedelta.runs.runner import rounds

Config = dict[str, Any]
ON_A_GRAPH: Config = {
    "lora.rank": 2,
    "method": "tad_lora",
    "federation.rounds": 4,
    "federation.topology": {"name": "erdos_renyi", "p": 0.5, "every_round": True},
    "federation.link_drop": 0.2,
}


def without_times(found: Any) -> list[Config]:
    return [untimed(record) for record in found]


def test_a_run_without_a_server_leaves_its_nodes_and_its_graph(tiny_config: Config, tmp_path: Path):
    result = fedelta.run(tiny_config, ON_A_GRAPH | {"output": str(tmp_path / "run")})
    folder = RunFolder(tmp_path / "run")
    assert result.adapter is None
    assert sorted(p.name for p in folder.adapters.iterdir()) == ["client-0", "client-1", "client-2"]
    for part in ("validation", "test"):
        nodes = result.final["nodes"][part]["accuracy"]
        each = list(nodes["each"].values())
        assert list(nodes["each"]) == ["0", "1", "2"]
        assert result.final[part]["accuracy"] == pytest.approx(sum(each) / 3)
        assert (nodes["worst"], nodes["mean"]) == (min(each), pytest.approx(sum(each) / 3))
    for record in result.records:
        assert record["bytes"]["down"] == 0
        assert {"rho_lin", "rho_sq", "spectral_gap", "expected", "lost_links"} <= record["topology"].keys()
    assert checkpoint.load(folder.checkpoint).notes["topology"]["rho_sq"] == result.final["topology"]["rho_sq"]
    assert folder.curves.stat().st_size > 1000


def test_the_interval_that_the_graph_gave_is_written_down(tiny_config: Config, tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    fedelta.run(tiny_config, ON_A_GRAPH | {"output": str(folder.path), "federation.topology": "ring"})
    config = folder.config()
    assert config.method == {"name": "tad_lora", "interval": 2}, "3 by the rule, at most half of the rounds"
    assert config.federation.weights == "uniform"
    longer = fedelta.run(overrides={"federation.rounds": 12}, resume=folder.path)
    assert folder.config().method["interval"] == 2
    assert len(longer.records) == 12


def test_a_stopped_run_goes_on_to_the_same_bytes(tiny_config: Config, tmp_path: Path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    first = fedelta.run(tiny_config, ON_A_GRAPH | {"output": str(whole)})
    records = rounds(tiny_config, ON_A_GRAPH | {"output": str(stopped)})
    next(records)
    next(records)
    records.close()
    again = fedelta.run(resume=stopped)
    assert without_times(again.records) == without_times(first.records)
    for file in ("adapters/client-1/adapter_model.safetensors", "checkpoint/state-4.safetensors"):
        assert (whole / file).read_bytes() == (stopped / file).read_bytes()


@pytest.mark.parametrize("method", ["fedavg", "ffa_lora", "rolora", "decaf", "local_only"])
def test_methods_run_on_a_graph(method: str, tiny_config: Config, tmp_path: Path):
    changes = ON_A_GRAPH | {"method": method, "federation.topology": "ring", "federation.rounds": 2}
    result = fedelta.run(tiny_config, changes | {"output": str(tmp_path / "run"), "evaluation.every": 2})
    assert "nodes" not in result.records[0]
    assert "nodes" in result.records[1]


@pytest.mark.parametrize(
    "topology", [ON_A_GRAPH["federation.topology"], "star", {"name": "erdos_renyi", "p": 0, "every_round": True}]
)
def test_a_plan_counts_the_messages_of_the_graphs(topology: Any, tiny_config: Config, tmp_path: Path):
    changes = ON_A_GRAPH | {"federation.topology": topology, "federation.link_drop": 0.0, "output": str(tmp_path / "run")}
    sent = [r["bytes"]["up"] for r in fedelta.run(tiny_config, changes).records]
    config = load_config(tiny_config, changes)
    found = plan(build(config, check(config)))
    assert found.bytes["total"] == sum(sent)
    assert found.bytes["first round"] == {"down": 0, "up": sent[0]}
    assert found.cohort == found.clients == 3


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"federation.topology": "rings"}, r"no topology is called 'rings'; did you mean 'ring'"),
        ({"federation.topology": {"name": "erdos_renyi", "q": 0.1}}, r"'erdos_renyi' has no setting 'q'"),
        ({"federation.topology": {"p": 0.1}}, r"federation\.topology: needs a name"),
        ({"federation.topology": {"name": "erdos_renyi", "p": 0.0}}, r"was not connected in 1000 draws"),
        ({"federation.topology": "torus"}, r"both sides must be at least 3"),
        ({"federation.participation": 0.5}, r"participation = 0\.5 has no meaning without a server"),
        ({"method": "flora"}, r"'flora' moves the base model"),
        ({"federation.topology": None}, r"link_drop has no meaning with a server"),
        ({"federation.link_drop": 1.5}, r"federation\.link_drop"),
    ],
)
def test_what_cannot_run_on_a_graph_is_refused_before_anything_is_loaded(changes: Config, what: str, tiny_config: Config):
    with pytest.raises(ConfigError, match=what):
        load_config(tiny_config, ON_A_GRAPH | {"model.name": "nowhere"} | changes)


def test_a_config_with_a_graph_reads_back_as_itself(tiny_config: Config, tmp_path: Path):
    from fedelta.runs.config import dump_config

    config = load_config(tiny_config, ON_A_GRAPH | {"federation.weights": "examples"})
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    assert load_config(file) == config
    assert config.federation.weights == "examples"
    assert json.loads(json.dumps(config.federation.topology)) == ON_A_GRAPH["federation.topology"] | {"name": "erdos_renyi"}
