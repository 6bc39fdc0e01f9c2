"""Runs over SuperLink and SuperNodes on this machine, with TLS, node keys and workers; processes are killed on the way."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fedelta.runs.runner import run

pytestmark = pytest.mark.deployed


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
    deployment: ModuleType, two_sites: Callable[..., Path], minilm: Path, tmp_path: Path
) -> None:
    config = two_sites(tmp_path, model={"name": str(minilm)})
    with deployment.Deployment(tmp_path / "sites", config, 2) as going:
        said = going.wait_end(going.run())
        assert "completed" in said, going.log("superlink")
    same_as_here(config, tmp_path / "run")


def test_eng_7_a_server_that_is_killed_goes_on_with_the_same_bits(
    deployment: ModuleType, two_sites: Callable[..., Path], tmp_path: Path
) -> None:
    config = two_sites(tmp_path)
    with deployment.Deployment(tmp_path / "sites", config, 2) as going:
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
    deployment: ModuleType, two_sites: Callable[..., Path], tmp_path: Path
) -> None:
    federation = {"rounds": 6, "deadline": 45, "quorum": 1, "engine": "sequential"}
    config = two_sites(tmp_path, federation=federation, method="flexlora")
    with deployment.Deployment(tmp_path / "sites", config, 2) as going:
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
