"""Runs over SuperLink and SuperNodes on this machine, with TLS, node keys and workers; processes are killed on the way."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedelta.runs.runner import run

pytestmark = pytest.mark.deployed

Deploy = Callable[..., Any]


@pytest.fixture(scope="module")
def deploy() -> Deploy:
    """The class `Deployment` of the file `deployment.py` beside this one."""
    pytest.importorskip("flwr", reason="Flower is not installed: make sites-deps")
    name = "fedelta_tests_deployment"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("deployment.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module.Deployment


@pytest.fixture
def write(tiny_config: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """(changes by section) -> the file of a run of two sites, whose folder is `run` beside it."""

    def write(**changes: Any) -> Path:
        raw = {
            **tiny_config,
            "output": str(tmp_path / "run"),
            "lora": {"rank": [1, 4], "target_modules": ["query", "value"]},
            "task": {"name": "classification", "labels": ["cats", "dogs"]},
            "data": {**tiny_config["data"], "client_test_fraction": 0.0},
            "partition": {"scheme": "iid", "clients": 2},
            "method": "flora",
            "federation": {"rounds": 3, "deadline": 120, "engine": "sequential"},
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({**raw, **changes}), encoding="utf-8")
        return path

    return write


def same_as_here(config: Path, folder: Path) -> None:
    """The adapters and the losses of a run are those of the same config in one process."""
    here = run(config, {"output": str(folder.with_name("here"))})
    for adapter in ("last", "rank-1", "rank-4"):
        x, y = (f / "adapters" / adapter / "adapter_model.safetensors" for f in (folder, here.folder))
        assert x.read_bytes() == y.read_bytes(), adapter
    there = records(folder)
    for key in ("t", "cohort", "dropped", "train_loss", "bytes"):
        assert [r[key] for r in there] == [r[key] for r in here.records], key


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def test_eng_6_minilm_ends_with_the_bits_of_a_run_in_one_process(
    deploy: Deploy, write: Callable[..., Path], minilm: Path, tmp_path: Path
) -> None:
    config = write(model={"name": str(minilm)})
    with deploy(tmp_path / "sites", config, 2) as going:
        said = going.wait_end(going.run())
        assert "completed" in said, going.log("superlink")
    same_as_here(config, tmp_path / "run")


def test_eng_7_a_server_that_is_killed_goes_on_with_the_same_bits(
    deploy: Deploy, write: Callable[..., Path], tmp_path: Path
) -> None:
    config = write()
    with deploy(tmp_path / "sites", config, 2) as going:
        going.run()
        going.wait(tmp_path / "run", 1)
        servers = going.children("flwr-serverapp")
        assert servers
        for server in servers:
            os.kill(server, signal.SIGKILL)
        done = len(records(tmp_path / "run"))
        said = going.wait_end(going.run(), 300)
        assert "completed" in said, going.log("superlink")
        assert done < 3
    same_as_here(config, tmp_path / "run")


def test_eng_7_a_node_that_is_killed_costs_its_visits_and_comes_back(
    deploy: Deploy, write: Callable[..., Path], tmp_path: Path
) -> None:
    federation = {"rounds": 6, "deadline": 45, "quorum": 1, "engine": "sequential"}
    config = write(federation=federation, method="flexlora")
    with deploy(tmp_path / "sites", config, 2) as going:
        run_id = going.run()
        going.wait(tmp_path / "run", 1)
        going.kill("node-1")
        going.wait(tmp_path / "run", 3)
        going.start_node(1)
        said = going.wait_end(run_id, 400)
        assert "completed" in said, going.log("superlink")
    found = records(tmp_path / "run")
    left_out = [list(r["dropped"]) for r in found]
    assert left_out[0] == []
    assert ["1"] in left_out
    assert left_out[-1] == []
    reasons = [r["dropped"]["1"] for r in found if r["dropped"]]
    assert all("no answer within 45 s" in x or "SuperNode has not been heard of" in x for x in reasons), reasons
