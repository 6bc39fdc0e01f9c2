"""Rounds over Flower are those of one process, to the bit, whatever happens to messages, sites and the server."""

import gc
import math
import re
import resource
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fedelta import tree
from fedelta.client import LocalClient
from fedelta.engines import checkpoint
from fedelta.engines.rounds import Round
from fedelta.engines.server import federate
from fedelta.exchange import wire
from fedelta.exchange.parcels import Parcel
from fedelta.method import Method, TrainResult
from fedelta.methods import get_method, list_methods
from fedelta.tree import Adapter

NAMES = [name for name in list_methods() if name != "centralised"]  # pools data, which no site gives away
ROUNDS = 4


def built(name: str) -> Method:
    """The method as a run settles it, for its sites get it so."""
    hyper: dict[str, Any] = {"local": ["fedprox", "scaffold"], "optimizer": "fedavgm"} if name == "compose" else {}
    return get_method(name, **hyper).for_topology(ROUNDS, lambda: 0.0)


def some(t: int, peers: Sequence[Any], seed: int) -> list[int]:
    """All in round 0, later two of three."""
    return [p.id for p in peers if (p.id + t) % 3 or t == 0]


def score(adapter: Adapter, base: Any) -> dict[str, float]:
    return {"loss": float(sum((x.B @ x.A).square().sum() for x in adapter.layers.values()))}


OPTIONS: dict[str, Any] = {"rounds": ROUNDS, "seed": 0, "score": score, "cohort": some}


def same(x: Round, y: Round) -> None:
    assert wire.encode({"state": x.state}) == wire.encode({"state": y.state})
    assert x.bytes == y.bytes
    assert dict(x.dropped) == dict(y.dropped)


@pytest.mark.parametrize("name", NAMES)
def test_eng_3_a_fresh_site_for_each_message_gives_the_rounds_of_one_process(
    name: str, in_process: ModuleType, tmp_path: Path
) -> None:
    method = built(name)
    local = list(federate(method, in_process.toys(method), engine="sequential", **OPTIONS))
    over = list(in_process.over_flower(method, in_process.toy_grid(method, tmp_path), **OPTIONS))
    assert len(over) == ROUNDS
    for x, y in zip(local, over, strict=True):
        same(x, y)


def test_eng_3_a_method_that_pools_data_is_refused_by_name(in_process: ModuleType, tmp_path: Path) -> None:
    method = get_method("centralised")
    with pytest.raises(TypeError, match=r"centralised pools data.*RemoteClient"):
        in_process.over_flower(method, in_process.toy_grid(method, tmp_path), rounds=1)


@pytest.mark.parametrize("name", NAMES)
def test_eng_4_a_server_lost_between_answer_and_save_goes_on_to_the_same_bits(
    name: str, in_process: ModuleType, tmp_path: Path
) -> None:
    """Round 2 was answered by all sites, and nobody saved it: its memories must not count when it is played again."""
    method = built(name)
    local = list(federate(method, in_process.toys(method), engine="sequential", **OPTIONS))
    grid, saved = in_process.toy_grid(method, tmp_path / "sites"), tmp_path / "checkpoint"
    rounds = in_process.over_flower(method, grid, **OPTIONS)
    got = [next(rounds.rounds), next(rounds.rounds)]
    checkpoint.save(saved, got[-1].snapshot)
    next(rounds.rounds)
    got += in_process.over_flower(method, grid, start=checkpoint.load(saved), **OPTIONS)
    for x, y in zip(local, got, strict=True):
        same(x, y)


class Failing:
    """A client that trains, but not in round 1."""

    def __init__(self, client: LocalClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def train(self, t: int, start: Adapter, **request: Any) -> TrainResult:
        if t == 1:
            raise RuntimeError("no")
        return self._client.train(t, start, **request)


def asked(k: int, parcel: Parcel) -> bool:
    """Client 2 in round 1."""
    return (k, parcel.kind, parcel.header.get("t")) == (2, "train", 1)


def spoilt(change: Callable[[Parcel], Parcel]) -> Any:
    return lambda k, parcel, answer: change(answer) if asked(k, parcel) else answer


def raises(answer: Parcel) -> Parcel:
    raise RuntimeError("out of memory")


def with_nan(answer: Parcel) -> Parcel:
    spoiled = tree.map_tensors(lambda x: x * math.nan, wire.decode(answer.body))
    return replace(answer, body=wire.encode(spoiled))


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "silent": ({"fault": lambda k, parcel: "silent" if asked(k, parcel) else None}, "no answer within 0.2 s"),
    "raises": ({"change": spoilt(raises)}, "its ClientApp raised an error .*out of memory"),
    "nan": ({"change": spoilt(with_nan)}, "NaN"),
    "stale": ({"change": spoilt(lambda x: replace(x, header={**x.header, "t": 0}))}, "answer is to round 0, this is round 1"),
    "cut": ({"change": spoilt(lambda x: replace(x, body=x.body[:-40]))}, "cut or altered"),
}


