"""`fedelta gossip`: all nodes of a run on this machine, with a relay and without; the bytes of `fedelta run`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("zenoh", reason='gossip over a network needs pip install "fedelta[gossip]"')
pytest.importorskip("cryptography")

from fedelta.runs.config import load_config
from fedelta.runs.config.roster import read_roster, write_roster
from fedelta.runs.folder import RunFolder
from fedelta.runs.peers_here import FEDELTA


@pytest.fixture
def config(tiny_config: dict[str, Any], tmp_path: Path) -> Path:
    task = {"name": "classification", "labels": ["cats", "dogs"]}
    federation = {"rounds": 3, "topology": "ring", "engine": "sequential"}
    given = {**tiny_config, "task": task, "method": "flexlora", "federation": federation, "evaluation": {"diagnostics": False}}
    path = tmp_path / "given.yaml"
    path.write_text(yaml.safe_dump(given))
    return path


def fedelta(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*FEDELTA, *arguments], capture_output=True, text=True, timeout=240)
    assert done.returncode == code, done.stderr[-3000:]
    return done


def adapter(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("how", [[], pytest.param(["--relayed"], marks=pytest.mark.deployed)])
def test_nodes_on_this_machine_end_with_the_adapters_of_one_process(how: list[str], config: Path, tmp_path: Path) -> None:
    alone, apart = tmp_path / "alone", tmp_path / "apart"
    fedelta("run", str(config), "--output", str(alone), "--quiet")
    done = fedelta("gossip", str(config), "--local", "3", "--output", str(apart), "--json", *how)
    for k in range(3):
        assert adapter(apart / f"node-{k}" / "adapters" / "last") == adapter(alone / "adapters" / f"client-{k}")
        records = RunFolder(apart / f"node-{k}").records()
        assert [record["t"] for record in records] == [0, 1, 2]
        assert all(record["cohort"] == [0, 1, 2] for record in records)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted((line["node"], line["t"]) for line in lines) == [(f"node-{k}", t) for k in range(3) for t in range(3)]
    assert "node-2: round 3 of 3" in done.stderr


@pytest.mark.deployed
def test_what_does_not_fit_is_refused_by_name(config: Path, tmp_path: Path) -> None:
    roster, folder = tmp_path / "roster.yaml", tmp_path / "out"
    ports = [f"tls/127.0.0.1:{port}" for port in (41201, 41202, 41203)]
    ends = [part for port in ports for part in ("--endpoint", port)]
    fedelta("gossip", str(config), *ends, "--roster", str(roster))
    members = read_roster(roster)
    assert [(node.name, node.rank) for node in members.nodes] == [("node-0", 1), ("node-1", 2), ("node-2", 4)]
    node = ["gossip", str(config), "--roster", str(roster), "--output", str(folder), "--node"]
    assert "the roster has no node 'nobody': it has node-0" in fedelta(*node, "nobody", code=2).stderr.replace("\n", " ")
    fedelta("certs", str(tmp_path / "certs"), "node-0", "node-1", "node-2")
    other = members.nodes[0].model_copy(update={"examples": 7})
    write_roster(roster, members.model_copy(update={"nodes": [other, *members.nodes[1:]]}))
    refused = " ".join(fedelta(*node, "node-0", code=2).stderr.split())
    assert "the roster gives node 'node-0' examples 7, but it has" in refused
    assert "federation.topology is missing" in fedelta(*node, "node-0", "--set", "federation.topology=null", code=2).stderr
    assert not folder.exists()


def test_a_command_without_zenoh_says_what_to_install(config: Path) -> None:
    blocked = "import sys; sys.modules['zenoh'] = None; from fedelta.cli import main; main()"
    command = [sys.executable, "-c", blocked, "gossip", str(config), "--local", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert 'pip install "fedelta[gossip]"' in done.stderr


def test_the_example_is_a_ring_of_four_whose_labels_every_node_knows() -> None:
    example = Path(__file__).resolve().parents[2] / "examples" / "gossip" / "config.yaml"
    config = load_config(example)
    assert config.federation.topology == {"name": "ring"}
    assert config.num_clients() == 4
    assert len(config.task["labels"]) == 6
