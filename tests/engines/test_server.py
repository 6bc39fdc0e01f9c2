"""`federate`: the same numbers whatever the order, the right weights and cohorts, and a ledger that counts real bytes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedelta import sampling, topology, tree
from fedelta.client import LocalClient, Training
from fedelta.engines.gossip import gossip
from fedelta.engines.rounds import Round
from fedelta.engines.server import federate
from fedelta.exchange import wire
from fedelta.merging import ClientUpdate
from fedelta.method import Client, ClientState, State
from fedelta.methods import get_method
from fedelta.methods.fedavg import FedAvg
from fedelta.methods.flexlora import FlexLoRA
from fedelta.models.toy import random_adapter, toy_federation, toy_template, with_peer
from fedelta.peers import Peer, template_for, with_distinct_ranks
from fedelta.tree import Adapter, Message

RANKS = (1, 3, 2, 3)


@dataclass(frozen=True, kw_only=True)
class Rates(FedAvg):
    """FedAvg whose clients remember the learning rate of each round that they trained in."""

    def local_update(self, t: int, down: Message, client_state: ClientState, client: Client) -> tuple[Message, ClientState]:
        result = client.train(t, down["adapter"])
        return {"adapter": result.adapter}, {"rates": [*client_state.get("rates", []), result.learning_rate]}


@dataclass(frozen=True, kw_only=True)
class Diary(FedAvg):
    """FedAvg whose even clients remember what they uploaded."""

    def local_update(self, t: int, down: Message, client_state: ClientState, client: Client) -> tuple[Message, ClientState]:
        up, _ = super().local_update(t, down, {}, client)
        visits = client_state.get("visits", 0) + 1
        return up, {"visits": visits, "last": up["adapter"]} if client.peer.id % 2 == 0 else {}


@dataclass(frozen=True, kw_only=True)
class ByLoss(FedAvg):
    """FedAvg over the better half, to have a method that needs scores."""

    needs_validation = True

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        best = min(updates, key=lambda u: u.metrics["validation_loss"])
        return super().aggregate(t, state, [replace(best, weight=1.0)])


def play(method: Any, clients: Sequence[Any], rounds: int = 3, **options: Any) -> list[Round]:
    return list(federate(method, clients, rounds=rounds, debug=True, **options))


def bits(done: Round) -> bytes:
    return wire.encode({"state": done.state, "clients": {str(k): v for k, v in done.client_states.items()}})


@pytest.mark.parametrize("name", ["flexlora", "zeropad", "flora", "fedex_lora", "local_only"])
def test_the_order_of_clients_changes_no_bit(name: str) -> None:
    cohort = sampling.uniform(0.5)
    forward = play(get_method(name), toy_federation(RANKS), cohort=cohort)
    backward = play(get_method(name), toy_federation(RANKS)[::-1], cohort=cohort)
    assert [bits(r) for r in forward] == [bits(r) for r in backward]
    assert [r.bytes for r in forward] == [r.bytes for r in backward]


def test_a_run_is_a_function_of_its_seed() -> None:
    def last(seed: int) -> bytes:
        return bits(play(FlexLoRA(), toy_federation(RANKS), cohort=sampling.uniform(0.5), seed=seed)[-1])

    assert last(0) == last(0) != last(1)


def test_training_helps() -> None:
    losses = [r.loss for r in play(FlexLoRA(), toy_federation(RANKS), rounds=30)]
    assert losses[-1] < 0.5 * losses[0]


def test_a_round_holds_what_its_name_says() -> None:
    clients = toy_federation((2, 2, 2), num_examples=[10, 20, 30])
    first, second = play(FedAvg(), clients, rounds=2)
    assert (first.t, second.t) == (0, 1)
    assert second.before is first.state
    assert [u.sender.id for u in first.updates] == [0, 1, 2]
    assert [u.weight for u in first.updates] == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert all(u.metrics["num_steps"] == 4 and u.metrics["loss"] > 0 for u in first.updates)
    assert first.dropped == {}
    assert first.seconds > 0
    assert first.snapshot.t == 1


def test_the_state_is_the_mean_of_what_was_sent() -> None:
    done = play(FedAvg(), toy_federation((2, 2)), rounds=1)[0]
    expected = sum(u.weight * u.content["adapter"].layers["hidden"].B for u in done.updates)
    assert torch.allclose(done.state["adapter"].layers["hidden"].B, expected, rtol=0, atol=1e-15)


def test_uniform_weights() -> None:
    done = play(FedAvg(), toy_federation((2, 2)), rounds=1, weights="uniform")[0]
    assert [u.weight for u in done.updates] == [0.5, 0.5]
    with pytest.raises(ValueError, match="'examples' or 'uniform', got 'exampels'"):
        federate(FedAvg(), toy_federation(), rounds=1, weights="exampels")  # type: ignore[arg-type]


def test_the_ledger_counts_the_bytes_on_the_wire() -> None:
    run = play(FlexLoRA(), toy_federation(RANKS), rounds=2)
    for done in run:
        assert done.bytes.up == {u.sender.id: len(wire.encode(u.content)) for u in done.updates}
        expected = {p.id: len(wire.encode(FlexLoRA().broadcast(done.t, done.before, p))) for p in done.peers}
        assert done.bytes.down == expected


def test_partial_participation_counts_and_changes_the_cohort_only() -> None:
    run = play(Diary(), toy_federation((2,) * 6), rounds=4, cohort=sampling.uniform(0.5))
    for done in run:
        ids = [u.sender.id for u in done.updates]
        assert len(ids) == 3
        assert ids == sampling.uniform(0.5)(done.t, done.peers, 0)
        assert set(done.bytes.down) == set(done.bytes.up) == set(ids)
    seen = [sum(k in [u.sender.id for u in r.updates] for r in run) for k in range(6)]
    remembered = {k: s["visits"] for k, s in run[-1].client_states.items()}
    assert remembered == {k: n for k, n in enumerate(seen) if k % 2 == 0 and n}
    assert run[-1].snapshot.client_rounds.keys() == remembered.keys()
    assert all(t == max(r.t for r in run if k in r.bytes.up) for k, t in run[-1].snapshot.client_rounds.items())


def test_the_order_in_which_a_rule_names_the_cohort_changes_no_bit() -> None:
    one, other = (play(FedAvg(), toy_federation(), cohort=lambda t, peers, seed, ids=i: ids) for i in ([2, 0, 1], [0, 1, 2]))
    assert [list(r.bytes.up) for r in one] == [[0, 1, 2]] * 3
    assert [bits(r) for r in one] == [bits(r) for r in other]


@pytest.mark.parametrize("rule", [lambda t, peers, seed: [], lambda t, peers, seed: [0, 9], lambda t, peers, seed: [1, 1]])
def test_a_cohort_of_nobody_or_of_strangers_is_refused(rule: Any) -> None:
    with pytest.raises(ValueError, match="the cohort of round 0 is"):
        play(FedAvg(), toy_federation(), cohort=rule)


def test_the_template_is_the_largest_that_clients_hold() -> None:
    clients = toy_federation((1, 4, 2), lora_alpha=8)
    done = play(FlexLoRA(), clients, rounds=1)[0]
    assert {x.rank for x in done.template.layers.values()} == {4}
    assert torch.equal(done.template.layers["hidden"].A, toy_template(4).layers["hidden"].A)
    again = play(FlexLoRA(), toy_federation((1, 4, 2), lora_alpha=8), rounds=1, template=clients[1].template)[0]
    assert bits(done) == bits(again)


def test_a_run_can_start_from_a_trained_adapter() -> None:
    trained = random_adapter(2, seed=5, scale=0.5)
    clients = toy_federation((2, 2))
    for client in clients:
        client.template = template_for(client.peer, trained)
    done = play(FedAvg(), clients, rounds=1, template=trained)[0]
    assert tree.dense(done.before["adapter"].layers["output"]).equal(tree.dense(trained.layers["output"]))


def test_a_federation_that_cannot_run_is_refused_before_the_first_round() -> None:
    with pytest.raises(ValueError, match="at least one client"):
        federate(FedAvg(), [], rounds=1)
    with pytest.raises(ValueError, match="zeropad"):
        federate(FedAvg(), toy_federation((1, 2)), rounds=1)
    with pytest.raises(ValueError, match=r"ids must differ, got \[0\] more than once"):
        federate(FedAvg(), [*toy_federation((2,)), *toy_federation((2,))], rounds=1)


class Modest(LocalClient):
    """A client that can freeze factors, and nothing else that a method may ask for."""

    takes = frozenset({"trainable"})


def modest(federation: Sequence[LocalClient]) -> list[LocalClient]:
    return [Modest(c.peer, c.template, c.model, c.examples, c.collate, c.loss, c.training, c.seed) for c in federation]


@pytest.mark.parametrize(
    ("method", "what"),
    [
        ("fedprox", "FedProx .* hook on the gradients"),
        ("hetlora", "HetLoRA .* penalty on the loss"),
        ("fedlada", "FedLADA .* optimiser of its own"),
        ("flora", "FLoRA .* base that moves"),
    ],
)
def test_a_method_that_asks_for_what_a_client_cannot_do_is_refused_before_the_first_round(method: str, what: str) -> None:
    able, *others = toy_federation()
    with pytest.raises(ValueError, match=f"{what}.*client 1, a Modest, cannot do"):
        federate(get_method(method), [able, *modest(others)], rounds=1)


def test_so_it_is_on_a_graph() -> None:
    with pytest.raises(ValueError, match="HetLoRA asks clients for a penalty"):
        gossip(get_method("hetlora"), modest(toy_federation()), rounds=1, mixing=topology.complete(3))


def test_what_a_client_takes_may_be_asked_of_it() -> None:
    [done] = federate(get_method("ffa_lora"), modest(toy_federation()), rounds=1, engine="sequential")
    assert not done.dropped


def test_clients_without_examples_are_refused_by_id() -> None:
    clients = toy_federation((2, 2, 2), num_examples=[8, 0, 0])
    with pytest.raises(ValueError, match=r"clients \[1, 2\] have no training examples"):
        federate(FedAvg(), clients, rounds=1)


@pytest.mark.parametrize(("field", "value"), [("id", -1), ("rank", 0)])
def test_peers_that_cannot_be_are_refused(field: str, value: int) -> None:
    client = toy_federation((2,))[0]
    client.peer = replace(client.peer, **{field: value})
    with pytest.raises(ValueError, match="ids start at 0, ranks at 1"):
        federate(FlexLoRA(), [client], rounds=1)


def test_a_method_that_needs_validation_gets_scores() -> None:
    def score(adapter: Adapter, base: object) -> dict[str, float]:
        return {"loss": float(tree.parameters(adapter)["bias"].abs().sum())}

    with pytest.raises(ValueError, match="ByLoss weighs updates by their validation scores: give `score`"):
        federate(ByLoss(), toy_federation(), rounds=1)
    done = play(ByLoss(), toy_federation(), rounds=1, score=score)[0]
    biases = [u.content["adapter"].dense["bias"].abs().sum() for u in done.updates]
    assert [u.metrics["validation_loss"] for u in done.updates] == [float(b) for b in biases]
    assert float(done.state["adapter"].dense["bias"].abs().sum()) == pytest.approx(float(min(biases)))


def test_pooled_training_is_one_client() -> None:
    done = play(get_method("centralised"), toy_federation((2, 2, 2)), rounds=2)[-1]
    assert [u.sender.num_examples for u in done.updates] == [12 + 16 + 20]
    assert done.updates[0].metrics["num_steps"] == 12


def test_only_clients_that_pool_can_be_centralised() -> None:
    client = toy_federation((2,))[0]
    with pytest.raises(TypeError, match="a SimpleNamespace has no method `pool`"):
        federate(get_method("centralised"), [SimpleNamespace(peer=client.peer, template=client.template)], rounds=1)


def test_base_versions_follow_what_was_delivered() -> None:
    run = play(get_method("flora"), toy_federation((2, 2, 2, 2)), rounds=4, cohort=sampling.round_robin(2))
    held = [[p.base_version for p in done.peers] for done in run]
    assert held == [[0, 0, 0, 0], [0, 0, 1, 1], [2, 2, 1, 1], [2, 2, 3, 3]]


def test_a_round_deploys_its_models() -> None:
    done = play(get_method("flora"), toy_federation((1, 1)), rounds=3)[-1]
    whole = tree.effective(**done.global_model())
    for peer in done.peers:
        model = done.participant_model(peer)
        assert model["base"].since == 0
        mine = tree.effective(**model)
        assert tree.dense(mine.layers["hidden"]).equal(tree.dense(whole.layers["hidden"]))


def test_a_round_deploys_what_the_next_one_would_send() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Dated(FedAvg):
        def deploy(self, down: Message, client_state: ClientState, template: Adapter | None = None) -> Message:
            return down

        def broadcast(self, t: int, state: State, to: Any) -> Message:
            return {**super().broadcast(t, state, to), "t": t}

    done = play(Dated(), toy_federation(), rounds=2)[-1]
    assert done.global_model()["t"] == done.participant_model(done.peers[0])["t"] == 2


def test_personal_models_come_from_the_clients_memory() -> None:
    done = play(get_method("local_only"), toy_federation((1, 2)), rounds=2)[-1]
    for peer in done.peers:
        assert done.participant_model(peer)["adapter"] is done.client_states[peer.id]["adapter"]


def test_ids_need_not_begin_at_zero() -> None:
    clients = [with_peer(c, id=10 * c.peer.id + 7) for c in toy_federation((2, 2))]
    done = play(FedAvg(), clients, rounds=1)[0]
    assert [p.id for p in done.peers] == [7, 17]
    assert set(done.bytes.up) == {7, 17}


def test_leaving_the_loop_ends_the_run() -> None:
    engine = federate(FedAvg(), toy_federation(), rounds=100)
    next(iter(engine))
    engine.close()  # type: ignore[attr-defined]
    assert list(engine) == []


def test_a_round_copies_only_the_peers_that_hold_a_base() -> None:
    clients = [with_peer(toy_federation((2,))[0], id=k) for k in range(6)]
    peers = play(get_method("flora"), clients, 2, cohort=sampling.uniform(3))[-1].peers
    assert {p.base_version > 0 for p in peers} == {True, False}
    assert all((p is clients[p.id].peer) == (p.base_version == 0) for p in peers)


def test_peers_of_the_same_ranks_are_asked_once() -> None:
    peers = [Peer(k, 2 + k % 3, rank_pattern={"hidden": 4} if k % 2 else {}) for k in range(60)]
    distinct = with_distinct_ranks(peers)
    assert len(distinct) == 6
    for layer in ("hidden", "output"):
        assert {p.rank_of(layer) for p in distinct} == {p.rank_of(layer) for p in peers}


def test_the_learning_rate_decays_from_the_second_round_on():
    training = Training(local_steps=1, batch_size=4, learning_rate=0.5, learning_rate_decay=0.1)
    *_, last = federate(Rates(), toy_federation((2, 2), training=training), rounds=3, debug=True)
    assert [state["rates"] for state in last.client_states.values()] == [pytest.approx([0.5, 0.05, 0.005])] * 2
