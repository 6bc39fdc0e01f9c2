"""A run over real sites leaves the folder of a run in one process, and goes on from it."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fedelta.engines.rounds import Round
from fedelta.exchange.parcels import Parcel
from fedelta.runs.config import ConfigError, load_config
from fedelta.runs.config.node import Node
from fedelta.runs.records import Record, without_times
from fedelta.runs.remote import carry_out, opened_at_sites
from fedelta.runs.runner import run
from fedelta.runs.sites import answerer

Handle = Callable[[Parcel], Parcel]


@pytest.fixture
def config(tiny_config: dict[str, Any]) -> dict[str, Any]:
    """The tiny run, with what real sites need: labels that no site has to collect."""
    return {
        **tiny_config,
        "task": {"name": "classification", "labels": ["cats", "dogs"]},
        "federation": {"rounds": 3, "deadline": 30.0, "engine": "sequential"},
    }


def over_sites(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {**raw, "federation": {**raw["federation"], "where": "flower"}}


@pytest.fixture
def sites_of(tmp_path: Path, in_process: ModuleType) -> Callable[..., Any]:
    """(config) -> the way to three sites, each built once from that config and its own node file."""

    def make(raw: Mapping[str, Any], **options: Any) -> Any:
        own = load_config(over_sites(raw))
        built: dict[int, Handle] = {}

        def site(node: Mapping[str, Any], seconds: float) -> Handle:
            k = int(node["partition-id"])
            if k not in built:
                built[k] = answerer(own, Node(name=f"site-{k}", client=k, state=str(tmp_path / "sites" / str(k))))
            return built[k]

        grid = in_process.InProcessGrid(in_process.client_app(site), 3, **options)
        return in_process.FlowerCarrier(grid, poll=0.001)

    return make


def numbers(record: Record) -> dict[str, Any]:
    """A record without times, and without what only a model in the process can measure."""
    return {k: v for k, v in without_times(record).items() if k not in ("validation", "test")}


def written(folder: Path) -> dict[str, Any]:
    """The entries of adapter_config.json that say anything."""
    entries = json.loads((folder / "adapter_config.json").read_text())
    return {key: entries.get(key) for key in ("base_model_name_or_path", "target_modules", "task_type", "modules_to_save", "r")}


def same_folder(here: Path, there: Path) -> None:
    for name in ("last", "rank-1", "rank-2", "rank-4"):
        x, y = (folder / "adapters" / name / "adapter_model.safetensors" for folder in (here, there))
        assert x.read_bytes() == y.read_bytes(), name
        assert written(x.parent) == written(y.parent), name
    lines = [[json.loads(line) for line in (f / "rounds.jsonl").read_text().splitlines()] for f in (here, there)]
    assert [numbers(r) for r in lines[0]] == [numbers(r) for r in lines[1]]


def test_eng_6_the_folder_is_that_of_a_run_in_one_process(
    config: dict[str, Any], sites_of: Callable[..., Any], tmp_path: Path
) -> None:
    run({**config, "output": str(tmp_path / "here")})
    there = carry_out({**over_sites(config), "output": str(tmp_path / "there")}, sites_of(config))
    same_folder(tmp_path / "here", there)
    assert load_config(there / "config.yaml").model.gemm == "default"
    assert {p.name for p in there.iterdir()} - {"curves.png", ".lock"} == {
        "config.yaml",
        "run.json",
        "rounds.jsonl",
        "clients.jsonl",
        "report.html",
        "adapters",
        "checkpoint",
    }


def test_a_server_that_was_killed_goes_on_under_the_same_name_to_the_same_bits(
    config: dict[str, Any], sites_of: Callable[..., Any], tmp_path: Path
) -> None:
    method = {**config, "method": "scaffold", "lora": {**config["lora"], "rank": 2}}
    once, twice = ({**over_sites(method), "output": str(tmp_path / name)} for name in ("once", "twice"))
    whole = carry_out(once, sites_of(method))
    carrier = sites_of(method)
    with opened_at_sites(twice, carrier) as going:
        name = going.notes["run"]
        records = going.records()
        next(records)
        going.write = _killed  # round 1 is answered by all, and is not saved
        with pytest.raises(KeyboardInterrupt):
            next(records)
    with opened_at_sites(twice, carrier) as going:
        assert going.notes["run"] == name
        assert [record["t"] for record in going.records()] == [1, 2]
    for adapter in ("last", "rank-2"):
        x, y = (f / "adapters" / adapter / "adapter_model.safetensors" for f in (whole, tmp_path / "twice"))
        assert x.read_bytes() == y.read_bytes()


def _killed(done: Round) -> Record:
    raise KeyboardInterrupt


def test_a_model_at_the_server_scores_what_one_process_scores(
    config: dict[str, Any], sites_of: Callable[..., Any], tmp_path: Path
) -> None:
    raw = {**config, "federation": {**config["federation"], "rounds": 1}}
    here = run({**raw, "output": str(tmp_path / "here")})
    asked = over_sites(raw)
    asked["federation"]["server_model"] = True
    with opened_at_sites({**asked, "output": str(tmp_path / "there")}, sites_of(raw)) as going:
        (record,) = going.records()
    for part in ("validation", "test", "clients"):
        assert record[part] == here.final[part]


def test_personal_models_are_scored_at_their_sites(
    config: dict[str, Any], sites_of: Callable[..., Any], tmp_path: Path
) -> None:
    raw = {**config, "method": "fedsa_lora", "lora": {**config["lora"], "rank": 2}}
    here = run({**raw, "output": str(tmp_path / "here")})
    with opened_at_sites({**over_sites(raw), "output": str(tmp_path / "there")}, sites_of(raw)) as going:
        records = list(going.records())
    assert [r["clients"] for r in records] == [r["clients"] for r in here.records]
    assert not list((tmp_path / "there" / "adapters").glob("client-*"))  # the server has no model of a client


def test_a_method_that_pools_data_is_refused_before_a_site_is_asked(
    config: dict[str, Any], in_process: ModuleType, tmp_path: Path
) -> None:
    grid = in_process.InProcessGrid(in_process.client_app(lambda node, seconds: pytest.fail("a site was asked")), 3)
    raw = {
        **over_sites(config),
        "method": "centralised",
        "lora": {**config["lora"], "rank": 2},
        "output": str(tmp_path / "run"),
    }
    with pytest.raises(ConfigError, match="'centralised' trains on the data of all clients together"):
        carry_out(raw, in_process.FlowerCarrier(grid))
    assert not (tmp_path / "run").exists()


def test_eng_2_a_server_of_real_sites_loads_no_model_library() -> None:
    code = (
        "import sys, json, fedelta.runs.remote, fedelta.runs.flower_app, fedelta.engines.census\n"
        "print(json.dumps([m for m in ('transformers', 'peft', 'flwr') if m in sys.modules]))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == []


def test_a_run_elsewhere_is_not_carried_out_here(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fedelta flower init CONFIG DIR.*flwr run DIR"):
        run({**over_sites(config), "output": str(tmp_path / "run")})
    assert not (tmp_path / "run").exists()


def test_a_run_waits_for_a_site_that_comes_late_and_says_who_is_missing(
    config: dict[str, Any], sites_of: Callable[..., Any], tmp_path: Path
) -> None:
    carrier = sites_of(config)
    late = carrier.grid.here.pop()
    short = {**over_sites(config), "output": str(tmp_path / "run")}
    short["federation"]["deadline"] = 0.05
    with pytest.raises(TimeoutError, match=r"2 of 3 sites are connected after 0\.05 s"):
        carry_out(short, carrier)
    looks = iter(range(10))
    here = carrier.grid.get_node_ids
    carrier.grid.get_node_ids = lambda: here() if next(looks, 10) < 5 else [*here(), late]
    carrier.grid.here.append(late)
    short["federation"]["deadline"] = 30.0
    with opened_at_sites(short, carrier) as going:
        assert len(going.experiment.clients) == 3


def test_sites_that_changed_are_named_when_a_run_is_taken_up(
    config: dict[str, Any], sites_of: Callable[..., Any], tmp_path: Path
) -> None:
    raw = {**over_sites(config), "output": str(tmp_path / "run")}
    carrier = sites_of(config)
    with opened_at_sites(raw, carrier) as going:
        next(going.records())
    carrier.grid.here.pop()
    with pytest.raises(ConfigError, match=r"client 2 was \{.*\}, is not there"), opened_at_sites(raw, carrier, sites=2):
        pass
