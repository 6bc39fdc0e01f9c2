"""One table: every method against every law that it claims or cannot escape."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from fedelta import lowrank as lr
from fedelta import tree, wire
from fedelta.engines.local import federate
from fedelta.engines.rounds import Round
from fedelta.lowrank import LoRA
from fedelta.method import ClientUpdate, Method, Peer
from fedelta.methods import get_method, list_methods, method_class
from fedelta.models.toy import random_adapter, toy_federation, toy_template
from fedelta.tree import Adapter

ALL = list_methods()
SENDING = [n for n in ALL if not method_class(n).travels.startswith("nothing")]
"""Methods whose uploads make the next state; the others train only."""
UNEQUAL = [n for n in SENDING if method_class(n).hetero_rank]
FACTORS = [n for n in SENDING if method_class(n).coordinates == "factors"]
SHARED_A = [n for n in SENDING if "B" in get_method(n).upload(toy_template(2))]
"""Methods that get B of all on one A, in the first round at least."""


HYPER: dict[str, dict[str, Any]] = {"florist": {"tau": 1.0}}
"""Settings that keep the laws where a default gives something up on purpose: here, the last hundredth of the energy."""


def method_for(name: str) -> Method:
    return get_method(name, **HYPER.get(name, {}))


def score(adapter: Adapter, base: Any) -> dict[str, float]:
    return {"loss": float(adapter.dense["bias"].abs().sum())}


def ranks_for(name: str) -> tuple[int, ...]:
    return (2, 4, 3) if method_class(name).hetero_rank else (3, 3, 3)


def tensors(value: Any) -> dict[str, torch.Tensor]:
    return dict(tree.named_tensors(value))


def assert_same_bits(x: Any, y: Any) -> None:
    x, y = tensors(x), tensors(y)
    assert x.keys() == y.keys()
    assert all(torch.equal(v, y[k]) for k, v in x.items())


def play(name: str, rounds: int = 2, **federation: Any) -> list[Round]:
    ranks = federation.pop("ranks", ranks_for(name))
    return list(federate(method_for(name), toy_federation(ranks, **federation), rounds=rounds, score=score, debug=True))


def trained(name: str, **federation: Any) -> tuple[Method, Mapping[str, Any], Sequence[ClientUpdate]]:
    """A method, the state before its second round, and that round's updates."""
    done = play(name, lora_alpha=8.0, **federation)[-1]
    return done.method, done.before, done.updates


def delta(done: Round, peer: Peer) -> dict[str, torch.Tensor]:
    """What a peer runs after a round, densely."""
    model = done.method.deploy(
        done.method.broadcast(done.t + 1, done.state, replace(peer, base_version=0)), {}, own_template(peer)
    )
    return {n: x.dense() for n, x in tree.effective(model["adapter"], model.get("base")).layers.items()}


def own_template(peer: Peer) -> Adapter:
    def fit(n: str, x: LoRA) -> LoRA:
        return replace(x, scale=peer.scale_of(n, x.rank))

    return tree.map_named(fit, toy_template(peer.rank))


@pytest.mark.parametrize("name", ALL)
def test_two_runs_are_the_same_bits(name: str) -> None:
    assert_same_bits(play(name)[-1].state, play(name)[-1].state)


@pytest.mark.parametrize("name", ALL)
def test_training_lowers_the_loss(name: str) -> None:
    rounds = play(name, rounds=30, disagreement=0.0, num_examples=(40, 40, 40))
    assert rounds[-1].loss < 0.95 * rounds[0].loss


@pytest.mark.parametrize("name", SENDING)
def test_the_order_of_updates_does_not_matter(name: str) -> None:
    for done in play(name, lora_alpha=8.0):  # the whole state, as it would be written: entries and their order too
        forward, backward = (done.method.aggregate(done.t, done.before, u) for u in (done.updates, done.updates[::-1]))
        assert wire.encode(forward) == wire.encode(backward)


