"""One site, built from its config and node file, is to the bit the client of the same run in one process."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.engines.federation import Federation
from fedelta.engines.letters import Reply, Visit
from fedelta.engines.rounds import Round
from fedelta.engines.site import digest_of
from fedelta.engines.visits import receive, refuse, send
from fedelta.exchange import parcels, wire
from fedelta.exchange.parcels import Parcel
from fedelta.method import State
from fedelta.runs import sites
from fedelta.runs.config import ConfigError, RunConfig, read_config
from fedelta.runs.config.checks import check
from fedelta.runs.config.node import Node, Refusal, node_from
from fedelta.runs.config.terms import terms_of
from fedelta.runs.evaluation import mean
from fedelta.runs.experiment import build
from fedelta.runs.rounds import Experiment, play
from fedelta.runs.sites import answerer, build_site

WORDS = ["purr", "mew", "bark", "growl", "tail", "fur", "paw", "the", "a"]
NAMES = ("north", "south", "east")


@pytest.fixture(scope="session")
def own_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A file of rows for each of three sites, of unequal numbers."""
    draw, folder = random.Random(1), tmp_path_factory.mktemp("own")
    for k, name in enumerate(NAMES):
        rows = [{"text": " ".join(draw.choices(WORDS, k=4)), "label": draw.choice(["cats", "dogs"])} for _ in range(9 + 4 * k)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {name: str(folder / f"{name}.jsonl") for name in NAMES}


@pytest.fixture
def config(tiny_config: dict[str, Any], own_files: dict[str, str]) -> RunConfig:
    """The tiny run with a file for each client, and its labels."""
    raw = {key: value for key, value in tiny_config.items() if key != "partition"}
    task = {"name": "classification", "labels": ["cats", "dogs"]}
    return read_config({**raw, "task": task, "data": {"clients": own_files, "client_test_fraction": 0.25}})


@pytest.fixture
def dealt(tiny_config: dict[str, Any]) -> RunConfig:
    """The tiny run, whose shares every node deals from the seed."""
    return read_config({**tiny_config, "task": {"name": "classification", "labels": ["cats", "dogs"]}})


def node(name: str, folder: Path, **values: Any) -> Node:
    return node_from({"name": name, "state": str(folder / name), **values})


def here(config: RunConfig) -> Experiment:
    return build(config, check(config))


def terms(config: RunConfig) -> dict[str, Any]:
    """The terms as they arrive, from a server that settled its method."""
    settled = here(config)
    return json.loads(json.dumps(terms_of(settled.config, settled.method)))


def same_client(site: sites.BuiltSite, experiment: Experiment, k: int) -> None:
    mine, theirs = site.client, experiment.clients[k]
    assert mine.peer == theirs.peer
    assert digest_of(mine.template) == digest_of(theirs.template)
    assert list(mine.examples) == list(theirs.examples)
    assert site.method == experiment.method
    assert mine.training == theirs.training
    one, other = (wire.encode({"x": c.train(1, c.template).adapter}) for c in (mine, theirs))
    assert one == other


@pytest.mark.parametrize("k", range(3))
def test_a_site_with_its_own_file_is_the_client_of_the_same_run_here(k: int, config: RunConfig, tmp_path: Path) -> None:
    same_client(build_site(config, node(NAMES[k], tmp_path), terms(config)), here(config), k)


def test_a_site_that_deals_its_share_from_the_seed_is_the_same_too_and_says_what_that_is_for(
    dealt: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    same_client(build_site(dealt, node("any", tmp_path, client=1), terms(dealt)), here(dealt), 1)
    assert "for trials" in caplog.text


def test_a_node_file_says_where_its_own_rows_lie(
    config: RunConfig, own_files: Mapping[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = {name: f"not/here/{name}.jsonl" for name in NAMES}
    elsewhere = config.model_copy(update={"data": config.data.model_copy(update={"clients": files})})
    site = build_site(elsewhere, node("south", tmp_path, data=own_files["south"]), terms(config))
    same_client(site, here(config), 1)
    assert "for trials" not in caplog.text


class ThroughAnswerers:
    """An engine that asks three sites behind their functions, as bytes; each is started again before round 1."""

    def __init__(self, config: RunConfig, folder: Path, terms: Mapping[str, Any]) -> None:
        self.config, self.folder, self.terms = config, folder, terms
        self.sites = [answerer(config, node(name, folder)) for name in NAMES]

    def __call__(self, federation: Federation, t: int, states: Mapping[int, State]) -> list[Visit]:
        return [self.visit(federation, t, state, k) for k, state in states.items()]

    def visit(self, federation: Federation, t: int, state: State, k: int) -> Visit:
        letter = send(federation, t, state, k)
        header = {
            "run": "tiny",
            "terms": self.terms,
            "t": t,
            "remembered": letter.remembered,
            "base_version": letter.peer.base_version,
        }
        if t == 1:
            self.sites[k] = answerer(self.config, node(NAMES[k], self.folder))
        up = self.ask(k, Parcel("train", header, wire.encode(letter.message)))
        if up.kind == "refusal":
            return refuse(federation, t, letter, "site", RuntimeError(up.header["reason"]))
        return receive(
            federation, t, state, letter, Reply(wire.decode(up.body), up.header["metrics"], up.header["base_version"])
        )

    def ask(self, k: int, parcel: Parcel) -> Parcel:
        return parcels.decode(parcels.encode(self.sites[k](parcels.decode(parcels.encode(parcel)))))


def played(experiment: Experiment, engine: Any) -> list[Round]:
    return list(play(experiment, experiment.clients, replace(experiment.settings, engine=engine)))


@pytest.mark.parametrize("method", ["flexlora", "scaffold", "flora", "fedsa_lora"])
def test_a_run_through_sites_ends_with_the_bits_of_the_run_here(method: str, config: RunConfig, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"method": method, "federation.rounds": 3}
    changes |= {"lora.rank": 2} if method in ("scaffold", "fedsa_lora") else {}
    config = read_config(config, changes)
    engine = ThroughAnswerers(config, tmp_path, terms(config))
    for x, y in zip(played(here(config), "sequential"), played(here(config), engine), strict=True):
        assert wire.encode({"state": x.state}) == wire.encode({"state": y.state})
        assert (x.bytes, x.dropped) == (y.bytes, y.dropped)


def test_a_personal_model_is_scored_at_its_site_as_here(config: RunConfig, tmp_path: Path) -> None:
    config = read_config(config, {"method": "fedsa_lora", "lora.rank": 2})
    e, engine = here(config), ThroughAnswerers(config, tmp_path, terms(config))
    done = played(e, engine)[-1]
    local = played(here(config), "sequential")[-1]
    wanted = e.evaluator.by_client(local, e.client_tests)
    found: dict[int, Any] = {}
    for peer in done.peers:
        down = done.method.broadcast(done.t + 1, done.state, peer)
        header = {"run": "tiny", "terms": engine.terms, "t": done.t, "remembered": done.t}
        up = engine.ask(peer.id, Parcel("evaluate", header, wire.encode(down)))
        found[peer.id] = up.header["scores"]
        assert up.header["examples"] == len(e.client_tests[peer.id])
    assert found == wanted
    assert mean(found) == mean(wanted)


def test_a_test_file_of_the_node_takes_the_place_of_held_out_rows(
    config: RunConfig, own_files: Mapping[str, str], tmp_path: Path
) -> None:
    site = build_site(config, node("north", tmp_path, test=own_files["east"]), terms(config))
    assert site.num_tests == 17
    assert site.score is not None


def test_labels_are_demanded_in_the_config(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task\.labels is missing"):
        build_site(read_config(config, {"task": "classification"}), node("north", tmp_path))


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [("west", {}, r"no id in the run \(data.clients names north"), ("west", {"client": 3}, "clients 0 to 2")],
)
def test_a_site_without_a_place_in_the_run_is_told_so(
    name: str, values: dict[str, Any], reason: str, config: RunConfig, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=reason):
        build_site(config, node(name, tmp_path, **values))


# --- bounds ----------------------------------------------------------------------------------------------------------


def asked(config: RunConfig, allowed: Node, kind: str = "census", **header: Any) -> Parcel:
    return answerer(config, allowed)(Parcel(kind, {"run": "tiny", **header}))


BOUNDS = [
    ({"methods": ["fedavg"]}, {}, "method 'flexlora' is not among those that this site allows: fedavg"),
    ({"max_steps": 1}, {}, "2 local steps in a round are asked for, this site allows 1"),
    ({"max_steps": 3}, {"training.local_steps": None, "training.local_epochs": 2}, "4 local steps in a round"),
    ({"max_memory": "0.1KB"}, {}, "the adapter has .* bytes, this site allows 100 "),
    ({"base": "0123456789abcdef"}, {}, "the base model has fingerprint"),
]


@pytest.mark.parametrize(("allow", "changes", "reason"), BOUNDS)
def test_eng_13_a_node_file_bounds_what_a_server_may_ask(
    allow: dict[str, Any],
    changes: dict[str, Any],
    reason: str,
    config: RunConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = read_config(config, changes)
    given = terms(config)
    assert asked(config, node("north", tmp_path), terms=given).kind == "census"  # without the bound
    caplog.set_level(logging.WARNING, "fedelta.site")
    up = asked(config, node("north", tmp_path, allow=allow), terms=given)
    assert up.kind == "refusal"
    with pytest.raises(Refusal, match=reason):
        build_site(config, node("north", tmp_path, allow=allow), given)
    assert "site north: " in up.header["reason"]
    assert "refused census" in caplog.text


def test_eng_13_a_rank_is_lowered_to_the_bound(config: RunConfig, tmp_path: Path) -> None:
    config = read_config(config, {"lora.rank_pattern": {"query": 3}})
    site = build_site(config, node("east", tmp_path, allow={"max_rank": 2}), terms(config))
    assert site.client.peer.rank == 2
    assert {x.rank for x in site.client.template.layers.values()} == {2}
    free = build_site(config, node("east", tmp_path), terms(config))
    assert {x.rank for x in free.client.template.layers.values()} == {3, 4}


def test_eng_13_a_message_beyond_the_bound_is_refused_before_it_is_read(config: RunConfig, tmp_path: Path) -> None:
    answer = answerer(config, node("north", tmp_path, allow={"max_memory": 10_000_000}))
    up = answer(Parcel("train", {"run": "r", "t": 0, "terms": terms(config)}, b"\0" * 10_000_001))
    assert "the message of a train has 10000001 bytes, this site allows 10000000" in up.header["reason"]


def test_eng_13_a_method_that_asks_for_more_steps_than_the_round_has_is_stopped(config: RunConfig, tmp_path: Path) -> None:
    """lora_a2 probes before it trains: the steps of a round count together."""
    config = read_config(config, {"method": {"name": "lora_a2", "probe_share": 1.0}, "lora.rank": 2})
    e, given = here(config), terms(config)
    down = e.method.broadcast(0, e.method.init(e.template, [c.peer for c in e.clients], seed=0), e.clients[0].peer)
    parcel = Parcel("train", {"run": "r", "t": 0, "terms": given}, wire.encode(down))
    assert answerer(config, node("north", tmp_path, allow={"max_steps": 4}))(parcel).kind == "train"
    up = answerer(config, node("north", tmp_path, allow={"max_steps": 3}))(parcel)
    assert "4 local steps in a round are asked for, this site allows 3" in up.header["reason"]


def test_eng_13_a_message_brings_no_rank_above_the_bound(config: RunConfig, tmp_path: Path) -> None:
    config = read_config(config, {"lora.rank": 2})
    e = here(config)
    down = dict(e.method.broadcast(0, e.method.init(e.template, [c.peer for c in e.clients], seed=0), e.clients[0].peer))
    answer = answerer(config, node("north", tmp_path, allow={"max_rank": 2}))
    header = {"run": "r", "t": 0, "terms": terms(config)}
    assert answer(Parcel("train", header, wire.encode(down))).kind == "train"
    down["adapter"] = tree.map_named(lambda _, x: lr.pad(x, 3), down["adapter"])
    up = answer(Parcel("train", header, wire.encode(down)))
    assert "arrived with rank 3, where this site trains 2 at the most" in up.header["reason"]


def test_eng_13_nobody_writes_a_line_of_the_log_from_elsewhere(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fedelta.site")
    forged, given = "x\n2026-01-01 INFO all is well", terms(config)
    answer = answerer(config, node("north", tmp_path))
    for header in (
        {"run": forged},
        {"run": forged, "terms": given},
        {"terms": {forged: 1}},
        {"terms": {**given, "task": forged}},
    ):
        answer(Parcel("census", header))
    lines = [record.getMessage() for record in caplog.records if record.name == "fedelta.site"]
    assert len(lines) >= 4
    assert not any("\n" in line for line in lines)


FOREIGN = [
    ("model.trust_remote_code", True),
    ("model.use_safetensors", False),
    ("model.revision", "main"),
    ("model.name", "other/model"),
    ("lora.start", "/tmp/adapter"),
    ("data.source", "/etc/passwd"),
    ("data.clients", {"north": "/etc/passwd"}),
    ("data.fields", {"text": "secret"}),
    ("output", "/tmp/x"),
    ("device", "cuda"),
    ("name", "x"),
    ("partition.clients", 3),
    ("code", "import os"),
    ("federation.spool", True),
    ("method.name", "/tmp/method.py"),
    ("method.name", "_template"),
    ("method.local", "../x"),
    ("task.name", "instruction"),
    ("task.text", "diagnosis"),
    ("task.labels", ["dogs", "cats"]),
    ("training.local_steps", "many"),
    ("lora.rank", 10**9),
    ("lora.rank", [1, 10**9, 1]),
]


@pytest.mark.parametrize(("key", "value"), FOREIGN)
def test_eng_13_what_is_the_sites_own_never_comes_from_a_server(
    key: str, value: Any, config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = terms(config)
    section, _, inner = key.partition(".")
    given[section] = {**given.get(section, {}), inner: value} if inner else value
    caplog.set_level(logging.WARNING, "fedelta.site")
    up = asked(config, node("north", tmp_path), terms=given)
    assert up.kind == "refusal"
    named = key if not key.startswith(("method", "task", "partition")) else section
    assert named.replace("lora.rank", "rank") in up.header["reason"]
    assert "census of run tiny" in caplog.text


@pytest.mark.parametrize("bad", [None, [], "all", 3])
def test_terms_of_another_form_are_refused(bad: Any, config: RunConfig, tmp_path: Path) -> None:
    assert asked(config, node("north", tmp_path), terms=bad).kind == "refusal"


def test_a_site_builds_once_for_the_same_terms(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = list[int]()
    load = sites.load_adapted
    monkeypatch.setattr(sites, "load_adapted", lambda *given, **named: loads.append(1) or load(*given, **named))
    answer = answerer(config, node("north", tmp_path))
    answer.prepare()
    given = json.loads(json.dumps(terms_of(config, check(config).method)))
    first = answer(Parcel("census", {"terms": given}))
    settled = {**given, "model": {**given["model"], "gemm": first.header["choices"]["gemm"]}}
    answer(Parcel("census", {"terms": settled, "want_template": True}))
    assert len(loads) == 1
    assert answer(Parcel("census", {"terms": {**settled, "code": "x"}})).kind == "refusal"
    assert answer(Parcel("census", {"terms": settled})).kind == "census"
    assert len(loads) == 1  # what is refused does not cost what was built
    answer(Parcel("census", {"terms": {**settled, "seed": 1}}))
    assert len(loads) == 2


def test_a_census_tells_what_a_server_compares(config: RunConfig, tmp_path: Path) -> None:
    up = asked(config, node("south", tmp_path), terms=terms(config), want_template=True)
    assert (up.header["name"], up.header["labels"]) == ("south", ["cats", "dogs"])
    assert up.header["base"] == here(config).clients[1].template.base
    assert up.header["choices"] == {"gemm": "default"}
    assert up.header["layout"]["config"]["target_modules"]
    assert digest_of(wire.decode(up.body)["template"]) == up.header["digest"]


def test_rows_that_the_model_has_no_positions_for_are_refused_at_the_site(
    config: RunConfig, own_files: dict[str, str], tmp_path: Path
) -> None:
    long, task = tmp_path / "long.jsonl", {**config.task, "max_length": 600}
    rows = [{"text": "purr " * (600 if k == 0 else 3), "label": ["cats", "dogs"][k % 2]} for k in range(12)]
    long.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = config.data.model_copy(update={"clients": {**own_files, "north": str(long)}, "client_test_fraction": 0.0})
    longer = config.model_copy(update={"task": task, "data": data})
    with pytest.raises(ValueError, match=r"train rows: 1 of 12 texts are longer .*: set task.max_length = 512 or less"):
        build_site(longer, node("north", tmp_path))
    build_site(longer, node("south", tmp_path))
