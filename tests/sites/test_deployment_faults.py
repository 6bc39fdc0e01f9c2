"""What goes wrong at real sites costs a visit or is refused by name, and nothing hangs: a short run for each fault."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.torch import load_file, save_file

from fedelta.engines.runners.sites.certificates import make_certificates

pytestmark = pytest.mark.deployed

DEADLINE = 30
"""Seconds that a round waits; a message over a busy machine takes about ten."""


@pytest.fixture(scope="module")
def going(
    deployment: ModuleType, two_sites: Callable[..., Path], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """Two sites, each with a worker; every test leaves them as it found them."""
    folder = tmp_path_factory.mktemp("faults")
    federation = {"rounds": 3, "deadline": DEADLINE, "quorum": 1, "engine": "sequential"}
    own = shutil.copytree(tiny_model, folder / "model")  # which a test changes
    config = two_sites(folder, federation=federation, method="flexlora", model={"name": str(own)})
    with deployment.Deployment(folder / "sites", config, 2) as going:
        yield going


class Run:
    """A run on the deployment, in a folder of its own.

    Args:
        going: the deployment.
        folder: of the run.
        rounds: that it has.
    """

    def __init__(self, going: Any, folder: Path, rounds: int = 3) -> None:
        self.going, self.folder = going, folder
        self.id = going.run("--run-config", f"overrides='output={folder} federation.rounds={rounds}'")

    def has_played(self, rounds: int) -> None:
        self.going.wait(self.folder, rounds)

    def dropped(self) -> list[dict[str, str]]:
        """Waits for the end, which must be a good one; returns who was left out of each round, and why."""
        said = self.going.wait_end(self.id, 300)
        assert "completed" in said, self.going.said(self.id)
        return self.recorded()

    def recorded(self) -> list[dict[str, str]]:
        """Returns who was left out of each round so far, and why."""
        lines = (self.folder / "rounds.jsonl").read_text().splitlines(keepends=True)
        return [json.loads(line)["dropped"] for line in lines if line.endswith("\n")]

    def refusal(self) -> str:
        """Waits for the end, which must be a refusal; returns the server's log."""
        said = self.going.wait_end(self.id, 300)
        assert "failed" in said
        return str(self.going.said(self.id))


def test_eng_7_a_client_app_that_is_killed_costs_its_visit(going: Any, deployment: ModuleType, tmp_path: Path) -> None:
    run = Run(going, tmp_path / "run", 6)
    run.has_played(1)

    def struck() -> bool:  # an app that has just answered dies without harm, so each one is killed until a visit is lost
        for app in going.children("flwr-clientapp", node=1):
            with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
                os.kill(app, signal.SIGKILL)
        return any(each for each in run.recorded())

    deployment.until(struck, "a visit that a killed ClientApp cost")
    left_out = run.dropped()
    reasons = [each["1"] for each in left_out if each]
    assert reasons
    assert all("its ClientApp died" in x or f"no answer within {DEADLINE} s" in x for x in reasons), reasons
    assert left_out[0] == left_out[-1] == {}


def test_eng_7_a_worker_that_is_killed_costs_visits_until_it_is_back(going: Any, tmp_path: Path) -> None:
    run = Run(going, tmp_path / "run", 5)
    run.has_played(1)
    going.kill("worker-1")
    run.has_played(3)
    going.start_worker(1)
    left_out = run.dropped()
    assert any("no site is running at" in each.get("1", "") for each in left_out), left_out
    assert all(list(each) in ([], ["1"]) for each in left_out)
    assert left_out[0] == left_out[-1] == {}


def test_eng_7_a_worker_that_hangs_costs_its_visit_and_does_not_hold_its_node(going: Any, tmp_path: Path) -> None:
    run = Run(going, tmp_path / "run", 4)
    run.has_played(1)
    going.pause("worker-1")
    run.has_played(2)
    going.pause("worker-1", signal.SIGCONT)
    left_out = run.dropped()
    reasons = [each["1"] for each in left_out if each]
    assert reasons
    assert all(f"no answer within {DEADLINE}" in x for x in reasons), reasons
    assert left_out[-1] == {}


