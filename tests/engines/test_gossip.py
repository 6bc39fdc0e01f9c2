"""`gossip`: on the complete graph a server; on others nodes that come together; faults and bytes by neighbour."""

import logging
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
import torch

from fedelta import topology
from fedelta.client import LocalClient
from fedelta.engines import guards
from fedelta.engines.gossip import gossip
from fedelta.engines.rounds import QuorumError, Round
from fedelta.engines.server import federate
from fedelta.exchange import wire
from fedelta.lowrank import LoRA, dist2
from fedelta.merging import ClientUpdate
from fedelta.methods import get_method
from fedelta.models.toy import toy_federation, toy_template
from fedelta.peers import Peer
from fedelta.tree import Adapter, factors, with_factors


def play(
    mixing: Any, name: str = "fedavg", ranks: tuple[int, ...] = (2, 2, 2, 2), rounds: int = 3, **options: Any
) -> list[Round]:
    return list(gossip(get_method(name), toy_federation(ranks), rounds=rounds, mixing=mixing, debug=True, **options))


def spread(done: Round) -> float:
    adapters = [s["adapter"] for s in done.state.values()]
    return sum(float(dist2(a.layers[n], adapters[0].layers[n])) for a in adapters for n in a.layers)


def bias(adapter: Adapter) -> torch.Tensor:
    return adapter.dense["bias"]


@pytest.mark.parametrize(("name", "ranks"), [("fedavg", (2, 2, 2, 2)), ("flexlora", (1, 3, 2, 2)), ("ffa_lora", (2, 2, 2, 2))])
def test_the_complete_graph_is_a_server_with_uniform_weights(name: str, ranks: tuple[int, ...]) -> None:
    nodes = play(topology.complete(4), name, ranks)
    server = list(federate(get_method(name), toy_federation(ranks), rounds=3, weights="uniform"))
    for a, b in zip(nodes, server, strict=True):
        assert len({wire.encode(s) for s in a.state.values()}) == 1
        for layer, x in a.state["0"]["adapter"].layers.items():
            assert torch.allclose(x.dense(), b.state["adapter"].layers[layer].dense(), rtol=0, atol=1e-12)


def test_on_a_ring_nodes_differ_and_stay_near() -> None:
    run = play(topology.ring(4), rounds=20)
    apart = play(torch.eye(4, dtype=torch.float64), rounds=20)
    assert 0 < spread(run[-1]) < 0.3 * spread(apart[-1])
    assert run[-1].loss < run[0].loss


def test_one_step_is_the_row_of_w() -> None:
    W = topology.ring(4)
    done = play(W, rounds=1)[0]
    sent = {u.sender.id: u.content["adapter"].dense["bias"] for u in done.updates}
    for i in range(4):
        expected = sum(W[i, j] * sent[j] for j in range(4))
        assert torch.allclose(done.state[str(i)]["adapter"].dense["bias"], expected, rtol=0, atol=1e-15)


def test_an_upload_counts_once_for_each_neighbour() -> None:
    done = play(topology.metropolis(4, [(0, 1), (0, 2), (0, 3)]), rounds=1)[0]
    one = len(wire.encode(done.updates[0].content))
    assert done.bytes.up == {0: 3 * one, 1: one, 2: one, 3: one}
    assert done.bytes.down == {}


def test_the_graph_may_change_with_the_round() -> None:
    def mixing(t: int) -> torch.Tensor:
        return topology.complete(4) if t == 2 else torch.eye(4, dtype=torch.float64)

    run = play(mixing)
    assert spread(run[1]) > 0
    assert spread(run[2]) == 0


def test_the_order_of_nodes_changes_no_bit_and_a_run_resumes() -> None:
    method, ring = get_method("fedavg"), topology.ring(4)
    whole = play(ring)
    backward = list(gossip(method, toy_federation((2, 2, 2, 2))[::-1], rounds=3, mixing=ring))
    later = list(gossip(method, toy_federation((2, 2, 2, 2)), rounds=3, mixing=ring, start=whole[0].snapshot))
    assert wire.encode(whole[-1].state) == wire.encode(backward[-1].state) == wire.encode(later[-1].state)
    assert [r.t for r in later] == [1, 2]


