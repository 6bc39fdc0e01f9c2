"""Replication-based padding; test names end in the id of the acceptance test in the method's specification."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from fedelta import tree
from fedelta.engines.rounds import Round
from fedelta.engines.server import federate
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate
from fedelta.method import Method
from fedelta.methods import get_method
from fedelta.methods.replication import Replication
from fedelta.models.toy import random_adapter, toy_federation, toy_template
from fedelta.peers import Peer
from fedelta.tree import Adapter


def matrix(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


HIGH = LoRA(torch.zeros(1, 4).double(), matrix([1, 2], [3, 4], [5, 6], [7, 8]))
LOW = LoRA(torch.zeros(1, 2).double(), matrix([3, 4], [5, 6]))


def mean(method: Method, *adapters: Adapter, weights: Sequence[float], promoted: list[int]) -> Adapter:
    """The server's adapter after a round whose clients were promoted, or not, before it."""
    peers = [Peer(k, max(x.rank for x in a.layers.values())) for k, a in enumerate(adapters)]
    state = {**method.init(max(adapters, key=lambda a: a.layers["w" if "w" in a.layers else "hidden"].rank), peers)}
    updates = [ClientUpdate(p, w, {"adapter": a}) for p, w, a in zip(peers, weights, adapters, strict=True)]
    return method.aggregate(1, {**state, "promoted": promoted}, updates)["adapter"]


def play(method: Method, clients: Sequence[Any], best: Sequence[int], rounds: int = 2, **options: Any) -> list[Round]:
    """A run on whose validation split the clients of `best` do better, in this order, than the others."""
    order = iter(range(10**6))  # uploads are scored in the order of ids

    def score(adapter: Adapter, base: Any) -> dict[str, float]:
        k = next(order) % len(clients)
        return {"loss": float(best.index(k)) if k in best else 100.0}

    return list(federate(method, clients, rounds=rounds, score=score, debug=True, **options))


def ranks_sent(done: Round) -> list[int]:
    return [u.content["adapter"].layers["hidden"].rank for u in done.updates]