def test_eng_7_after_a_superlink_that_was_killed_the_run_goes_on(going: Any, tmp_path: Path) -> None:
    run = Run(going, tmp_path / "run")
    run.has_played(1)
    going.kill("superlink")
    for app in going.children("flwr-serverapp"):
        os.kill(app, signal.SIGKILL)
    going.start_superlink()
    going.call("flwr", "stop", run.id, "deployment")
    left_out = Run(going, tmp_path / "run").dropped()
    assert left_out == [{}, {}, {}]


def test_eng_7_a_node_with_a_key_that_is_not_registered_is_refused(going: Any, deployment: ModuleType, tmp_path: Path) -> None:
    make_certificates(tmp_path / "certs", [], node_keys=["stranger"])
    going.start_node(7, key=tmp_path / "certs/stranger.node")
    refused = "Attempted to register SuperNode with public key"
    before = going.log("superlink").count(refused)
    deployment.until(lambda: going.log("superlink").count(refused) > before, "a word of refusal")
    going.kill("node-7")
    listed = json.loads(going.call("flwr", "supernode", "ls", "deployment", "--format", "json"))
    assert len(listed["nodes"]) == 2, listed


def test_eng_7_a_server_of_another_authority_is_refused_by_a_node(going: Any, deployment: ModuleType, tmp_path: Path) -> None:
    make_certificates(tmp_path / "certs", ["other"])
    going.start_node(8, authority=tmp_path / "certs/ca.crt", key=going.folder / "certs/site-1.node")
    deployment.until(lambda: "CERTIFICATE_VERIFY_FAILED" in going.log("node-8"), "a word of refusal")
    going.kill("node-8")


def test_eng_7_a_site_of_another_base_is_named(going: Any, tmp_path: Path) -> None:
    """The model of site 1 has the name of the others' and other weights."""
    file = Path(yaml.safe_load(going.config.read_text())["model"]["name"]) / "model.safetensors"
    weights = load_file(file)
    going.kill("worker-1")
    save_file({name: x + torch.ones_like(x) for name, x in weights.items()}, file, {"format": "pt"})
    going.start_worker(1)
    said = Run(going, tmp_path / "run").refusal()
    going.kill("worker-1")
    save_file(weights, file, {"format": "pt"})
    going.start_worker(1)
    assert "its base model is" in said


def test_eng_7_a_site_of_other_labels_is_named(going: Any, tmp_path: Path) -> None:
    raw = yaml.safe_load(going.config.read_text())
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({**raw, "task": {**raw["task"], "labels": ["dogs", "cats"]}}))
    going.kill("worker-1")
    going.start_worker(1, config=own)
    said = Run(going, tmp_path / "run").refusal()
    going.kill("worker-1")
    going.start_worker(1)
    assert "site site-1: Refusal: task.labels is ('cats', 'dogs')" in said
    assert "('dogs', 'cats')" in said


def test_eng_7_a_site_that_claims_a_huge_rank_is_refused(going: Any, tmp_path: Path) -> None:
    going.kill("worker-1")
    going.start_worker(1, program=[sys.executable, str(Path(__file__).with_name("liar.py"))])
    said = Run(going, tmp_path / "run").refusal()
    going.kill("worker-1")
    going.start_worker(1)
    assert "site-1" in said
    assert "its peer's rank must be" in said
    assert "got 1000000000" in said


def test_a_node_that_trusts_signed_apps_alone_takes_no_other(going: Any, tmp_path: Path) -> None:
    public = Ed25519PrivateKey.generate().public_key()
    text = public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    trusted = tmp_path / "trusted.yaml"
    trusted.write_text(yaml.safe_dump({"fpk_00000000-0000-4000-8000-000000000000": text}))
    going.kill("node-1", signal.SIGTERM)  # it says that it goes: one that was killed is taken back after a minute
    going.start_node(1, "--trusted-entities", str(trusted))
    said = Run(going, tmp_path / "run").refusal()
    going.kill("node-1", signal.SIGTERM)  # it says that it goes: one that was killed is taken back after a minute
    going.start_node(1)
    assert "its SuperNode does not take the app" in said
