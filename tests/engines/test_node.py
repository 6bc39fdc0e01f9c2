"""One node by itself: with its neighbours it is `gossip`, bit for bit; among faults they go on, and come together again."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fedelta import topology
from fedelta.client import LocalClient
from fedelta.engines import checkpoint
from fedelta.engines.federation import largest_template
from fedelta.engines.gossip import gossip
from fedelta.engines.mailbox import Queue
from fedelta.engines.neighbours import Neighbours, Patience
from fedelta.engines.node import NodeRound, neighbours_of, take_part
from fedelta.engines.settings import RunSettings
from fedelta.exchange import parcels, wire
from fedelta.exchange.channel import Channel
from fedelta.exchange.codecs import get_codec
from fedelta.exchange.parcels import Parcel
from fedelta.lowrank import dist2
from fedelta.methods import get_method, list_methods
from fedelta.models.toy import toy_federation

DECENTRALISED = [name for name in list_methods() if get_method(name).decentralised]
CALM = Patience(silence=120.0, deadline=120.0)
"""Nobody is given up, however busy the machine is."""

HASTY = Patience(silence=0.5, deadline=60.0, every=0.5)
"""For faults: who is silent for so long is gone. On a busy machine that may also befall somebody who is there."""


# --- post in memory, between nodes that are threads ------------------------------------------------------------------


@dataclass
class Network:
    """All post of some nodes. Whoever listens in vain hears hello of all that are there, as over a real line.

    Attributes:
        passes: (sender, receiver, parcel) -> what arrives of it; None if nothing does.
        hellos: by node, what it announces; a node that is not in it is not there.
    """

    passes: Callable[[int, int, Parcel], Parcel | None] = lambda sender, receiver, parcel: parcel
    hellos: dict[int, Parcel] = field(default_factory=dict)
    inboxes: dict[int, Queue] = field(default_factory=dict)

    def carry(self, sender: int, receiver: int, parcel: Parcel) -> None:
        arrived = self.passes(sender, receiver, parcels.decode(parcels.encode(parcel)))
        if arrived is not None and receiver in self.hellos:
            self.inboxes[receiver].put(sender, arrived)


@dataclass
class Post:
    """The post of one node."""

    network: Network
    me: int

    def __post_init__(self) -> None:
        self.network.inboxes[self.me] = Queue()

    def send(self, to: int, parcel: Parcel) -> None:
        self.network.carry(self.me, to, parcel)

    def announce(self, parcel: Parcel) -> None:
        self.network.hellos[self.me] = parcel

    def take(self, seconds: float) -> tuple[int, Parcel] | None:
        found = self.network.inboxes[self.me].take(seconds)
        if found is None and seconds > 0:
            for sender, hello in list(self.network.hellos.items()):
                if sender != self.me:
                    self.network.carry(sender, self.me, hello)
        return found


def clients_for(name: str) -> list[LocalClient]:
    """Each node has a model of its own, as in a process of its own."""
    ranks = (2, 4, 5, 3) if get_method(name).hetero_rank else (3, 3, 3, 3)
    return [toy_federation(ranks, lora_alpha=8.0, dtype=torch.float32)[k] for k in range(4)]


def node(
    network: Network, name: str, clients: Sequence[LocalClient], k: int, rounds: int, **options: Any
) -> Iterator[NodeRound]:
    """Node k of a federation on a ring."""
    known = {key: options.pop(key) for key in ("start", "weights", "link_drop", "channel") if key in options}
    settings = RunSettings(rounds=rounds, engine="sequential", **known)
    given: dict[str, Any] = {"mixing": topology.ring(len(clients)), "patience": CALM, **options}
    peers = [client.peer for client in clients]
    return take_part(
        get_method(name), clients[k], peers, largest_template(clients), Post(network, k), settings=settings, **given
    )


def together(*programs: Callable[[], None]) -> None:
    """Runs programs at once; raises the first error of any."""
    errors: list[BaseException] = []

    def guarded(program: Callable[[], None]) -> None:
        try:
            program()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(program,), daemon=True) for program in programs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a node hangs"


def play(name: str, clients: Sequence[LocalClient], rounds: int, network: Network, **options: Any) -> list[list[NodeRound]]:
    """The rounds of all nodes."""
    found: list[list[NodeRound]] = [[] for _ in clients]

    def program(k: int) -> None:
        found[k].extend(node(network, name, clients, k, rounds, **options))

    together(*(partial(program, k) for k in range(len(clients))))
    return found


def states(found: Sequence[Sequence[NodeRound]], t: int) -> list[bytes]:
    return [wire.encode(rounds[t].done.state[str(k)]) for k, rounds in enumerate(found)]


def spread(adapters: Sequence[Any]) -> float:
    return sum(float(dist2(a.layers[n], adapters[0].layers[n])) for a in adapters for n in a.layers)


# --- without faults --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECENTRALISED)
def test_nodes_are_gossip_to_the_last_bit_in_every_round_eng_8(name: str) -> None:
    expected = list(gossip(get_method(name), clients_for(name), rounds=4, mixing=topology.ring(4), engine="sequential"))
    found = play(name, clients_for(name), 4, Network())
    for t in range(4):
        assert states(found, t) == [wire.encode(expected[t].state[str(k)]) for k in range(4)]
        for k in range(4):
            done = found[k][t].done
            assert found[k][t].linked == sorted(((k - 1) % 4, (k + 1) % 4))
            assert done.bytes.up[k] == expected[t].bytes.up[k]
            assert done.snapshot.client_states.get(k) is not None or not expected[t].client_states.get(k)


def test_nodes_weigh_by_examples_and_by_a_graph_of_the_round_as_gossip_does() -> None:
    def mixing(t: int) -> torch.Tensor:
        return topology.complete(4) if t % 2 else topology.ring(4)

    options: dict[str, Any] = {"mixing": mixing, "weights": "examples"}
    expected = list(gossip(get_method("fedavg"), clients_for("fedavg"), rounds=4, engine="sequential", **options))
    found = play("fedavg", clients_for("fedavg"), 4, Network(), **options)
    assert states(found, 3) == [wire.encode(expected[3].state[str(k)]) for k in range(4)]
    assert neighbours_of(mixing, 0, range(4), 4) == [1, 2, 3]
    assert neighbours_of(mixing, 0, range(4), 1) == [1, 3]


def test_nodes_send_what_the_channel_makes_of_an_update_as_gossip_does() -> None:
    options: dict[str, Any] = {"mixing": topology.ring(4), "channel": Channel((get_codec("bf16"),))}
    expected = list(gossip(get_method("tad_lora"), clients_for("tad_lora"), rounds=3, engine="sequential", **options))
    found = play("tad_lora", clients_for("tad_lora"), 3, Network(), **options)
    assert states(found, 2) == [wire.encode(expected[2].state[str(k)]) for k in range(4)]
    assert found[0][2].done.bytes.up[0] == expected[2].bytes.up[0]


def test_a_node_whose_training_fails_keeps_its_state_and_its_neighbours_do_without_at_once() -> None:
    def clients() -> list[LocalClient]:
        made = clients_for("fedavg")
        made[1].loss = lambda module, batch: torch.tensor(float("nan"))
        return made

    expected = list(gossip(get_method("fedavg"), clients(), rounds=5, mixing=topology.ring(4), engine="sequential"))
    found = play("fedavg", clients(), 5, Network())
    for t in range(5):  # it is done sooner than its neighbours in each round, and yet no node skips one
        assert states(found, t) == [wire.encode(expected[t].state[str(k)]) for k in range(4)]
    assert "local update" in found[1][0].done.dropped[1]
    assert found[0][0].linked == [3]


@pytest.mark.parametrize("damage", ["cut", "nan", "no message", "metrics"])
def test_an_update_that_cannot_be_used_costs_its_link_at_both_ends(damage: str, caplog: pytest.LogCaptureFixture) -> None:
    def passes(sender: int, receiver: int, parcel: Parcel) -> Parcel:
        if (sender, receiver, parcel.kind, parcel.header["t"]) != (1, 0, "update", 1):
            return parcel
        content = wire.decode(parcel.body)
        content["adapter"].dense["bias"][0] = float("nan")
        bodies = {"cut": parcel.body[:-5], "nan": wire.encode(content), "no message": b"\x80pickle", "metrics": parcel.body}
        header = {**parcel.header, "metrics": {"loss": "low"} if damage == "metrics" else parcel.header["metrics"]}
        return Parcel("update", header, bodies[damage])

    def lost(t: int, sender: int, receiver: int) -> bool:
        return (t, sender, receiver) == (1, 1, 0)

    options: dict[str, Any] = {"mixing": topology.ring(4), "engine": "sequential", "link_drop": lost}
    expected = list(gossip(get_method("fedavg"), clients_for("fedavg"), rounds=3, **options))
    found = play("fedavg", clients_for("fedavg"), 3, Network(passes))
    assert states(found, 2) == [wire.encode(expected[2].state[str(k)]) for k in range(4)]
    assert (found[0][1].linked, found[1][1].linked) == ([3], [2])
    assert "no link with peer 0: it refuses" in caplog.text
    assert found[1][1].done.bytes.up == found[1][2].done.bytes.up, "what is refused has travelled, too"


# --- faults ----------------------------------------------------------------------------------------------------------


def test_a_node_that_dies_comes_back_from_its_checkpoint_and_joins_the_round_of_the_others(tmp_path: Path) -> None:
    network, clients, rounds = Network(), clients_for("tad_lora"), 14
    back, at_return = threading.Event(), dict[str, Any]()
    last: dict[int, Any] = {}

    def others(k: int) -> None:
        for done in node(network, "tad_lora", clients, k, rounds, patience=HASTY):
            last[k] = done.done.state[str(k)]["adapter"]
            if done.done.t == 6:
                assert back.wait(60)

    def victim() -> None:
        for done in node(network, "tad_lora", clients, 2, rounds, patience=HASTY):
            checkpoint.save(tmp_path, done.done.snapshot)
            if done.done.t == 2:
                del network.hellos[2]
                break
        while any(network.hellos[k].header["t"] < 6 for k in (0, 1, 3)):
            threading.Event().wait(0.01)
        start = checkpoint.load(tmp_path)
        assert start.t == 3
        again = node(network, "tad_lora", clients, 2, rounds, patience=HASTY, start=start)
        threading.Timer(0.5, back.set).start()
        for done in again:
            at_return.setdefault("t", done.done.t)
            last[2] = done.done.state["2"]["adapter"]

    together(partial(others, 0), partial(others, 1), partial(others, 3), victim)
    assert at_return["t"] >= 6, "it has not caught up"
    assert spread([last[k] for k in range(4)]) < 0.5 * _apart(rounds)


def _apart(rounds: int) -> float:
    """The spread of nodes that never hear of each other."""
    options: dict[str, Any] = {"mixing": torch.eye(4, dtype=torch.float64), "engine": "sequential"}
    *_, done = gossip(get_method("tad_lora", interval=1), clients_for("tad_lora"), rounds=rounds, **options)
    return spread([state["adapter"] for state in done.state.values()])


def test_a_frozen_node_is_given_up_for_now_and_jumps_to_the_others_round() -> None:
    network, clients, thawed = Network(), clients_for("fedavg"), threading.Event()
    seen: dict[int, list[NodeRound]] = {k: [] for k in range(4)}

    def program(k: int) -> None:
        for done in node(network, "fedavg", clients, k, 12, patience=HASTY):
            seen[k].append(done)
            if k == 2 and done.done.t == 2:
                hello = network.hellos.pop(2)
                assert thawed.wait(60)
                network.hellos[2] = hello
            if k == 0 and done.done.t == 6:
                thawed.set()
                threading.Event().wait(0.5)

    together(*(partial(program, k) for k in range(4)))
    ts = [done.done.t for done in seen[2]]
    assert ts[-1] == 11
    assert set(range(4, 6)).isdisjoint(ts), "it went through rounds that the others had left"
    assert [done.done.t for done in seen[0]] == list(range(12))
    assert any(2 not in done.linked for done in seen[1])
    assert 2 in seen[1][-1].linked or 2 in seen[3][-1].linked


def test_two_halves_that_were_cut_apart_come_together_again() -> None:
    cut, healed = threading.Event(), threading.Event()

    def passes(sender: int, receiver: int, parcel: Parcel) -> Parcel | None:
        is_across = (sender in (0, 1)) != (receiver in (0, 1))
        return None if is_across and cut.is_set() and not healed.is_set() else parcel

    network, clients = Network(passes), clients_for("fedavg")
    adapters: dict[int, dict[int, Any]] = {k: {} for k in range(4)}
    links: dict[int, dict[int, Sequence[int]]] = {k: {} for k in range(4)}
    halves = threading.Barrier(4)

    def program(k: int) -> None:
        for done in node(network, "fedavg", clients, k, 24, patience=HASTY):
            adapters[k][done.done.t], links[k][done.done.t] = done.done.state[str(k)]["adapter"], done.linked
            if done.done.t == 2:
                halves.wait(60)
                cut.set()
                halves.wait(60)
            if done.done.t == 12:
                halves.wait(60)
                healed.set()
                halves.wait(60)

    together(*(partial(program, k) for k in range(4)))
    assert [links[k][12] for k in range(4)] == [[1], [0], [3], [2]]
    before, after = (spread([adapters[k][t] for k in range(4)]) for t in (12, 23))
    assert after < 0.5 * before


def test_a_jump_to_anothers_round_is_said_with_its_name_and_no_text_of_a_peer_forges_a_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A peer with a certificate may claim any round of the run: it is believed, so that it must be seen."""
    post = Queue()
    heard = Neighbours(Inbox(post), {1: "north", 2: "south"}, {"seed": "0"}, "run", 9, CALM)

    def says(sender: int, kind: str, **header: Any) -> None:
        post.put(sender, Parcel(kind, {"sender": sender, "run": "run", **header}))
        heard.listen(lambda: True)

    says(1, "hello", t=3)
    assert heard.next_round(3) == 3
    assert not caplog.text
    says(2, "hello", t=8)
    assert heard.next_round(4) == 8
    assert "goes on with round 8 in place of 4: peer south says that it is there" in caplog.text
    for t in (10, -1, True, 3.0, "3", None):
        says(1, "hello", t=t)
    assert heard.newest() == 8
    says(1, "refusal", t=3, reason="no\nround 4: all is well" + "x" * 9999)
    assert str(heard.refusal(1, 3)).startswith("no\\nround 4")
    assert len(str(heard.refusal(1, 3))) < 600
    says(1, "hello", t=3, run="other", terms={"seed\nround 5: all is well": 1, "more" * 999: 2})
    assert all(len(record.getMessage()) < 700 and "\n" not in record.getMessage() for record in caplog.records)