def test_a_node_that_fails_is_out_of_the_round_and_the_mean_of_the_others_stays() -> None:
    clients = toy_federation((2, 2, 2, 2))
    clients[1].loss = lambda module, batch: torch.tensor(float("nan"), dtype=torch.float64)  # no gradient: training raises
    done = next(iter(gossip(get_method("fedavg"), clients, rounds=1, mixing=topology.ring(4))))
    sent = {u.sender.id: bias(u.content["adapter"]) for u in done.updates}
    assert list(done.dropped) == [1]
    assert done.state["1"] is done.before["1"]
    torch.testing.assert_close(bias(done.state["0"]["adapter"]), (2 * sent[0] + sent[3]) / 3, rtol=0, atol=1e-15)
    mean = sum(bias(done.state[k]["adapter"]) for k in "023") / 3
    torch.testing.assert_close(mean, sum(sent.values()) / 3, rtol=0, atol=1e-15)


def test_a_message_lost_one_way_takes_the_link_from_both_ends_dec_10() -> None:
    W = topology.ring(4)
    done = play(W, rounds=1, link_drop=lambda t, sender, receiver: (sender, receiver) == (1, 0))[0]
    sent = {u.sender.id: bias(u.content["adapter"]) for u in done.updates}
    after = {k: bias(s["adapter"]) for k, s in done.state.items()}
    assert done.lost_links == [(0, 1)]
    torch.testing.assert_close(after["0"], (2 * sent[0] + sent[3]) / 3, rtol=0, atol=1e-15)
    torch.testing.assert_close(after["1"], (2 * sent[1] + sent[2]) / 3, rtol=0, atol=1e-15)
    torch.testing.assert_close(sum(after.values()), sum(sent.values()), rtol=0, atol=1e-15)
    one = len(wire.encode(done.updates[0].content))
    assert done.bytes.up == {0: 2 * one, 1: one, 2: 2 * one, 3: 2 * one}, "what arrived travelled, used or not"


def test_messages_get_lost_by_chance_the_same_in_every_run() -> None:
    first, again = (play(topology.complete(4), rounds=6, link_drop=0.3) for _ in range(2))
    assert [r.lost_links for r in first] == [r.lost_links for r in again]
    lost = [len(r.lost_links) for r in first]
    assert 0 < min(max(lost), sum(lost)) < 36
    assert sum(lost) / 36 == pytest.approx(1 - 0.7**2, abs=0.25)  # a link needs both of its messages
    assert wire.encode(first[-1].state) == wire.encode(again[-1].state)
    alone = play(topology.complete(4), rounds=1, link_drop=1.0)[0]
    assert sum(alone.bytes.up.values()) == 0
    for update in alone.updates:
        assert bias(alone.state[str(update.sender.id)]["adapter"]).equal(bias(update.content["adapter"]))


def test_a_node_without_neighbours_keeps_its_own_update_and_sends_nothing() -> None:
    W = topology.metropolis(4, [(0, 1), (1, 2)])
    done = play(W, rounds=1)[0]
    own = next(u for u in done.updates if u.sender.id == 3).content["adapter"]
    for n, x in done.state["3"]["adapter"].layers.items():
        assert torch.equal(x.B, own.layers[n].B)
        assert torch.equal(x.A, own.layers[n].A)
    assert done.bytes.up[3] == 0


