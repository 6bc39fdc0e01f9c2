"""What methods do at the client: what they train, from where, with which penalty, and what they remember."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.engines.server import federate
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate
from fedelta.method import TrainResult
from fedelta.methods import get_method
from fedelta.models.toy import random_adapter, toy_federation, toy_template
from fedelta.peers import Peer
from fedelta.tree import Adapter


class Recorder:
    """A client that keeps what was asked of it and answers with a given adapter, or with what it was sent."""

    def __init__(self, peer: Peer, template: Adapter, answer: Adapter | None = None) -> None:
        self.peer, self.template, self.answer, self.num_steps = peer, template, answer, 1

    def train(self, t: int, start: Adapter, **request: object) -> TrainResult:
        self.start, self.request = start, request
        return TrainResult(self.answer or start, 1, 0.0)


def recorder(rank: int = 4, answer: Adapter | None = None) -> Recorder:
    return Recorder(Peer(0, rank), toy_template(rank), answer)


# --- HetLoRA ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "gamma", "r_min", "kept"),
    [
        (50, 0.99, 1, 49),
        (200, 0.99, 1, 198),
        (5, 0.99, 1, 4),
        (5, 0.99, 5, 5),
        (3, 0.99, 5, 3),
        (50, 0.58, 1, 29),
        (1, 0.5, 1, 1),
    ],
)
def test_pruning_step_hetero_H4(rank: int, gamma: float, r_min: int, kept: int) -> None:
    assert get_method("hetlora", gamma=gamma, r_min=r_min).kept(rank) == kept


@pytest.mark.parametrize(("factor", "rank"), [(0.99, 3), (1.0, 4), (1.01, 4)])
def test_pruning_is_strict_hetero_H4(factor: float, rank: int) -> None:
    start = random_adapter(4, seed=0)
    answer = tree.map(lambda x: LoRA(torch.cat([x.B[:, :3], factor * x.B[:, 3:]], 1), x.A, x.scale), start)
    method, client = get_method("hetlora"), recorder(answer=answer)
    up, memory = method.local_update(1, {"adapter": start}, {}, client)
    assert {x.rank for x in up["adapter"].layers.values()} == {rank}
    assert memory["ranks"] == {"hidden": rank, "output": rank}
    assert torch.equal(up["adapter"].layers["hidden"].A, start.layers["hidden"].A[:rank])


def test_nobody_prunes_in_the_first_round_hetero_H5() -> None:
    method, client = get_method("hetlora"), recorder(answer=random_adapter(4, seed=0))
    up, _ = method.local_update(0, {"adapter": client.template}, {}, client)
    assert {x.rank for x in up["adapter"].layers.values()} == {4}


def test_penalty_pulls_at_the_tails_only_hetero_H5() -> None:
    method, client = get_method("hetlora", gamma=0.5, lam=0.3), recorder()
    method.local_update(0, {"adapter": client.template}, {}, client)
    live = tree.map_tensors(lambda x: x.clone().requires_grad_(), random_adapter(4, seed=1))
    penalty = client.request["penalty"](live)
    penalty.backward()
    expected = sum((x.B[:, 2:].norm() * x.A[2:].norm()).item() for x in live.layers.values())
    assert penalty.item() == pytest.approx(0.3 * expected)
    for x in live.layers.values():
        assert not x.B.grad[:, :2].any()
        assert not x.A.grad[:2].any()
        assert x.B.grad[:, 2:].any()
        assert x.A.grad[2:].any()


def test_penalty_is_finite_at_zero_tails_hetero_H5() -> None:
    live = tree.map_tensors(lambda x: x.clone().requires_grad_(), toy_template(4))
    get_method("hetlora", gamma=0.5).tail(live).backward()
    for x in live.layers.values():
        assert bool(x.B.grad.isfinite().all() and x.A.grad.isfinite().all())


def test_a_pruned_client_goes_on_at_its_rank() -> None:
    method, peers = get_method("hetlora"), [Peer(0, 4), Peer(1, 4)]
    state = method.init(toy_template(4), peers)
    small, full = random_adapter({"hidden": 3, "output": 2}, seed=0), random_adapter(4, seed=1)
    updates = [ClientUpdate(p, 0.5, {"adapter": a}) for p, a in zip(peers, (small, full), strict=True)]
    state = method.aggregate(0, state, updates)
    down = [method.broadcast(1, state, p)["adapter"] for p in peers]
    assert {n: x.rank for n, x in down[0].layers.items()} == {"hidden": 3, "output": 2}
    assert {x.rank for x in down[1].layers.values()} == {4}
    client = recorder()
    method.local_update(1, {"adapter": full}, {"ranks": {"hidden": 3, "output": 2}}, client)
    assert {n: x.rank for n, x in client.start.layers.items()} == {"hidden": 3, "output": 2}


def test_hetlora_prunes_over_rounds_on_the_toy_model() -> None:
    clients = toy_federation((4, 4, 2), lora_alpha=4.0)
    method = get_method("hetlora", gamma=0.75, lam=3.0, r_min=1)
    ranks = [[u.content["adapter"].layers["hidden"].rank for u in done.updates] for done in federate(method, clients, rounds=6)]
    assert ranks[0] == [4, 4, 2]
    assert min(ranks[-1]) < 4
    assert all(a >= b for before, after in pairwise(ranks) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("hyper", [{"gamma": 1.0}, {"gamma": 0.0}, {"lam": -1.0}, {"r_min": 0}])
def test_hetlora_refuses_values_out_of_range(hyper: dict) -> None:
    with pytest.raises(ValueError, match="HetLoRA needs 0 < gamma < 1, lam >= 0 and r_min >= 1"):
        get_method("hetlora", **hyper)


# --- FFA-LoRA --------------------------------------------------------------------------------------------------------


def test_ffa_lora_trains_B_and_head_on_a_common_A_hetero_SH1() -> None:
    clients = toy_federation((4, 2, 3), lora_alpha=8.0)
    before = toy_template(4)
    for done in federate(get_method("ffa_lora"), clients, rounds=2):
        for update in done.updates:
            adapter, base = done.position(update)
            assert base is None
            assert set(update.content) == {"B", "dense"}
            for n, x in adapter.layers.items():
                assert torch.equal(x.A, before.layers[n].A[: x.rank])
                assert x.scale == pytest.approx(8.0 / x.rank)
    assert done.state["adapter"].dense["bias"].any()
    assert torch.equal(done.state["adapter"].layers["hidden"].A, before.layers["hidden"].A)


def test_ffa_lora_is_exact_at_equal_ranks_hetero_SH1() -> None:
    clients = toy_federation((3, 3, 3), lora_alpha=6.0)
    (done,) = federate(get_method("ffa_lora"), clients, rounds=1)
    exact = tree.mean_deltas([u.weight for u in done.updates], [done.position(u)[0] for u in done.updates])
    for n, x in done.state["adapter"].layers.items():
        torch.testing.assert_close(x.dense(), exact.layers[n].dense(), rtol=1e-12, atol=1e-14)


def test_ffa_lora_keeps_columns_that_nobody_has_trained() -> None:
    clients = toy_federation((2, 4), lora_alpha=8.0)
    method = get_method("ffa_lora")
    first, second = federate(method, clients, rounds=2, cohort=lambda t, peers, seed: [0, 1] if t == 0 else [0])
    for n, x in second.state["adapter"].layers.items():
        old = first.state["adapter"].layers[n]
        assert torch.equal(x.B[:, 2:], old.B[:, 2:])
        assert not torch.equal(x.B[:, :2], old.B[:, :2])


def test_ffa_lora_deploys_on_a_template_only() -> None:
    method, template = get_method("ffa_lora"), toy_template(3)
    down = method.broadcast(0, method.init(template, [Peer(0, 3)]), Peer(0, 3))
    with pytest.raises(ValueError, match="pass the participant's template"):
        method.deploy(down, {})
    assert torch.equal(method.deploy(down, {}, template)["adapter"].layers["hidden"].A, template.layers["hidden"].A)


def test_ffa_lora_refuses_uploads_that_do_not_fit() -> None:
    method, template, peer = get_method("ffa_lora"), toy_template(3), Peer(0, 3)
    state, good = method.init(template, [peer]), method.upload(random_adapter(3, seed=0))

    def send(**changes: object) -> None:
        method.aggregate(0, state, [ClientUpdate(peer, 1.0, {**good, **changes})])

    send()
    with pytest.raises(ValueError, match=r"client 0 and the server do not adapt the same layers.*lacks \['output'\]"):
        send(B={"hidden": good["B"]["hidden"]})
    with pytest.raises(ValueError, match="share the rank"):
        send(B={n: torch.cat([B, B], 1) for n, B in good["B"].items()})
    with pytest.raises(ValueError, match="client 0: hidden/B holds 18 NaN or Inf"):
        send(B={**good["B"], "hidden": good["B"]["hidden"] * float("inf")})
    with pytest.raises(ValueError, match="both must have the same head"):
        send(dense={"bias": torch.zeros(7).double()})


# --- FLoRA -----------------------------------------------------------------------------------------------------------


def flora_start(t: int = 0, k: int = 0, seed: int = 0) -> Adapter:
    method, client = get_method("flora"), Recorder(Peer(k, 3), toy_template(3))
    down = method.broadcast(t, method.init(toy_template(4), [Peer(k, 4)], seed=seed), client.peer)
    method.local_update(t, down, {}, client)
    return client.start


def test_flora_starts_from_fresh_factors_of_seed_round_and_client() -> None:
    start = flora_start()
    for n, x in start.layers.items():
        assert not x.B.any()
        assert float(x.A.abs().max()) <= 1 / x.shape[1] ** 0.5
        assert torch.equal(x.A, flora_start().layers[n].A)
        for other in (flora_start(t=1), flora_start(k=1), flora_start(seed=1)):
            assert not torch.equal(x.A, other.layers[n].A)


def test_flora_keeps_the_model_through_merge_and_new_start_hetero_F5() -> None:
    clients = toy_federation((3, 2, 4), lora_alpha=8.0)
    method = get_method("flora")
    (done,) = federate(method, clients, rounds=1, cohort=lambda t, peers, seed: [0, 1])
    exact = tree.mean_deltas([u.weight for u in done.updates], [u.content["adapter"] for u in done.updates])
    for peer in done.peers:
        model = method.deploy(method.broadcast(1, done.state, replace(peer, base_version=0)), {})
        for n, x in tree.effective(model["adapter"], model["base"]).layers.items():
            torch.testing.assert_close(x.dense(), exact.layers[n].dense(), rtol=1e-12, atol=1e-14)


def test_flora_brings_the_head_along() -> None:
    first, second = federate(get_method("flora"), toy_federation((2, 2)), rounds=2)
    expected = tree.mean([u.weight for u in first.updates], [u.content["adapter"].dense for u in first.updates])
    assert torch.equal(first.state["adapter"].dense["bias"], expected["bias"])
    client = Recorder(Peer(0, 2), toy_template(2))
    first.method.local_update(1, first.method.broadcast(1, first.state, client.peer), {}, client)
    assert torch.equal(client.start.dense["bias"], expected["bias"])
    assert second.state["base"].version == 2


@pytest.mark.parametrize("name", ["flora", "fedex_lora"])
def test_a_trained_start_is_kept_for_every_rank(name: str) -> None:
    method, peers, start = get_method(name), [Peer(0, 2), Peer(1, 4)], random_adapter(4, seed=0)
    state = method.init(start, peers)
    assert state["base"].version == 1
    for peer in peers:
        model = method.deploy(method.broadcast(0, state, peer), {})
        for n, x in tree.effective(model["adapter"], model["base"]).layers.items():
            torch.testing.assert_close(x.dense(), start.layers[n].dense(), rtol=1e-12, atol=1e-12)


# --- FedEx-LoRA ------------------------------------------------------------------------------------------------------


def test_fedex_lora_is_the_exact_mean_at_every_rank_over_rounds_hetero_FX1_FX3() -> None:
    method = get_method("fedex_lora")
    for done in federate(method, toy_federation((2, 4, 3), lora_alpha=8.0), rounds=3):
        models = [tree.effective(*done.position(u)) for u in done.updates]
        exact = tree.mean_deltas([u.weight for u in done.updates], models)
        for peer in done.peers:
            model = method.deploy(method.broadcast(done.t + 1, done.state, replace(peer, base_version=0)), {})
            for n, x in tree.effective(model["adapter"], model["base"]).layers.items():
                torch.testing.assert_close(x.dense(), exact.layers[n].dense(), rtol=1e-10, atol=1e-12)


def test_fedex_lora_goes_on_from_the_means_of_the_factors() -> None:
    (done,) = federate(get_method("fedex_lora"), toy_federation((3, 3)), rounds=1)
    means = tree.mean_factors([u.weight for u in done.updates], [u.content["adapter"] for u in done.updates])
    for n, x in done.state["adapter"].layers.items():
        assert torch.equal(x.B, means.layers[n].B)
        assert torch.equal(x.A, means.layers[n].A)


def test_fedex_lora_can_cut_the_residual() -> None:
    peers, adapters = [Peer(0, 2), Peer(1, 2)], [random_adapter(2, seed=k) for k in range(2)]
    updates = [ClientUpdate(p, 0.5, {"adapter": a}) for p, a in zip(peers, adapters, strict=True)]
    method = get_method("fedex_lora", residual_rank=1)
    state = method.aggregate(0, method.init(toy_template(2), peers), updates)
    for n, x in tree.mean_deltas([0.5, 0.5], adapters).layers.items():
        missing = lr.stack([1.0, -1.0], [x, state["adapter"].layers[n]])
        expected = lr.truncate(missing, 1).dense()
        torch.testing.assert_close(tree.dense(tree.total(state["base"])[n]), expected, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="residual_rank must be at least 1, or None for all of it, got 0"):
        get_method("fedex_lora", residual_rank=0)


# --- zero padding ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zeropad", "hetlora"])
def test_components_that_nobody_sent_stay_alive(name: str) -> None:
    method, peers = get_method(name), [Peer(0, 2), Peer(1, 4)]
    template = toy_template(4)
    state = method.aggregate(
        0, method.init(template, peers), [ClientUpdate(peers[0], 1.0, {"adapter": random_adapter(2, seed=0)})]
    )
    for n, x in state["adapter"].layers.items():
        assert not x.B[:, 2:].any()
        assert torch.equal(x.A[2:], template.layers[n].A[2:])


def test_zeropad_reproduces_dead_components_when_asked() -> None:
    method, peers = get_method("zeropad", faithful=True), [Peer(0, 2), Peer(1, 4)]
    update = ClientUpdate(peers[0], 1.0, {"adapter": random_adapter(2, seed=0)})
    x = method.aggregate(0, method.init(toy_template(4), peers), [update])["adapter"].layers["hidden"]
    assert not x.B[:, 2:].any()
    assert not x.A[2:].any()


# --- baselines -------------------------------------------------------------------------------------------------------


def test_local_only_goes_on_from_its_own_adapter_and_sends_nothing() -> None:
    method, client = get_method("local_only"), recorder(answer=random_adapter(4, seed=0))
    state = method.init(client.template, [client.peer])
    assert method.broadcast(0, state, client.peer) == {}
    up, memory = method.local_update(0, {}, {}, client)
    assert up == {}
    assert client.start is client.template
    method.local_update(1, {}, memory, client)
    assert client.start is client.answer
    assert method.deploy({}, memory)["adapter"] is client.answer
    assert method.deploy({}, {}, client.template)["adapter"] is client.template
    assert method.aggregate(0, state, [ClientUpdate(client.peer, 1.0, up)]) is state
    with pytest.raises(ValueError, match="needs its template"):
        method.deploy({}, {})


def test_centralised_trains_one_client_on_all_data() -> None:
    clients = toy_federation((2, 4, 3))
    method = get_method("centralised")
    (pooled,) = method.population(clients)
    assert pooled.peer.num_examples == sum(c.peer.num_examples for c in clients)
    first, second = federate(method, clients, rounds=2)
    assert [u.sender.id for u in first.updates] == [0]
    assert second.loss < first.loss
    assert torch.equal(first.state["adapter"].layers["hidden"].A, first.updates[0].content["adapter"].layers["hidden"].A)


def test_centralised_refuses_several_peers() -> None:
    method, template = get_method("centralised"), toy_template(2)
    with pytest.raises(ValueError, match=r"got 2 peers; give the engine what method.population"):
        method.check(template, [Peer(0, 2), Peer(1, 2)])
    adapters = [random_adapter(2, seed=k) for k in range(2)]
    updates = [ClientUpdate(Peer(k, 2), 0.5, {"adapter": a}) for k, a in enumerate(adapters)]
    with pytest.raises(ValueError, match="one client, got updates of 2"):
        method.aggregate(0, method.init(template, [Peer(0, 2)]), updates)
