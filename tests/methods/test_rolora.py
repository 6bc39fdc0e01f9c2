"""RoLoRA: whose turn it is, what stays frozen, and that every half-round is exact."""

import pytest
import torch

from fedelta import tree
from fedelta.engines.server import federate
from fedelta.exchange.wire import size
from fedelta.lowrank import with_factor
from fedelta.merging import ClientUpdate
from fedelta.methods import get_method
from fedelta.methods._shared.one_factor import only
from fedelta.models.toy import random_adapter, toy_federation
from fedelta.peers import Peer


def test_B_goes_first_and_the_factors_take_turns() -> None:
    assert [get_method("rolora").factor(t) for t in range(4)] == ["B", "A", "B", "A"]
    assert [get_method("rolora", period=2).factor(t) for t in range(6)] == ["B", "B", "A", "A", "B", "B"]
    with pytest.raises(ValueError, match="period must be at least 1 round, got 0"):
        get_method("rolora", period=0)


def test_each_half_round_is_exact_and_freezes_the_other_factor_hetero_SH1() -> None:
    for done in federate(get_method("rolora"), toy_federation((3, 3, 3), lora_alpha=6.0), rounds=4):
        trained = done.method.factor(done.t)
        frozen = "A" if trained == "B" else "B"
        before, after = done.before["adapter"], done.state["adapter"]
        exact = tree.mean_deltas([u.weight for u in done.updates], [done.position(u)[0] for u in done.updates])
        for update in done.updates:
            assert set(update.content) == {trained, "dense"}
            for n, x in done.position(update)[0].layers.items():
                assert torch.equal(getattr(x, frozen), getattr(before.layers[n], frozen))
                assert not torch.equal(getattr(x, trained), getattr(before.layers[n], trained))
        for n, x in after.layers.items():
            assert torch.equal(getattr(x, frozen), getattr(before.layers[n], frozen))
            torch.testing.assert_close(x.dense(), exact.layers[n].dense(), rtol=1e-12, atol=1e-14)


def test_the_client_trains_the_very_factor_of_the_round_hetero_SH1() -> None:
    for done in federate(get_method("rolora"), toy_federation((2, 4), lora_alpha=8.0, rslora=True), rounds=2):
        frozen = "BA"[done.t == 0]
        for update in done.updates:
            sent = done.method.broadcast(done.t, done.before, update.sender)["adapter"]
            for n, x in done.position(update)[0].layers.items():
                assert torch.equal(getattr(x, frozen), getattr(sent.layers[n], frozen))
                assert x.scale == sent.layers[n].scale == pytest.approx(8.0 / x.rank**0.5)


def test_rows_of_A_are_averaged_over_their_owners() -> None:
    method, clients = get_method("rolora"), toy_federation((2, 4, 4))
    first, second = federate(method, clients, rounds=2)
    weights = [u.weight for u in second.updates]
    for n, x in second.state["adapter"].layers.items():
        rows = [u.content["A"][n] for u in second.updates]
        torch.testing.assert_close(x.A[:2], sum(w * A[:2] for w, A in zip(weights, rows, strict=True)))
        owners = sum(weights[1:])
        torch.testing.assert_close(x.A[2:], sum(w * A[2:] for w, A in zip(weights[1:], rows[1:], strict=True)) / owners)
    *_, alone = federate(method, clients, rounds=2, cohort=lambda t, peers, seed: [0, 1, 2] if t == 0 else [0])
    for n, x in alone.state["adapter"].layers.items():
        assert torch.equal(x.A[2:], first.state["adapter"].layers[n].A[2:])


def test_a_period_longer_than_the_run_is_ffa_lora() -> None:
    methods = get_method("rolora", period=3), get_method("ffa_lora")
    for a, b in zip(*(federate(m, toy_federation((2, 3)), rounds=3) for m in methods), strict=True):
        for n, x in a.state["adapter"].layers.items():
            assert torch.equal(x.B, b.state["adapter"].layers[n].B)
            assert torch.equal(x.A, b.state["adapter"].layers[n].A)


def test_half_the_factors_go_up_in_every_round() -> None:
    head = size({"A": {}, "dense": random_adapter(3, seed=0).dense})
    for done in federate(get_method("rolora"), toy_federation((3, 3)), rounds=2):
        which = done.method.factor(done.t)
        numbers = 8 * sum(x.numel() for x in tree.factors(done.state["adapter"], which).values())
        assert numbers < done.bytes.up[0] < numbers + head + 500


@pytest.mark.parametrize("t", [0, 1])
def test_unequal_scales_keep_the_mean_exact_hetero_SH1(t: int) -> None:
    method, start = get_method("rolora"), random_adapter(3, seed=0)
    peers = [Peer(k, 3, lora_alpha=3.0 * (k + 1)) for k in range(3)]
    state, which = method.init(start, peers), method.factor(t)
    updates = []
    for peer in peers:
        sent = method.broadcast(t, state, peer)["adapter"]
        assert all(torch.equal(x.A, state["adapter"].layers[n].A) for n, x in sent.layers.items())
        drawn = random_adapter(3, seed=10 + peer.id)
        trained = tree.map(lambda x, y: with_factor(x, which, getattr(y, which)), sent, drawn)
        updates.append(ClientUpdate(peer, 1 / 3, only(which, trained)))
    exact = tree.mean_deltas([1 / 3] * 3, [method.position(t, state, u)[0] for u in updates])
    after = method.aggregate(t, state, updates)["adapter"]
    for n, x in after.layers.items():
        torch.testing.assert_close(x.dense(), exact.layers[n].dense(), rtol=1e-12, atol=1e-13)