def test_weights_by_examples_keep_the_weighted_mean_dec_11() -> None:
    sizes = (4, 12, 8, 16)
    clients = toy_federation((2, 2, 2, 2), num_examples=sizes)
    done = next(iter(gossip(get_method("fedavg"), clients, rounds=1, mixing=topology.ring(4), weights="examples", debug=True)))
    sent = {u.sender.id: bias(u.content["adapter"]) for u in done.updates}
    before = sum(n * sent[k] for k, n in enumerate(sizes))
    after = sum(n * bias(done.state[str(k)]["adapter"]) for k, n in enumerate(sizes))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-13)
    uniform = sum(bias(s["adapter"]) for s in done.state.values())
    assert not torch.allclose(uniform, sum(sent.values()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["fedavg", "ffa_lora", "rolora", "tad_lora"])
def test_identical_nodes_stay_identical_to_the_last_bit_dec_7(name: str) -> None:
    method, clients = get_method(name), toy_federation((2, 2, 2), dtype=torch.float32)
    state = method.init(clients[0].template, [c.peer for c in clients])
    method = method.for_topology(4, lambda: 0.0)
    content, _ = method.local_update(0, method.broadcast(0, state, clients[0].peer), {}, clients[0])
    weights = (0.1, 0.3, 0.6)
    same = [ClientUpdate(c.peer, w, content) for c, w in zip(clients, weights, strict=True)]
    alone = method.aggregate(0, state, [replace(same[0], weight=1.0)])
    assert wire.encode(method.aggregate(0, state, same)) == wire.encode(alone)


def test_a_directed_graph_mixes_and_refuses_lost_messages() -> None:
    W = topology.exponential(4)
    done = play(W, rounds=1)[0]
    sent = {u.sender.id: bias(u.content["adapter"]) for u in done.updates}
    expected = sum(W[3, j] * sent[j] for j in range(4))
    torch.testing.assert_close(bias(done.state["3"]["adapter"]), expected, rtol=0, atol=1e-15)
    assert done.bytes.up[0] == 2 * len(wire.encode(done.updates[0].content))
    with pytest.raises(ValueError, match="link_drop needs a symmetric"):
        play(W, rounds=1, link_drop=1.0)
    with pytest.raises(ValueError, match=r"link_drop must be 1 or less, got 1\.5"):
        play(W, rounds=1, link_drop=1.5)


def test_a_quorum_counts_nodes() -> None:
    clients = toy_federation((2, 2, 2, 2))
    clients[1].loss = lambda module, batch: torch.tensor(float("nan"), dtype=torch.float64)
    with pytest.raises(QuorumError, match="3 of 4 updates can be used, the quorum is 4"):
        list(gossip(get_method("fedavg"), clients, rounds=1, mixing=topology.ring(4), quorum=1.0))


def test_models_are_those_of_nodes() -> None:
    done = play(topology.ring(4), rounds=1)[0]
    for peer in done.peers:
        own = done.state[str(peer.id)]["adapter"].dense["bias"]
        assert done.participant_model(peer)["adapter"].dense["bias"].equal(own)
    with pytest.raises(ValueError, match="no global model"):
        done.global_model()


def test_what_cannot_gossip_is_refused_or_named(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="FLoRA moves the base"):
        play(topology.ring(4), "flora")
    with pytest.raises(ValueError, match=r"shape \(3, 3\), but there are 4 nodes"):
        play(topology.ring(3))
    with caplog.at_level(logging.WARNING, "fedelta"):
        play(topology.ring(4), "local_only", rounds=1)
    assert "LocalOnly is not made for gossip" in caplog.text


@pytest.mark.parametrize(
    ("mixing", "error", "message"),
    [
        ("ring", TypeError, r"mixing .* got 'ring'.*topology.ring\(n\); a name belongs to federation.topology"),
        (None, TypeError, r"mixing .* got None.*federation.topology"),
        (torch.full((4, 4), torch.nan), ValueError, "negative entries"),
        (torch.eye(4).neg(), ValueError, "negative entries"),
        (torch.eye(4) * 2, ValueError, "rows of a mixing matrix have sum 1"),
        (torch.eye(3), ValueError, r"shape \(3, 3\), but there are 4 nodes"),
        (torch.ones(4) / 4, ValueError, "shape"),
        (torch.tensor(1.0), ValueError, "shape"),
    ],
)
def test_what_is_no_graph_is_refused_at_the_call(mixing: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gossip(get_method("fedavg"), toy_federation((2, 2, 2, 2)), rounds=1, mixing=mixing)


def test_a_rule_of_lost_messages_is_tried_at_the_call() -> None:
    def rule(t: int) -> bool:
        return False

    with pytest.raises(ValueError, match=r"link_drop is asked as \(t, sender, receiver\), and fails .* from 1 to 0"):
        gossip(get_method("fedavg"), toy_federation((2, 2)), rounds=1, mixing=topology.ring(2), link_drop=cast("Any", rule))


def unlike(client: LocalClient, layer: str = "output") -> Adapter:
    """The client's template with one number of one A moved by the last bit."""
    A = {n: x.clone() for n, x in factors(client.template, "A").items()}
    A[layer][-1, -1] = torch.nextafter(A[layer][-1, -1], torch.tensor(9.0, dtype=torch.float64))
    return with_factors(client.template, "A", A)


@pytest.mark.parametrize("name", ["ffa_lora", "rolora", "tad_lora", "fedavg", "decaf"])
def test_nodes_that_begin_from_another_A_are_refused_before_any_work_dec_22(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clients = toy_federation((2, 2, 2, 2))
    clients[2].template = unlike(clients[2])
    monkeypatch.setattr(LocalClient, "train", lambda *_, **__: pytest.fail("a client has trained"))
    with pytest.raises(ValueError, match=r"layer 'output': client 2 begins from another A"):
        gossip(get_method(name), clients, rounds=1, mixing=topology.ring(4))
    with pytest.raises(ValueError, match=r"layer 'output': client 2 begins from another A"):
        federate(get_method(name), clients, rounds=1)


def test_unequal_ranks_begin_from_the_leading_rows_of_one_A_dec_22() -> None:
    assert play(topology.ring(4), "ffa_lora", (1, 3, 2, 2), rounds=1)[0].dropped == {}
    clients = toy_federation((1, 3, 2, 2))
    own = clients[3].template
    copied = {n: x.clone() for n, x in factors(own, "A").items()}
    clients[3].template = with_factors(own, "A", copied)
    next(iter(gossip(get_method("ffa_lora"), clients, rounds=1, mixing=topology.ring(4))))  # equal rows, not the same memory
    clients[3].template = with_factors(own, "A", {n: x.flip(0) for n, x in copied.items()})
    with pytest.raises(ValueError, match=r"layer 'hidden': client 3 begins from another A \(2, 5\) than .* \(3, 5\)"):
        gossip(get_method("ffa_lora"), clients, rounds=1, mixing=topology.ring(4))
    with pytest.raises(ValueError, match="client 1 begins from another A"):
        gossip(get_method("ffa_lora"), toy_federation((1, 3, 2, 2)), toy_template(2), rounds=1, mixing=topology.ring(4))


def test_a_template_that_many_share_is_looked_at_once_dec_22(monkeypatch: pytest.MonkeyPatch) -> None:
    template, compared = toy_template(2), []
    monkeypatch.setattr(guards, "_leads", lambda *given: compared.append(given) or True)
    guards.check_templates([Participant(Peer(k, 2), template) for k in range(10_000)], template)
    assert len(compared) == len(template.layers)


@dataclass(frozen=True)
class Participant:
    """What a check before the first round sees of a client."""

    peer: Peer
    template: Adapter


def test_independent_A_average_to_a_smaller_one_dec_22() -> None:
    m, weights = 10, (0.1,) * 10
    drawn = [
        Adapter({"w": LoRA(torch.zeros(3, 64), torch.randn(64, 128, generator=torch.Generator().manual_seed(seed)))})
        for seed in range(m)
    ]
    peers = [Peer(k, 64) for k in range(m)]
    method = get_method("fedavg")
    updates = [ClientUpdate(p, w, {"adapter": a}) for p, w, a in zip(peers, weights, drawn, strict=True)]
    after = method.aggregate(0, method.init(drawn[0], peers), updates)["adapter"]
    own = float(torch.stack([a.layers["w"].A for a in drawn]).std())
    assert float(after.layers["w"].A.std()) / own == pytest.approx(m**-0.5, rel=0.02)