@pytest.mark.parametrize("name", ["flexlora", "flora", "scaffold"])
@pytest.mark.parametrize("fault", FAULTS)
def test_eng_5_a_fault_costs_one_visit_and_nothing_else(name: str, fault: str, in_process: ModuleType, tmp_path: Path) -> None:
    """The rounds are those of one process in which that client fails in that round."""
    method, (given, reason) = built(name), FAULTS[fault]
    clients: list[Any] = in_process.toys(method)
    clients[2] = Failing(clients[2])
    local = list(federate(method, clients, engine="sequential", rounds=ROUNDS))
    grid = in_process.toy_grid(method, tmp_path, **given)
    over = list(in_process.over_flower(method, grid, rounds=ROUNDS, deadline=0.2 if fault == "silent" else 5.0))
    for x, y in zip(local, over, strict=True):
        assert wire.encode({"state": x.state}) == wire.encode({"state": y.state})
        assert x.bytes.down == y.bytes.down
    assert list(over[1].dropped) == [2]
    assert re.search(reason, over[1].dropped[2])


REFUSED: dict[str, tuple[Callable[[Parcel], Parcel], str]] = {
    "truncated": (lambda x: replace(x, body=x.body[: len(x.body) // 2]), "upload: .*cut"),
    "oversized": (lambda x: replace(x, body=x.body + bytes(2 << 20)), r"the reply has \d+ bytes, where \d+ are the most"),
    "of an unknown kind": (lambda x: replace(x, kind="evaluate"), "of kind 'evaluate', where 'train' was asked"),
    "of another run": (lambda x: replace(x, header={**x.header, "run": "other"}), "of another run, 'other'"),
    "NaN": (with_nan, "upload: .*NaN"),
    "a pickle": (lambda x: replace(x, body=b"\x80\x04K\x01."), "a pickle"),
    "a refusal": (lambda x: Parcel("refusal", {"reason": "disk full"}), "local update: disk full"),
    "without metrics": (lambda x: replace(x, header={**x.header, "metrics": [1.0]}), "metrics are a list"),
    "a lie about steps": (lambda x: replace(x, header={**x.header, "metrics": {"num_steps": "x"}}), "reports num_steps = 'x'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_eng_12_what_cannot_be_used_is_refused_by_name(what: str, in_process: ModuleType, tmp_path: Path) -> None:
    change, reason = REFUSED[what]
    method = get_method("fedavg")
    grid = in_process.toy_grid(method, tmp_path, change=spoilt(change))
    over = list(in_process.over_flower(method, grid, rounds=2))
    assert list(over[1].dropped) == [2]
    assert re.search(reason, over[1].dropped[2])


def test_eng_12_the_ledger_is_what_was_handed_to_the_transport(in_process: ModuleType, tmp_path: Path) -> None:
    """With adapters of a real size, where Flower's own frame and the header are small."""
    method = get_method("scaffold")
    grid = in_process.wide_grid(method, tmp_path, width=40_000)
    rounds = in_process.over_flower(method, grid, rounds=2)
    got = list(rounds)
    down, up = (sum(getattr(r.bytes, f"total_{way}") for r in got) for way in ("down", "up"))
    mailbox = rounds.sites.mailbox
    assert mailbox.sent == down
    assert mailbox.received - mailbox_census(got[0]) == up
    assert grid.transport["down"] == pytest.approx(down, rel=0.01)
    assert grid.transport["up"] == pytest.approx(up, rel=0.01)


def mailbox_census(done: Round) -> int:
    """The bytes of the template that the census fetched."""
    return len(wire.encode({"template": done.template}))


CODES = {
    5: "its SuperNode has not been heard of",
    8: "the process of its ClientApp died",
    2: r"its ClientApp raised an error \(ValueError: bad\)",
    77: "an error of code 77",
}


@pytest.mark.parametrize("code", CODES)
def test_an_error_of_flowers_becomes_a_reason_that_a_person_understands(
    code: int, in_process: ModuleType, tmp_path: Path
) -> None:
    from flwr.app import Error

    error = Error(code, "Traceback (most recent call last):\n  ...\nValueError: bad")
    method = get_method("fedavg")
    grid = in_process.toy_grid(method, tmp_path, fault=lambda k, p: error if asked(k, p) else None)
    over = list(in_process.over_flower(method, grid, rounds=2))
    assert re.search(CODES[code], over[1].dropped[2])


def test_a_late_answer_is_counted_and_dropped_and_the_site_is_asked_again(in_process: ModuleType, tmp_path: Path) -> None:
    method = get_method("scaffold")
    grid = in_process.toy_grid(method, tmp_path, fault=lambda k, p: 10_000 if asked(k, p) else None)
    rounds = in_process.over_flower(method, grid, rounds=3, deadline=0.2)
    first, second = next(rounds.rounds), next(rounds.rounds)
    assert not first.dropped
    assert list(second.dropped) == [2]
    grid.arrive()
    third = next(rounds.rounds)
    assert rounds.sites.mailbox.late == 1
    assert not third.dropped
    assert third.snapshot.client_rounds == dict.fromkeys(range(4), 2)


def test_a_site_that_is_starting_is_asked_again_and_writes_no_line_of_the_log(
    in_process: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    starting = iter([Parcel("refusal", {"again": True, "reason": "soon\nall is well"}, b"\0" * 5000)])
    method = get_method("fedavg")
    grid = in_process.toy_grid(method, tmp_path, change=lambda k, asked, up: next(starting, up) if k == 2 else up)
    carrier = in_process.FlowerCarrier(grid, poll=0.001)
    found = carrier.ask({node: Parcel("census", {"run": "r", "terms": {}}) for node in carrier.nodes()}, 60.0, 0.0)
    assert [answer.kind for answer in found.values()] == ["census"] * 4
    (line,) = (record.getMessage() for record in caplog.records if record.name == "fedelta.sites")
    assert line == "asking node 1003 again: soon\\nall is well"


def test_a_round_with_over_selection_ends_with_the_first_answers(in_process: ModuleType, tmp_path: Path) -> None:
    method = get_method("fedavg")
    slow = {0: 0, 1: 50, 2: 0, 3: 50}
    grid = in_process.toy_grid(method, tmp_path, fault=lambda k, p: slow[k] if p.kind == "train" else None)
    rounds = in_process.over_flower(method, grid, rounds=2, over_selection=1.0)
    done = next(rounds.rounds)
    assert [u.sender.id for u in done.updates] == [0, 2]
    assert set(done.dropped) == {1, 3}
    assert "2 others answered first" in done.dropped[1]
    grid.arrive()
    next(rounds.rounds)
    assert rounds.sites.mailbox.late == 2


def test_equal_messages_are_one_object_and_answers_are_fetched_few_at_a_time(
    in_process: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedelta.engines.runners.flower import mailbox

    method = get_method("fedavg")
    monkeypatch.setattr(mailbox, "IN_HAND", 1)
    grid = in_process.toy_grid(method, tmp_path)
    done = next(in_process.over_flower(method, grid, rounds=1).rounds)
    assert grid.most_pulled == max(done.bytes.up.values())
    assert grid.pushes[-1] == 4  # one body for all, so that one push holds no more than one


def test_a_thousand_sites_leave_no_handle_and_no_file_behind(
    in_process: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    method = get_method("fedavg")
    grid = in_process.many_grid(1000)
    handles = lambda: len(list(Path("/proc/self/fd").iterdir()))  # noqa: E731
    counts: list[int] = []
    peak: list[int] = []
    for _ in in_process.over_flower(method, grid, rounds=3, deadline=60.0):
        counts.append(handles())
        peak.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert len(set(counts)) == 1, counts
    assert not list(tmp_path.iterdir())
    assert peak[-1] - peak[0] < 32 << 10, f"memory grows: {peak} KiB"


def test_nothing_holds_an_answer_once_its_tensors_are_made(
    in_process: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Message, parcel and reply go by themselves: no circle of references keeps their bytes until Python looks for such."""
    from fedelta.engines.runners.flower import mailbox, sites

    held: list[weakref.ref[Any]] = []
    read, opened, receive = mailbox.unpack, sites.opened, sites.receive

    def unpacked(content: Any) -> Parcel:
        held.append(weakref.ref(content))
        found = read(content)
        held.append(weakref.ref(found))
        return found

    def gone() -> bool:
        return not any(ref() is not None for ref in held)

    def receiving(*args: Any) -> Any:
        assert gone()
        held.append(weakref.ref(args[-1]))
        return receive(*args)

    def opening(*args: Any) -> Any:
        assert sum(ref() is not None for ref in held) == 1, "the parcel alone"
        return opened(*args)

    monkeypatch.setattr(mailbox, "unpack", unpacked)
    monkeypatch.setattr(sites, "receive", receiving)
    monkeypatch.setattr(sites, "opened", opening)
    method = get_method("fedavg")
    rounds = in_process.over_flower(method, in_process.toy_grid(method, tmp_path), rounds=2)
    gc.collect()
    gc.disable()
    try:
        assert len(list(rounds)) == 2
        assert gone()
    finally:
        gc.enable()


def test_different_letters_are_not_held_as_bytes_together(
    in_process: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedelta.engines.runners.flower import sites

    counts: list[int] = []
    body = sites._Post._body

    def counted(post: Any, *args: Any) -> bytes:
        found = body(post, *args)
        counts.append(len(post._bodies))
        return found

    monkeypatch.setattr(sites._Post, "_body", counted)
    monkeypatch.setattr(sites, "IN_HAND", 1)
    method = get_method("flexlora")
    local = list(federate(method, in_process.toys(method), engine="sequential", rounds=2))
    over = list(in_process.over_flower(method, in_process.toy_grid(method, tmp_path), rounds=2))
    assert counts == [1] * 8
    for x, y in zip(local, over, strict=True):
        same(x, y)
