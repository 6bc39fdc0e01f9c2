"""A site answers letters from its own disk: a new one for each message gives the numbers of one process, whatever gets lost."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fedelta import tree
from fedelta.client import LocalClient
from fedelta.engines.federation import Federation
from fedelta.engines.letters import Reply, Visit
from fedelta.engines.rounds import Round
from fedelta.engines.server import federate
from fedelta.engines.settings import RunSettings
from fedelta.engines.site import Kept, Site, digest_of
from fedelta.engines.visits import receive, refuse, send
from fedelta.exchange import files, parcels, wire
from fedelta.exchange.channel import Channel, Stage
from fedelta.exchange.parcels import Parcel
from fedelta.method import Method, State
from fedelta.methods import get_method, list_methods
from fedelta.models.toy import toy_federation
from fedelta.peers import Peer, template_for
from fedelta.sampling import uniform
from fedelta.tree import Message

NAMES = [name for name in list_methods() if name != "centralised"]  # pools data, which no site gives away

RANKS = {True: (2, 4, 3), False: (3, 3, 3)}


def built(name: str) -> Method:
    return get_method(name, local=["fedprox", "scaffold"], optimizer="fedavgm") if name == "compose" else get_method(name)


def score(deployed: Message) -> Mapping[str, float]:
    """Something that depends on all of a model."""
    adapter = tree.effective(deployed["adapter"], deployed.get("base"))
    return {"size": sum(float(x.square().sum()) for x in tree.parameters(adapter).values())}


@dataclass
class ThroughSites:
    """An engine that asks a new site, on a new toy model, for every message; parcels cross as bytes."""

    folder: Path
    ranks: tuple[int, ...] | None = None
    lose: Callable[[int, int, Path], None] = lambda t, k, folder: None
    sent: list[Parcel] = field(default_factory=list[Parcel])
    refusals: list[tuple[int, int, str]] = field(default_factory=list[tuple[int, int, str]])

    def __call__(self, federation: Federation, t: int, states: Mapping[int, State]) -> list[Visit]:
        return [self.visit(federation, t, state, k) for k, state in states.items()]

    def visit(self, federation: Federation, t: int, state: State, k: int) -> Visit:
        letter = send(federation, t, state, k)
        self.lose(t, k, self.folder / str(k) / "run")
        header = {"run": "run", "t": t, "remembered": letter.remembered, "base_version": letter.peer.base_version}
        up = self.ask(federation, k, Parcel("train", header, wire.encode(letter.message)))
        if up.kind == "refusal":
            self.refusals.append((t, k, up.header["reason"]))
            return refuse(federation, t, letter, "site", RuntimeError(up.header["reason"]))
        self.sent.append(up)
        reply = Reply(wire.decode(up.body), up.header["metrics"], up.header["base_version"])
        return receive(federation, t, state, letter, reply)

    def ask(self, federation: Federation, k: int, parcel: Parcel) -> Parcel:
        site = Site(
            federation.method, client(federation.method, k, self.ranks), federation.channel, self.folder / str(k), score=score
        )
        return parcels.decode(parcels.encode(site.handle(parcels.decode(parcels.encode(parcel)))))


def client(method: Method, k: int, ranks: tuple[int, ...] | None = None) -> LocalClient:
    return toy_federation(ranks or RANKS[method.hetero_rank], seed=5)[k]


def run(method: Method, engine: Any, ranks: tuple[int, ...] | None = None, **settings: Any) -> list[Round]:
    options = {"rounds": 4, "seed": 3, "engine": engine, "score": lambda adapter, base: {"accuracy": 0.5, "loss": 1.0}}
    return list(federate(method, toy_federation(ranks or RANKS[method.hetero_rank], seed=5), **(options | settings)))


def same(x: Round, y: Round) -> None:
    assert wire.encode({"state": x.state}) == wire.encode({"state": y.state})
    assert x.bytes == y.bytes
    assert x.dropped == y.dropped


@pytest.mark.parametrize("name", NAMES)
def test_a_new_site_for_each_message_gives_the_numbers_of_one_process(name: str, tmp_path: Path) -> None:
    method, cohort = built(name), uniform(2)
    for here, there in zip(
        run(method, "sequential", cohort=cohort), run(method, ThroughSites(tmp_path), cohort=cohort), strict=True
    ):
        same(here, there)


@dataclass(frozen=True)
class RefusesOnce(Stage):
    """The server cannot read what client 0 sends in round 1."""

    def decode(self, t: int, peer: Peer, down: Message, content: Message) -> Message:
        if (t, peer.id) == (1, 0):
            raise ValueError("cut short")
        return content


@pytest.mark.parametrize("name", ["scaffold", "feddyn", "fedsa_lora", "flora", "fedgalore"])
def test_an_answer_that_never_counted_is_not_remembered(name: str, tmp_path: Path) -> None:
    """The memory of the last answer that counted is used, though the site has a later one."""
    method, channel = built(name), Channel((RefusesOnce(),))
    here, there = (run(method, engine, channel=channel) for engine in ("sequential", ThroughSites(tmp_path)))
    assert list(there[1].dropped) == [0]
    for x, y in zip(here, there, strict=True):
        same(x, y)


@pytest.mark.parametrize("name", ["scaffold", "fedsa_lora", "flora"])
def test_a_server_that_was_lost_after_an_answer_goes_on_with_the_same_numbers(name: str, tmp_path: Path) -> None:
    """Round 2 is answered, and done again from the snapshot of round 1."""
    method = built(name)
    whole = run(method, "sequential")
    engine = ThroughSites(tmp_path)
    first = run(method, engine, rounds=3)
    again = run(method, engine, start=first[1].snapshot)
    for x, y in zip(whole[2:], again, strict=True):
        assert wire.encode({"state": x.state}) == wire.encode({"state": y.state})


STEPS = (1, 1)
"""Ranks at which a step of the base is smaller than its sum, so that steps are sent."""


def test_a_base_that_is_sent_in_steps_is_put_together_from_the_disk(tmp_path: Path) -> None:
    method, built_on = built("flora"), list[int]()
    base = Kept.base

    def watched(kept: Kept, wanted: int) -> Any:
        built_on.append(wanted)
        return base(kept, wanted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Kept, "base", watched)
        there = run(method, ThroughSites(tmp_path, STEPS), STEPS, rounds=5)
    assert len(built_on) >= 4
    for x, y in zip(run(method, "sequential", STEPS, rounds=5), there, strict=True):
        same(x, y)


def lost(round_: int, name: str) -> Callable[[int, int, Path], None]:
    def lose(t: int, k: int, folder: Path) -> None:
        if (t, k) == (round_, 1):
            for path in folder.glob(name):
                path.unlink()

    return lose


def test_a_site_that_lost_the_base_is_left_out_once_and_then_sent_the_whole(tmp_path: Path) -> None:
    engine = ThroughSites(tmp_path, STEPS, lost(3, "base-*"))
    done = run(built("flora"), engine, STEPS, rounds=6)
    assert [(t, k) for t, k, _ in engine.refusals] == [(3, 1)]
    assert "version 2 of the base is not at this site" in engine.refusals[0][2]
    assert [list(r.dropped) for r in done] == [[], [], [], [1], [], []]
    assert done[4].bytes.down[1] != done[4].bytes.down[0]  # the whole sum, where the other one gets a step
    assert done[-1].snapshot.base_versions[1] == done[-1].snapshot.base_versions[0]


def test_a_damaged_base_counts_as_lost(tmp_path: Path) -> None:
    def damage(t: int, k: int, folder: Path) -> None:
        if (t, k) == (3, 1):
            for path in folder.glob("base-*"):
                path.write_bytes(path.read_bytes()[:-3])

    engine = ThroughSites(tmp_path, STEPS, damage)
    run(built("flora"), engine, STEPS)
    assert [(t, k) for t, k, _ in engine.refusals] == [(3, 1)]


def test_a_site_that_lost_its_memory_says_so_and_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = ThroughSites(tmp_path, lose=lost(2, "memory-*"))
    done = run(built("scaffold"), engine)
    assert not done[2].dropped
    assert "the memory of round 1 is lost" in caplog.text


def test_two_memories_and_two_bases_are_kept_and_nobody_else_may_read_them(tmp_path: Path) -> None:
    run(built("flora"), ThroughSites(tmp_path))
    folder = tmp_path / "0" / "run"
    assert sorted(p.name for p in folder.iterdir()) == [
        "base-2.safetensors",
        "base-3.safetensors",
        "memory-2.safetensors",
        "memory-3.safetensors",
    ]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()} == {0o600}


def test_no_number_of_runs_fills_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedelta.engines.site.RUNS", 3)
    (tmp_path / "run-0").mkdir(mode=0o700)
    (tmp_path / "run-0" / "notes.txt").write_text("mine", encoding="utf-8")
    for k in range(5):
        Kept(tmp_path, f"run-{k}").keep_memory(0, {}, remembered=None)
        os.utime(tmp_path / f"run-{k}" / "memory-0.safetensors", (k, k))  # the clock of a file system may be coarse
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")) == [
        "run-0/notes.txt",
        "run-2/memory-0.safetensors",
        "run-3/memory-0.safetensors",
        "run-4/memory-0.safetensors",
    ]


def test_nothing_is_kept_where_others_may_write(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(0o770)
    with pytest.raises(PermissionError, match="chmod 700"):
        Kept(tmp_path, "run").keep_memory(0, {}, remembered=None)
    assert not list(folder.iterdir())


def test_a_full_disk_is_an_error_that_the_server_hears_of_and_loses_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Round 2's memory of client 1 cannot be written: it is left out, and goes on from what it remembered before."""
    write = files.write

    def full(path: Path, data: bytes, **options: Any) -> None:
        if "memory-2" in path.name and path.parts[-3] == "1":
            write(path, data[:10], **options)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, data, **options)

    monkeypatch.setattr(files, "write", full)
    engine = ThroughSites(tmp_path)
    done = run(built("scaffold"), engine)
    assert [(t, k) for t, k, _ in engine.refusals] == [(2, 1)]
    assert "No space left" in engine.refusals[0][2]
    assert [list(r.dropped) for r in done] == [[], [], [1], []]
    left = {p.name for p in (tmp_path / "1" / "run").iterdir()}
    assert left == {"memory-1.safetensors", "memory-3.safetensors"}  # 1 counts; nothing half written stays