def test_equal_ranks_are_fedavg_hetero_RP1(fake_round: Callable) -> None:
    done = fake_round((4, 4, 4))
    mine, theirs = (done.run(get_method(n))["adapter"] for n in ("replication", "fedavg"))
    for n, x in theirs.layers.items():
        torch.testing.assert_close(mine.layers[n].B, x.B, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(mine.layers[n].A, x.A, rtol=1e-14, atol=1e-14)


def test_others_are_padded_with_what_the_high_rank_learned_hetero_RP2() -> None:
    both = [Adapter({"w": x}) for x in (HIGH, LOW)]
    replicated = mean(Replication(low_rank=2), *both, weights=[0.5, 0.5], promoted=[0])
    torch.testing.assert_close(replicated.layers["w"].A, matrix([2, 3], [4, 5], [5, 6], [7, 8]))
    state = get_method("zeropad").init(both[0], [Peer(0, 4), Peer(1, 2)])
    updates = [ClientUpdate(Peer(k, r), 0.5, {"adapter": a}) for k, (r, a) in enumerate(zip((4, 2), both, strict=True))]
    padded = get_method("zeropad").aggregate(0, state, updates)["adapter"].layers["w"].A
    torch.testing.assert_close(padded, matrix([2, 3], [4, 5], [2.5, 3], [3.5, 4]))


@pytest.mark.parametrize("q", ["sample", "uniform"])
def test_components_of_one_client_come_back_to_the_bit_hetero_RP3(q: str) -> None:
    adapters = [random_adapter(r, seed=k) for k, r in enumerate((2, 5, 2, 2))]
    found = mean(Replication(low_rank=2, q=q), *adapters, weights=[0.1, 0.3, 0.2, 0.4], promoted=[1])
    for n, x in adapters[1].layers.items():
        assert torch.equal(found.layers[n].B[:, 2:], x.B[:, 2:])
        assert torch.equal(found.layers[n].A[2:], x.A[2:])


def test_weighted_by_examples_it_is_rbla_hetero_RP4(fake_round: Callable) -> None:
    done = fake_round((2, 4, 5, 5), scales="alpha/sqrt(r)")
    mine = mean(Replication(low_rank=2), *done.adapters, weights=done.weights, promoted=[1, 2, 3])
    peers = [Peer(k, max(x.rank for x in a.layers.values())) for k, a in enumerate(done.adapters)]
    updates = [ClientUpdate(p, w, {"adapter": a}) for p, w, a in zip(peers, done.weights, done.adapters, strict=True)]
    theirs = get_method("rbla").aggregate(0, get_method("rbla").init(done.adapters[2], peers), updates)["adapter"]
    assert all(torch.equal(v, tree.parameters(theirs)[k]) for k, v in tree.parameters(mine).items())


def test_weights_among_high_ranks_can_be_uniform() -> None:
    adapters = [random_adapter(r, seed=k) for k, r in enumerate((2, 4, 4))]
    found = mean(Replication(low_rank=2, q="uniform"), *adapters, weights=[0.5, 0.1, 0.4], promoted=[1, 2])
    xs = [a.layers["hidden"] for a in adapters]
    torch.testing.assert_close(found.layers["hidden"].A[2:], (xs[1].A[2:] + xs[2].A[2:]) / 2)
    torch.testing.assert_close(found.layers["hidden"].A[:2], 0.5 * xs[0].A + 0.1 * xs[1].A[:2] + 0.4 * xs[2].A[:2])


@pytest.mark.parametrize("scales", [{}, {"lora_alpha": 16.0}, {"lora_alpha": 4.0, "rslora": True}], ids=str)
def test_promotion_changes_no_function_hetero_RP5(scales: dict[str, Any]) -> None:
    method = Replication(low_rank=2, fraction=0.5)
    (first,) = play(method, toy_federation((5, 5), **scales), best=[1], rounds=1)
    assert first.state["promoted"] == [1]
    low, high = (method.broadcast(1, first.state, p)["adapter"] for p in first.peers)
    for n, x in high.layers.items():
        assert (low.layers[n].rank, x.rank) == (2, 5)
        assert x.scale == first.peers[1].scale_of(n, 5)
        torch.testing.assert_close(x.dense(), low.layers[n].dense(), rtol=1e-12, atol=1e-14)
        assert not x.B[:, 2:].any()
        assert bool(x.A[2:].any(dim=1).all())


@pytest.mark.parametrize(
    ("losses", "promoted"),
    [
        ([3, 1, 2, 5, 4, 9, 9, 9, 9, 9, 9], [1, 2]),  # a tenth of 11, rounded up
        ([1] * 11, [0, 1]),
        ([math.nan, math.inf, 7, 6, *[8] * 7], [2, 3]),
    ],
)
def test_the_best_tenth_is_promoted_hetero_RP6(losses: list[float], promoted: list[int]) -> None:
    method, peers = Replication(low_rank=1), [Peer(k, 2) for k in range(11)]
    updates = [
        ClientUpdate(p, 1 / 11, {"adapter": random_adapter(1, seed=p.id)}, {"validation_loss": x, "loss": -x})
        for p, x in zip(peers, losses, strict=True)
    ]
    state = method.init(toy_template(2), peers)
    assert method.aggregate(0, state, updates[::-1])["promoted"] == promoted


def test_promotion_happens_once_hetero_RP6() -> None:
    method = Replication(low_rank=2, fraction=0.3)
    rounds = play(method, toy_federation((4, 4, 3)), best=[2], rounds=1)
    assert [ranks_sent(r) for r in rounds] == [[2, 2, 2]]
    again = method.aggregate(1, rounds[0].state, [replace(u, metrics={}) for u in rounds[0].updates])
    assert again["promoted"] == rounds[0].state["promoted"] == [2]
    assert [ranks_sent(r) for r in play(method, toy_federation((4, 4, 3)), best=[2], rounds=3)][1:] == [[2, 2, 3]] * 2


def test_the_first_cohort_is_scored_whoever_is_in_it() -> None:
    def cohort(t: int, peers: Sequence[Any], seed: int) -> list[int]:
        return [1, 2] if t == 0 else [0, 1, 2]

    method = Replication(low_rank=2, fraction=0.5)
    first, second = federate(
        method, toy_federation((4, 4, 4)), rounds=2, cohort=cohort, score=lambda a, b: {"loss": 1.0}, debug=True
    )
    assert first.state["promoted"] == [1]
    assert ranks_sent(second) == [2, 4, 2]


def test_only_clients_with_room_are_promoted() -> None:
    (done,) = play(Replication(low_rank=2, fraction=0.1), toy_federation((2, 1, 4, 4)), best=[0, 1, 3, 2], rounds=1)
    assert done.state["promoted"] == [3]
    assert ranks_sent(done) == [2, 1, 2, 2]


def test_components_of_absent_high_ranks_keep_their_last_value() -> None:
    method = Replication(low_rank=2, fraction=0.3)
    first, second, third = play(
        method, toy_federation((4, 4, 4)), best=[0], rounds=3, cohort=lambda t, p, s: [0, 1, 2] if t < 2 else [1, 2]
    )
    assert first.state["promoted"] == third.state["promoted"] == [0]
    for n, x in third.state["adapter"].layers.items():
        old = second.state["adapter"].layers[n]
        assert bool(old.B[:, 2:].any(dim=0).all())
        assert torch.equal(x.B[:, 2:], old.B[:, 2:])
        assert torch.equal(x.A[2:], old.A[2:])
        assert not torch.equal(x.B[:, :2], old.B[:, :2])


def test_the_server_keeps_all_components_and_clients_get_their_own() -> None:
    done = play(Replication(low_rank=2, fraction=0.3), toy_federation((4, 4, 3)), best=[0])[-1]
    assert {x.rank for x in done.global_model()["adapter"].layers.values()} == {4}
    assert [done.participant_model(p)["adapter"].layers["hidden"].rank for p in done.peers] == [4, 2, 2]


def test_an_upload_without_a_score_is_refused_by_name() -> None:
    method, peers = Replication(low_rank=1), [Peer(0, 2)]
    update = ClientUpdate(peers[0], 1.0, {"adapter": random_adapter(1, seed=0)}, {"loss": 1.0})
    with pytest.raises(ValueError, match=r"client 0 has no 'validation_loss' among its metrics \['loss'\].* give the engine"):
        method.aggregate(0, method.init(toy_template(2), peers), [update])
    with pytest.raises(ValueError, match="give `score`"):
        federate(method, toy_federation((2, 2)), rounds=1)


def test_a_federation_without_room_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fedelta.methods"):
        play(Replication(low_rank=2), toy_federation((4, 2)), best=[0], rounds=1)
        assert not caplog.records
        play(Replication(low_rank=4), toy_federation((4, 2)), best=[0], rounds=1)
    assert "promotes nobody: no client can hold more than low_rank = 4 components" in caplog.text


@pytest.mark.parametrize("hyper", [{"low_rank": 0}, {"fraction": 0.0}, {"fraction": 1.5}])
def test_values_out_of_range_are_refused(hyper: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs low_rank >= 1 and 0 < fraction <= 1"):
        get_method("replication", **hyper)