@dataclass
class Inbox:
    """A post that only receives."""

    queue: Queue

    def send(self, to: int, parcel: Parcel) -> None: ...
    def announce(self, parcel: Parcel) -> None: ...
    def take(self, seconds: float) -> tuple[int, Parcel] | None:
        return self.queue.take(seconds)


def test_nobody_there_is_an_error_that_names_who_was_not_heard(caplog: pytest.LogCaptureFixture) -> None:
    patience = replace(HASTY, deadline=0.3, every=0.1)
    names = {k: f"hospital-{k}" for k in range(4)}
    with pytest.raises(
        TimeoutError, match=r"no neighbour was heard .* hospital-1, hospital-3, not heard: look whether it runs"
    ):
        next(node(Network(), "fedavg", clients_for("fedavg"), 0, 3, patience=patience, names=names))
    assert "still waiting for hospital-1, hospital-3" in caplog.text


def test_what_cannot_be_a_node_is_refused_before_anything_is_sent() -> None:
    clients, network = clients_for("fedavg"), Network()
    for name, options, message in [
        ("flora", {}, "FLoRA moves the base"),
        ("centralised", {}, "centralised pools data"),
        ("fedavg", {"channel": Channel((get_codec("int8"),))}, "codes the difference to what its sender began from"),
        ("fedavg", {"link_drop": 0.1}, "link_drop loses messages of a simulation"),
        ("fedavg", {"mixing": topology.exponential(4)}, "nodes need a symmetric mixing matrix"),
        ("fedavg", {"mixing": topology.ring(3)}, r"shape \(3, 3\), but there are 4 nodes"),
    ]:
        with pytest.raises(ValueError, match=message):
            node(network, name, clients, 0, 2, **options)
    stranger = [*clients[:3], replace_peer(clients[3])]
    with pytest.raises(ValueError, match="is not one of the peers"):
        take_part(
            get_method("fedavg"),
            clients[3],
            [client.peer for client in stranger],
            largest_template(clients),
            Post(network, 3),
            mixing=topology.ring(4),
            settings=RunSettings(rounds=1),
        )