@pytest.mark.parametrize("name", ["fedsa_lora", "local_only", "flora"])
def test_a_model_is_scored_at_the_site_as_the_server_would(name: str, tmp_path: Path) -> None:
    method, engine = built(name), ThroughSites(tmp_path)
    here, there = run(method, "sequential")[-1], run(method, engine)[-1]
    federation = Federation.prepare(method, toy_federation(RANKS[method.hetero_rank], seed=5), None, RunSettings(rounds=1))
    for peer in here.peers:
        down = method.broadcast(there.t + 1, there.state, Peer(**{**vars(peer), "base_version": 0}))
        header = {"run": "run", "t": there.t, "remembered": there.snapshot.client_rounds.get(peer.id)}
        up = engine.ask(federation, peer.id, Parcel("evaluate", header, wire.encode(down)))
        assert up.kind == "evaluate", up.header
        assert up.header["scores"] == score(here.participant_model(peer))


def test_a_site_without_rows_to_score_by_says_so(tmp_path: Path) -> None:
    site = Site(built("fedavg"), client(built("fedavg"), 0), Channel(), tmp_path)
    up = site.handle(Parcel("evaluate", {"run": "run", "t": 0}, wire.encode({})))
    assert "no rows to score by" in up.header["reason"]


def test_a_census_says_who_a_site_is(tmp_path: Path) -> None:
    method = built("flexlora")
    site = Site(method, client(method, 0), Channel(), tmp_path, about={"name": "north", "labels": ["a", "b"]})
    plain, whole = site.handle(Parcel("census")), site.handle(Parcel("census", {"want_template": True}))
    assert parcels.decode(parcels.encode(plain)).header == plain.header  # plain JSON
    assert (plain.header["name"], plain.header["labels"], plain.header["base"]) == ("north", ["a", "b"], "toy")
    assert plain.header["peer"]["rank"] == 2
    assert plain.header["versions"].keys() == {"fedelta", "parcels", "wire", "torch"}
    assert plain.body == b""
    largest = client(method, 1)
    assert plain.header["digest"] == digest_of(template_for(Peer(0, 2), largest.template))
    assert digest_of(wire.decode(whole.body)["template"]) == plain.header["digest"]
    other = toy_federation((2, 4, 3), seed=6)[0]
    assert digest_of(other.template) != plain.header["digest"]