@pytest.mark.parametrize("name", SENDING)
def test_aggregation_changes_nothing_that_it_was_given(name: str) -> None:
    method, before, updates = trained(name)
    copy = tree.map_tensors(lambda x: x.clone(), dict(before)), [tree.map_tensors(torch.clone, u.content) for u in updates]
    method.aggregate(1, before, updates)
    assert_same_bits((dict(before), [u.content for u in updates]), copy)


@pytest.mark.parametrize("name", SENDING)
def test_one_client_gets_its_own_delta_back(name: str) -> None:
    for done in play(name, rounds=2, ranks=(3,), lora_alpha=6.0):
        for layer, x in tree.effective(*done.position(done.updates[0])).layers.items():
            torch.testing.assert_close(delta(done, done.peers[0])[layer], x.dense(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", SENDING)
def test_identical_updates_are_their_own_mean(name: str) -> None:
    method, before, updates = trained(name, ranks=(3, 3, 3))
    same = [replace(u, content=updates[0].content) for u in updates]
    once = method.aggregate(1, before, [replace(updates[0], weight=1.0)])
    thrice = method.aggregate(1, before, same)
    if name in FACTORS:
        assert_same_bits(once, thrice)
    for peer in (u.sender for u in updates):
        one, three = (
            tree.effective(m["adapter"], m.get("base"))
            for m in (
                method.deploy(method.broadcast(2, s, replace(peer, base_version=0)), {}, own_template(peer))
                for s in (once, thrice)
            )
        )
        for layer, x in one.layers.items():
            torch.testing.assert_close(three.layers[layer].dense(), x.dense(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", SENDING)
def test_weights_that_do_not_sum_to_one_are_refused(name: str) -> None:
    method, before, updates = trained(name)
    with pytest.raises(ValueError, match="weights must be non-negative with sum 1"):
        method.aggregate(1, before, [replace(u, weight=1.0) for u in updates])
    with pytest.raises(ValueError, match="no update arrived"):
        method.aggregate(1, before, [])


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", SENDING)
def test_nan_and_inf_are_refused_by_client_and_tensor(name: str, poison: float) -> None:
    method, before, updates = trained(name)

    def spoil(x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, poison)

    bad = replace(updates[1], content=tree.map_tensors(spoil, updates[1].content))
    with pytest.raises(ValueError, match=r"client 1: .* NaN or Inf of .* values; lower the learning rate"):
        method.aggregate(1, before, [updates[0], bad, updates[2]])


@pytest.mark.parametrize("name", [n for n in SENDING if "adapter" in get_method(n).upload(toy_template(2))])
def test_uploads_that_do_not_fit_are_refused(name: str) -> None:
    method, before, updates = trained(name)
    rank = updates[0].content["adapter"].layers["hidden"].rank
    good = random_adapter(rank, seed=5)
    wide = random_adapter(6, seed=5)
    cases = {
        r"client 0 and the server do not adapt the same layers": replace(good, layers={"hidden": good.layers["hidden"]}),
        r"layer 'hidden': client 0 has \(d_out, d_in\) = \(5, 6\)": tree.map(lambda x: LoRA(x.A.mT, x.B.mT), good),
        r"client 0 was trained on base other": replace(good, base="other"),
        r"client 0 sends rank 6, above the largest configured rank": wide,
        r"dense tensor 'bias': client 0 has shape \(9,\)": replace(good, dense={"bias": torch.zeros(9).double()}),
    }
    for message, adapter in cases.items():
        with pytest.raises(ValueError, match=message):
            method.aggregate(1, before, [replace(updates[0], content={"adapter": adapter}), *updates[1:]])
    with pytest.raises(KeyError, match="client 0 has no 'adapter'"):
        method.aggregate(1, before, [replace(updates[0], content={}), *updates[1:]])


@pytest.mark.parametrize("name", [n for n in ALL if not method_class(n).hetero_rank and n != "centralised"])
def test_unequal_ranks_are_refused_before_the_first_round(name: str) -> None:
    with pytest.raises(ValueError, match=r"(?s)needs equal ranks.*zeropad.*flexlora"):
        play(name, ranks=(2, 4))
    method, peers = get_method(name), [Peer(0, 4), Peer(1, 4)]
    updates = [ClientUpdate(p, 0.5, method.upload(random_adapter(r, seed=r))) for p, r in zip(peers, (4, 2), strict=True)]
    with pytest.raises(ValueError, match=r"layer 'hidden'.*zeropad or flexlora"):
        method.aggregate(0, method.init(toy_template(4), peers), updates)


@pytest.mark.parametrize("name", UNEQUAL)
def test_everyone_is_sent_its_own_rank_and_scale(name: str) -> None:
    done = play(name, lora_alpha=8.0, rslora=True)[-1]
    for peer in done.peers:
        down = done.method.broadcast(2, done.state, peer)
        for layer, x in done.method.deploy(down, {}, own_template(peer))["adapter"].layers.items():
            assert x.rank in (0, peer.rank), layer  # 0: all of it is in the base
            assert x.rank == 0 or x.scale == peer.scale_of(layer, peer.rank)


@pytest.mark.parametrize("name", ALL)
def test_no_component_is_dead(name: str) -> None:
    """A component with both factors zero has no gradient; clients must never be sent one."""
    clients = toy_federation(ranks_for(name))
    rounds = federate(method_for(name), clients, rounds=3, score=score, cohort=lambda t, peers, seed: [peers[0].id])
    for done in rounds:
        for peer in done.peers:
            message = done.method.broadcast(done.t + 1, done.state, peer)
            for adapter in (v for v in message.values() if isinstance(v, Adapter)):
                for x in adapter.layers.values():
                    assert bool((x.B.any(dim=0) | x.A.any(dim=1)).all())


@pytest.mark.parametrize("scales", [{}, {"lora_alpha": 8.0}, {"lora_alpha": 4.0, "rslora": True}], ids=str)
@pytest.mark.parametrize("name", [n for n in SENDING if n not in FACTORS or n in SHARED_A])
def test_the_scale_is_part_of_the_value(name: str, scales: dict[str, Any]) -> None:
    """Clients that send one and the same delta at different scales all get it back, whatever their own scale is."""
    method = method_for(name)
    ranks = [4, 4, 4] if name in SHARED_A else [2, 3, 4]  # their mean is exact at equal ranks only
    patterns = [{"alpha_pattern": {".*": 3.0 + k}} if scales else {} for k in range(3)]
    peers = [Peer(k, r, **scales, **p) for k, (r, p) in enumerate(zip(ranks, patterns, strict=True))]
    common = random_adapter(2, seed=3)
    template = replace(toy_template(4), dense=common.dense)

    def write(n: str, x: LoRA, peer: Peer) -> LoRA:
        rank = peer.rank_of(n)
        A = template.layers[n].A[:rank] if name in SHARED_A else None
        padded = lr.pad(x, rank) if A is None else LoRA(lr.pad(x, rank).B, A, x.scale)
        return lr.rescale(padded, peer.scale_of(n, rank), on="B")

    sent = [tree.map_named(lambda n, x, p=p: write(n, x, p), common) for p in peers]
    state = method.init(template, peers)
    state = method.aggregate(0, state, [ClientUpdate(p, 1 / 3, method.upload(a)) for p, a in zip(peers, sent, strict=True)])
    for peer, adapter in zip(peers, sent, strict=True):
        own = tree.map_named(lambda n, x, p=peer: LoRA(x.B[:, : p.rank], x.A[: p.rank], p.scale_of(n, p.rank)), template)
        model = method.deploy(method.broadcast(1, state, peer), {}, own)
        for layer, x in tree.effective(model["adapter"], model.get("base")).layers.items():
            torch.testing.assert_close(x.dense(), adapter.layers[layer].dense(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_states_and_messages_can_be_stored_and_sent(name: str) -> None:
    done = play(name)[-1]
    for value in (dict(done.state), *(u.content for u in done.updates), dict(done.client_states.get(0, {}))):
        assert_same_bits(tree.unflatten(*tree.flatten(value)), value)
