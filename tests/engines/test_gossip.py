"""`gossip`: on the complete graph a server; on others nodes that come together; faults and bytes by neighbour."""

import logging
from typing import Any

import pytest
import torch

from fedelta import topology, wire
from fedelta.engines.local import Round, federate, gossip
from fedelta.lowrank import dist2
from fedelta.methods import get_method
from fedelta.models.toy import toy_federation


def play(
    mixing: Any, name: str = "fedavg", ranks: tuple[int, ...] = (2, 2, 2, 2), rounds: int = 3, **options: Any
) -> list[Round]:
    return list(gossip(get_method(name), toy_federation(ranks), rounds=rounds, mixing=mixing, debug=True, **options))


def spread(done: Round) -> float:
    adapters = [s["adapter"] for s in done.state.values()]
    return sum(float(dist2(a.layers[n], adapters[0].layers[n])) for a in adapters for n in a.layers)


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


def test_a_node_that_fails_still_listens() -> None:
    clients = toy_federation((2, 2, 2, 2))
    clients[1].loss = lambda module, batch: torch.tensor(float("nan"), dtype=torch.float64)  # no gradient: training raises
    done = next(iter(gossip(get_method("fedavg"), clients, rounds=1, mixing=topology.ring(4))))
    sent = {u.sender.id: u.content["adapter"].dense["bias"] for u in done.updates}
    assert list(done.dropped) == [1]
    assert torch.allclose(done.state["1"]["adapter"].dense["bias"], (sent[0] + sent[2]) / 2, rtol=0, atol=1e-15)
    assert torch.allclose(done.state["0"]["adapter"].dense["bias"], (sent[0] + sent[3]) / 2, rtol=0, atol=1e-15)


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