REFUSED = [
    ({"run": "../escape", "t": 0}, "the id of a run"),
    ({"run": "..", "t": 0}, "the id of a run"),
    ({"run": 3, "t": 0}, "the id of a run"),
    ({"run": "run"}, "the header's t"),
    ({"run": "run", "t": -1}, "the header's t"),
    ({"run": "run", "t": True}, "the header's t"),
    ({"run": "run", "t": 0, "remembered": "../../x"}, "the header's remembered"),
    ({"run": "run", "t": 0, "base_version": 1.5}, "the header's base_version"),
]


@pytest.mark.parametrize(("header", "reason"), REFUSED)
def test_a_header_that_is_none_is_refused_and_logged(
    header: Mapping[str, Any], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "fedelta.site")
    method = built("fedavg")
    site = Site(method, client(method, 0), Channel(), tmp_path / "state")
    up = site.handle(Parcel("train", header, wire.encode({"adapter": site.client.template})))
    assert up.kind == "refusal"
    assert reason in up.header["reason"]
    assert reason in caplog.text
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("body", [b"", b"no message", b"\x80\x04\x95pickle"])
def test_a_body_that_is_no_message_is_refused(body: bytes, tmp_path: Path) -> None:
    site = Site(built("fedavg"), client(built("fedavg"), 0), Channel(), tmp_path / "state")
    assert site.handle(Parcel("train", {"run": "run", "t": 0}, body)).kind == "refusal"


def test_no_byte_of_a_memory_is_sent(tmp_path: Path) -> None:
    """The control variate that a site keeps is in none of its replies, header or body."""
    engine = ThroughSites(tmp_path)
    run(built("fedsa_lora"), engine)
    memory = wire.decode((tmp_path / "0" / "run" / "memory-3.safetensors").read_bytes())
    tensors = [x.numpy().tobytes() for _, x in tree.named_tensors(memory)]
    assert tensors
    assert all(own not in up.body for own in tensors for up in engine.sent)