def replace_peer(client: LocalClient) -> Any:
    other = toy_federation((3, 3, 3, 3), lora_alpha=8.0)[3]
    other.peer = replace(client.peer, num_examples=99)
    return other


def test_who_has_other_terms_or_another_name_is_not_listened_to_and_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    network, clients = Network(), clients_for("fedavg")
    names = {k: f"hospital-{k}" for k in range(4)}

    def forge(sender: int, receiver: int, parcel: Parcel) -> Parcel:
        return Parcel(parcel.kind, {**parcel.header, "sender": 0}, parcel.body) if sender == 3 else parcel

    network.passes = forge
    seen: dict[int, list[NodeRound]] = {}
    patience = Patience(silence=0.5, deadline=1.5, every=0.5)

    def program(k: int) -> None:
        terms = {"config": "other" if k == 1 else "ours"}
        try:
            seen[k] = list(node(network, "fedavg", clients, k, 2, patience=patience, names=names, terms=terms))
        except TimeoutError:
            seen[k] = []

    together(*(partial(program, k) for k in range(4)))
    assert "peer hospital-1 is refused: it is in another run, with another config" in caplog.text
    assert "peer hospital-3 is refused: it sent a message in the name of 0, where its own id is 3" in caplog.text
    assert all(1 not in done.linked and 3 not in done.linked for done in [*seen[0], *seen[2]])
