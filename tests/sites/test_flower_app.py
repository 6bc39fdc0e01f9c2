"""The app that `fedelta flower init` writes, and which site answers at a node."""

import json
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from fedelta.cli import app
from fedelta.exchange.parcels import Parcel
from fedelta.runs.config import load_config, read_config
from fedelta.runs.flower_app import placed, site_of, write_app


@pytest.fixture
def config(tiny_config: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    raw = {**tiny_config, "task": {"name": "classification", "labels": ["cats", "dogs"]}, "output": str(tmp_path / "run")}
    path.write_text(json.dumps(raw))
    return path


def test_an_app_is_written_with_all_that_flower_needs(config: Path, tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["flower", "init", str(config), str(tmp_path / "app")])
    assert said.exit_code == 0, said.output
    project = tomllib.loads((tmp_path / "app/pyproject.toml").read_text())
    assert project["project"]["dependencies"] == []  # Flower would install them
    assert project["tool"]["flwr"]["app"]["config"]["sites"] == 3
    settled = load_config(tmp_path / "app/federation/config.yaml")
    assert settled.federation.where == "flower"
    assert "FLWR_TELEMETRY_ENABLED=0" in said.output
    for part in ("server", "client"):
        compile((tmp_path / f"app/federation/{part}.py").read_text(), part, "exec")


def test_nothing_is_written_over(config: Path, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app/notes.txt").write_text("mine")
    said = CliRunner().invoke(app, ["flower", "init", str(config), str(tmp_path / "app")])
    assert said.exit_code == 2
    assert "is not empty" in said.output
    assert [p.name for p in (tmp_path / "app").iterdir()] == ["notes.txt"]


def test_labels_that_no_site_could_collect_are_asked_for(config: Path, tmp_path: Path) -> None:
    changes = ["--set", "task={name: classification}"]
    said = CliRunner().invoke(app, ["flower", "init", str(config), str(tmp_path / "app"), *changes])
    assert said.exit_code == 2
    assert "task.labels is missing" in said.output
    assert not (tmp_path / "app").exists()


def test_paths_lead_to_the_same_files_wherever_flower_runs_the_app(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "purr", "label": "cats"}\n')
    monkeypatch.chdir(tmp_path)
    settled = placed(load_config(config, {"data.source": "rows.jsonl", "output": "runs/x"}))
    assert settled.data.source == str(tmp_path / "rows.jsonl")
    assert settled.output == str(tmp_path / "runs/x")


def test_the_files_of_sites_are_found_from_wherever_flower_runs_the_app(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "north.jsonl").write_text('{"text": "purr", "label": "cats"}\n')
    monkeypatch.chdir(tmp_path)
    for clients in ({"north": "north.jsonl"}, ["north.jsonl"]):
        settled = placed(read_config({"data": {"clients": clients}}))
        assert list(settled.client_files().values()) == [str(tmp_path / "north.jsonl")]


def test_a_method_that_pools_data_gets_no_app(config: Path, tmp_path: Path) -> None:
    changes = ["--set", "method=centralised", "--set", "lora.rank=2"]
    said = CliRunner().invoke(app, ["flower", "init", str(config), str(tmp_path / "app"), *changes])
    assert said.exit_code == 2
    assert "which no site gives away" in " ".join(said.output.split())
    assert not (tmp_path / "app").exists()


def test_the_app_s_client_imports_no_torch(config: Path, tmp_path: Path) -> None:
    pytest.importorskip("flwr", reason="Flower is not installed: make sites-deps")
    write_app(load_config(config), tmp_path / "app")
    code = (
        "import sys, json; sys.path.insert(0, '.')\n"
        "import federation.client, fedelta.engines.runners.sites.worker, fedelta.runs.config.node\n"
        "print(json.dumps([m for m in ('torch', 'transformers', 'peft') if m in sys.modules]))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "app", capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == []


def answer(config: Path, node: Mapping[str, Any], parcel: Parcel) -> Parcel:
    return site_of(config, node)(parcel)


def test_a_node_of_a_simulation_is_the_site_of_its_number(config: Path, tmp_path: Path) -> None:
    census = Parcel("census", {"run": "r", "terms": {}, "want_template": False})
    assert answer(config, {"partition-id": 2}, census).header["peer"]["id"] == 2
    assert (tmp_path / "run.sites").is_dir()
    spare = answer(config, {"partition-id": 3}, census)
    assert spare.header["spare"] is True
    assert "the run has 3 sites" in spare.header["reason"]


def test_a_node_that_says_nothing_of_its_site_is_told_how(config: Path) -> None:
    with pytest.raises(ValueError, match=r"node=\"/path/of/node\.yaml\""):
        site_of(config, {})


def test_a_worker_that_hangs_does_not_hold_its_node(config: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as hangs:
        hangs.bind(str(tmp_path / "site.sock"))
        hangs.listen()
        with pytest.raises(TimeoutError, match=r"no answer within 0\.2 s: it hangs"):
            site_of(config, {"socket": str(tmp_path / "site.sock")}, 0.2)(Parcel("census", {}))


def test_a_node_gives_its_site_the_time_that_the_server_waits(in_process: ModuleType) -> None:
    given: list[float] = []

    def site(node: Mapping[str, Any], seconds: float) -> Callable[[Parcel], Parcel]:
        given.append(seconds)
        raise TimeoutError("no answer")

    grid = in_process.InProcessGrid(in_process.client_app(site), 1)
    answer = dict(in_process.FlowerCarrier(grid, poll=0.001).exchange([(in_process.FIRST, Parcel("census"))], 45.0))
    assert given == [45.0]
    assert answer[in_process.FIRST].header == {"reason": "TimeoutError: no answer"}


def test_the_app_s_own_config_is_no_site_s_consent(config: Path, tmp_path: Path) -> None:
    """The server sends it, with whatever it says of rows, of the model and of trust in code."""
    node, census = tmp_path / "node.yaml", Parcel("census", {"terms": {}})
    node.write_text("name: north\nclient: 0\nstate: state\n")
    with pytest.raises(ConnectionError, match="name the site's own config"):
        answer(config, {"node": str(node)}, census)
    own = tmp_path / "own.yaml"
    own.write_text(config.read_text())
    assert answer(tmp_path / "not-read.yaml", {"node": str(node), "config": str(own)}, census).header["name"] == "north"


def test_a_socket_without_a_worker_is_an_error_that_may_pass(config: Path, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="start it by `fedelta site`"):
        answer(config, {"socket": str(tmp_path / "none.sock")}, Parcel("census", {}))
