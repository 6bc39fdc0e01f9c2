"""ILoRA: its numbers by hand under both rules, what its start keeps, how variates add up by ranks, and what is refused."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.client import Training
from fedelta.engines.rounds import QuorumError
from fedelta.engines.server import federate
from fedelta.exchange import wire
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate
from fedelta.method import TrainResult
from fedelta.methods import Compose, FedAvg, FedProx, ILoRA, Scaffold, get_method
from fedelta.methods._shared.qr import leading_qr, leading_qr_of
from fedelta.models.toy import random_adapter, toy_federation
from fedelta.optim import SGD
from fedelta.peers import Peer, template_for
from fedelta.tree import Adapter, BaseDelta

EXACT = {"rtol": 0, "atol": 1e-12}
RULES = [ILoRA(), ILoRA(fixed_start=False), ILoRA(fixed_start=False, factor="qr")]


def tensor(rows: Any) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


THETA = tensor([[3, 1], [4, 2]])
LOSES_ALL = tensor([[1, 1, 0], [0, 0, 0], [0, 0, 1]])


def drawn(o: int, i: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(o, i, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(eq=False)
class Scripted:
    """A client with one layer, which adds what it is told to its factors; and keeps what it trained in."""

    peer: Peer
    template: Adapter
    weight: torch.Tensor
    steps: Any = None
    num_steps: int = 1
    seen: list[Any] = field(default_factory=list)

    def train(self, t: int, start: Adapter, *, base: Any = None, **request: Any) -> TrainResult:
        self.seen.append((start, base))
        x = start.layers["w"]
        dB, dA = self.steps(t) if self.steps else (0.0, 0.0)
        return TrainResult(replace(start, layers={"w": LoRA(x.B + dB, x.A + dA, x.scale)}), 1, 0.0)

    def base_weight(self, layer: str) -> torch.Tensor:
        return self.weight

    def begun(self, t: int) -> torch.Tensor:
        """The whole weight that it began round t with."""
        start, base = self.seen[t]
        return self.weight + tree.effective(start, base).layers["w"].dense()


def clients(weight: torch.Tensor = THETA, ranks: Any = (1, 2), steps: Any = None, **peer: Any) -> list[Scripted]:
    o, i = weight.shape
    template = Adapter({"w": LoRA(torch.zeros(o, max(ranks)).double(), drawn(max(ranks), i, 7))})
    peers = [Peer(k, rank, **peer) for k, rank in enumerate(ranks)]
    told = steps or [None] * len(ranks)
    return [Scripted(p, template_for(p, template), weight, step) for p, step in zip(peers, told, strict=True)]


def weights_of(done: Any, weight: torch.Tensor) -> list[torch.Tensor]:
    """The whole weight that each peer runs after a round."""
    models = [done.participant_model(peer) for peer in done.peers]
    return [weight + tree.effective(m["adapter"], m.get("base")).layers["w"].dense() for m in models]


def play(method: Any, people: Any, rounds: int = 1, **options: Any) -> list[Any]:
    return list(federate(method, people, rounds=rounds, debug=True, **options))


# --- the factorisation ---------------------------------------------------------------------------------------------------


def test_the_slices_are_those_by_hand_and_leading_ones_of_each_other() -> None:
    whole = leading_qr(THETA, 2)
    torch.testing.assert_close(whole.B, tensor([[0.6, -0.8], [0.8, 0.6]]), **EXACT)
    torch.testing.assert_close(whole.A, tensor([[5, 2.2], [0, 0.4]]), **EXACT)
    W = drawn(9, 11)
    for rank in range(1, 9):
        wide, narrow = lr.components(leading_qr(W, 9), 0, rank), leading_qr(W, rank)
        torch.testing.assert_close(narrow.B, wide.B, **EXACT)
        torch.testing.assert_close(narrow.A, wide.A, **EXACT)


@pytest.mark.parametrize("shape", [(4, 4), (4, 7), (7, 4)])
def test_all_slices_together_are_exact_hetero_IL2(shape: tuple[int, int]) -> None:
    W = drawn(*shape)
    torch.testing.assert_close(leading_qr(W, 4).dense(), W, **EXACT)
    x = LoRA(drawn(shape[0], 9), drawn(9, shape[1], 1), 0.5)
    torch.testing.assert_close(leading_qr_of(x, 4).dense(), x.dense(), **EXACT)
    torch.testing.assert_close(leading_qr_of(x, 2).dense(), leading_qr(x.dense(), 2).dense(), **EXACT)


def test_slices_may_lose_what_a_singular_value_keeps_hetero_IL3() -> None:
    assert int(torch.linalg.matrix_rank(LOSES_ALL)) == 2
    assert float((leading_qr(LOSES_ALL, 2).dense() - LOSES_ALL).norm()) == pytest.approx(1)
    best = lr.from_dense(LOSES_ALL, rank=2)
    assert float((best.dense() - LOSES_ALL).norm()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_singular_values_lose_no_more_than_slices_drift_IL6(rank: int) -> None:
    x = LoRA(drawn(12, 6), drawn(6, 10, 1))
    by_slices, best = (y.dense() - x.dense() for y in (leading_qr_of(x, rank), lr.truncate(x, rank)))
    assert float(best.norm()) < float(by_slices.norm())


# --- the start -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", RULES, ids=str)
def test_the_start_keeps_the_function_hetero_IL1(method: ILoRA) -> None:
    weight = drawn(6, 5)
    people = clients(weight, (1, 3, 2), lora_alpha=8.0)
    play(method, people)
    for client in people:
        torch.testing.assert_close(client.begun(0), weight, **EXACT)
        start = client.seen[0][0].layers["w"]
        assert (start.rank, start.scale) == (client.peer.rank, 8.0 / client.peer.rank)
        torch.testing.assert_close(start.B, leading_qr(weight, start.rank).B, **EXACT)


@pytest.mark.parametrize("ranks", [(2, 2), (1, 2, 4)])
def test_a_round_in_which_nobody_trains_moves_nobody_hetero_IL4(ranks: Any) -> None:
    weight = drawn(6, 5)
    people = clients(weight, ranks, lora_alpha=8.0)
    for done in play(ILoRA(), people, rounds=3):
        for found in weights_of(done, weight):
            torch.testing.assert_close(found, weight, **EXACT)
    base = done.state["base"]
    assert all(not tree.dense(x).any() for x in tree.total(base).values())  # zero, not only small
    for client in people:
        torch.testing.assert_close(client.begun(2), weight, **EXACT)


def test_the_numbers_by_hand_when_nobody_trains_drift_IL8() -> None:
    for found in weights_of(play(ILoRA(), clients(), weights="uniform")[0], THETA):
        torch.testing.assert_close(found, THETA, **EXACT)
    expected = {"svd": [[2.940312, 0.975473], [4.043405, 2.021485]], "qr": [[3, 1], [4, 2]]}
    for factor, narrow in expected.items():
        done = play(get_method("ilora", fixed_start=False, factor=factor), clients(), weights="uniform")[0]
        small, large = weights_of(done, THETA)
        torch.testing.assert_close(small, tensor(narrow), rtol=0, atol=6e-7)
        torch.testing.assert_close(large, tensor([[3, 1.16], [4, 1.88]]), **EXACT)


def test_the_numbers_by_hand_when_both_train_drift_IL8() -> None:
    more = (tensor([[0.1], [0]]), 0.0), (0.0, tensor([[0, 0], [0.5, 0]]))
    done = play(ILoRA(), clients(steps=[lambda t: more[0], lambda t: more[1]]), weights="uniform")[0]
    moved = [done.position(u) for u in done.updates]
    expected = tensor([[0.5, 0.22], [0, 0]]), tensor([[-0.4, 0], [0.3, 0]])
    for (adapter, base), displacement in zip(moved, expected, strict=True):
        torch.testing.assert_close(tree.effective(adapter, base).layers["w"].dense(), displacement, **EXACT)
    for found in weights_of(done, THETA):
        torch.testing.assert_close(found, tensor([[3.05, 1.11], [4.15, 2]]), **EXACT)


def test_rounds_begin_from_the_same_slices_and_add_up_drift_IL9() -> None:
    weight, step = drawn(6, 5), (0.1, -0.2)
    people = clients(weight, (1, 3, 2), [lambda t: step] * 3, lora_alpha=4.0)
    rounds = play(ILoRA(), people, rounds=3)
    first, *later = [weights_of(done, weight)[0] - weight for done in rounds]
    for t, total in enumerate(later, start=2):
        torch.testing.assert_close(total, t * first, **EXACT)
    for client in people:
        starts = [start.layers["w"] for start, _ in client.seen]
        for x in starts[1:]:
            torch.testing.assert_close(x.B, starts[0].B, **EXACT)
            torch.testing.assert_close(x.A, starts[0].A, **EXACT)
        torch.testing.assert_close(client.begun(2), weight + 2 * first, **EXACT)


def test_one_client_moves_the_weight_by_its_own_displacement_drift_IL12() -> None:
    weight = drawn(6, 5)
    people = clients(weight, (2,), [lambda t: (0.3 + t, 0.1)], lora_alpha=4.0)
    before = weight
    for t, done in enumerate(play(ILoRA(), people, rounds=2)):
        start, trained = people[0].seen[t][0].layers["w"], done.updates[0].content["adapter"].layers["w"]
        torch.testing.assert_close(weights_of(done, weight)[0], before + trained.dense() - start.dense(), **EXACT)
        before = weights_of(done, weight)[0]


def test_a_wider_client_that_comes_later_brings_its_own_start() -> None:
    weight = drawn(6, 5)
    people = clients(weight, (1, 3), [lambda t: (0.1, 0.1)] * 2)
    rounds = play(ILoRA(), people, rounds=3, cohort=lambda t, peers, seed: [0] if t == 0 else [0, 1])
    assert [sorted(u.content) for u in rounds[1].updates] == [["adapter"], ["adapter", "first"]]
    assert [sorted(u.content) for u in rounds[2].updates] == [["adapter"], ["adapter"]]
    for done in rounds:
        small, large = weights_of(done, weight)
        torch.testing.assert_close(small, large, **EXACT)
    torch.testing.assert_close(people[1].begun(0), weights_of(rounds[0], weight)[0], **EXACT)
    torch.testing.assert_close(people[0].begun(1), weights_of(rounds[0], weight)[0], **EXACT)


@pytest.mark.parametrize("method", [*RULES, ILoRA(control=True)], ids=str)
def test_clients_of_all_ranks_train_on_one_model_in_the_weight_of_their_round(method: ILoRA, monkeypatch: Any) -> None:
    """What the shared model shows at each load, start and all, is what that peer was to run after the round before."""
    gently = Training(local_steps=4, batch_size=8, learning_rate=5e-4, optimizer=SGD())  # a step grows with s^2, here 64
    people = toy_federation((3, 1, 2, 3), lora_alpha=8.0, training=gently)  # who ends a round, and who begins one, are alike
    model, shown = people[0].model, list[Any]()

    def load(adapter: Adapter, base: Any = None, load: Any = model.load) -> None:
        load(adapter, base)
        shown.append(tree.effective(adapter, BaseDelta(1, {n: [x] for n, x in model.module.base.items()})))

    monkeypatch.setattr(model, "load", load)
    rounds = play(method, people, rounds=4)
    for done, begun in zip(rounds, (shown[k : k + 4] for k in range(4, 16, 4)), strict=False):
        for peer, found in zip(done.peers, begun, strict=True):
            expected = tree.effective(*(done.participant_model(peer).get(k) for k in ("adapter", "base")))
            for n, x in expected.layers.items():
                torch.testing.assert_close(found.layers[n].dense(), x.dense(), rtol=0, atol=1e-10)


# --- the sum -------------------------------------------------------------------------------------------------------------


def aggregated(method: Any, adapters: list[Adapter]) -> dict[str, torch.Tensor]:
    """The dW of an aggregation without training, by a peer of the largest rank."""
    peers = [Peer(k, next(iter(a.layers.values())).rank) for k, a in enumerate(adapters)]
    widest = max(peers, key=lambda peer: peer.rank)
    template = replace(random_adapter(widest.rank, seed=9), dense=adapters[0].dense)
    template = tree.map(lambda x: LoRA(torch.zeros_like(x.B), x.A), template)
    updates = [ClientUpdate(p, 1 / len(peers), method.upload(a)) for p, a in zip(peers, adapters, strict=True)]
    state = method.aggregate(0, method.init(template, peers), updates)
    model = method.deploy(method.broadcast(1, state, widest), {}, template)
    return {n: x.dense() for n, x in tree.effective(model["adapter"], model.get("base")).layers.items()}


@pytest.mark.parametrize("method", [ILoRA(), ILoRA(fixed_start=False)], ids=str)
def test_the_sum_at_unequal_ranks_is_exact_drift_IL5(method: ILoRA) -> None:
    adapters = [random_adapter(rank, seed=rank) for rank in (1, 2, 1)]
    if not method.fixed_start:  # slices hold no more than the largest rank: deltas of one span do not exceed it
        narrow = tree.map(lambda x: lr.components(x, 0, 1), adapters[1])
        adapters = [narrow, adapters[1], narrow]
    found = aggregated(method, adapters)
    for n, x in found.items():
        torch.testing.assert_close(x, sum(a.layers[n].dense() for a in adapters) / 3, rtol=1e-12, atol=1e-12)


def test_another_gauge_changes_nothing_and_changes_the_mean_of_factors_drift_IL7() -> None:
    adapters = [random_adapter(2, seed=k) for k in (1, 2)]
    G = tensor([[2, 1], [0, -3]])
    other = [tree.map(lambda x: LoRA(x.B @ G, torch.linalg.inv(G) @ x.A, x.scale), adapters[0]), adapters[1]]
    for method in RULES:
        before, after = aggregated(method, adapters), aggregated(method, other)
        assert all(torch.allclose(after[n], x, rtol=1e-10, atol=1e-10) for n, x in before.items())
    before, after = aggregated(FedAvg(), adapters), aggregated(FedAvg(), other)
    assert not any(torch.allclose(after[n], x, rtol=1e-2) for n, x in before.items())


# --- control variates ----------------------------------------------------------------------------------------------------


def test_control_without_a_fixed_start_is_refused_drift_IL10() -> None:
    with pytest.raises(ValueError, match=r"control=True needs fixed_start=True"):
        ILoRA(control=True, fixed_start=False)


def test_a_factorisation_that_would_not_happen_is_refused() -> None:
    with pytest.raises(ValueError, match=r"factor='qr' needs fixed_start=False"):
        ILoRA(factor="qr")


@pytest.mark.parametrize("lora_alpha", [None, 8.0])
def test_variates_of_owners_cancel_by_component_drift_IL11(lora_alpha: float | None) -> None:
    ranks = (1, 3, 2)
    for done in play(ILoRA(control=True), toy_federation(ranks, lora_alpha=lora_alpha), rounds=3):
        own = {k: memory["c"] for k, memory in done.client_states.items()}
        for name, c in done.state["c"].items():
            layer, _, which = name.rpartition(".lora_")
            columns = c if which != "A" else c.mT
            assert columns.any()
            for j in range(columns.shape[-1]):
                owners = [k for k, rank in enumerate(ranks) if rank > j or not layer]
                at = j if layer else slice(None)
                theirs = [(own[k][name] if which != "A" else own[k][name].mT)[..., at] for k in owners]
                torch.testing.assert_close(sum(theirs), len(owners) * columns[..., at], **EXACT)


def test_a_correction_adds_what_a_client_lacks_of_the_mean() -> None:
    """With equal ranks and one client its variate is the server's, and the correction is zero."""
    plain, corrected = (play(ILoRA(control=on), toy_federation((3,), lora_alpha=8.0), rounds=3)[-1] for on in (False, True))
    for one, other in zip(*(tree.total(done.state["base"]).values() for done in (plain, corrected)), strict=True):
        torch.testing.assert_close(tree.dense(one), tree.dense(other), rtol=1e-12, atol=1e-12)
    plain, corrected = (play(ILoRA(control=on), toy_federation((3, 1)), rounds=2)[-1] for on in (False, True))
    assert not torch.allclose(*(tree.dense(tree.total(done.state["base"])["hidden"]) for done in (plain, corrected)), rtol=1e-3)


def test_half_of_the_clients_move_a_variate_by_half() -> None:
    people = toy_federation((2, 2, 2, 2), num_examples=[8] * 4)
    done = play(ILoRA(control=True), people, cohort=lambda t, peers, seed: [0, 1])[0]
    own = [done.client_states[k]["c"] for k in (0, 1)]
    for name, c in done.state["c"].items():
        torch.testing.assert_close(c, (own[0][name] + own[1][name]) / 4, **EXACT)


# --- with others, and what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize("control", [False, True])
def test_a_rule_of_zero_strength_around_it_changes_no_bit(control: bool) -> None:
    method = ILoRA(control=control)
    alone = play(method, toy_federation((1, 3)), rounds=2)[-1].state["base"]
    ruled = Compose(local=FedProx(mu=0.0), server=method)
    assert wire.encode({"": alone}) == wire.encode({"": play(ruled, toy_federation((1, 3)), rounds=2)[-1].state["base"]})


def test_rules_that_keep_vectors_are_refused_over_it_drift_17() -> None:
    for local, optimizer in (([Scaffold()], None), ([], "fedadam")):
        with pytest.raises(ValueError, match="base"):
            Compose(local=local, server=ILoRA(), optimizer=optimizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda up: {**up, "first": {}}, "client 1 sent a start of other shapes"),
        (lambda up: {**up, "first": 3}, "client 1 sent a start of other shapes"),
        (lambda up: {**up, "first": {n: lr.components(x, 0, 1) for n, x in up["first"].items()}}, "sent a start of other"),
        (lambda up: {k: x for k, x in up.items() if k != "dc"}, "client 1 sent no control variate"),
        (lambda up: {**up, "adapter": 3}, "client 1 sent no adapter"),
    ],
)
def test_an_upload_that_does_not_fit_is_left_out_by_name(change: Any, message: str) -> None:
    method = ILoRA(control=True)
    done = play(method, toy_federation((2, 3)))[0]
    update = replace(done.updates[1], content=change(done.updates[1].content))
    with pytest.raises(ValueError, match=message):
        method.check_upload(0, done.before, update)


def test_a_client_that_cannot_show_its_base_ends_the_first_round_with_the_reason() -> None:
    people = clients()
    for client in people:
        client.base_weight = lambda layer: (_ for _ in ()).throw(ValueError(f"layer {layer!r}: its weight is quantised"))
    with pytest.raises(QuorumError, match="quantised"):
        list(federate(ILoRA(), people, rounds=1))


def test_a_lost_memory_begins_again_from_zero_drift_17() -> None:
    method, people = ILoRA(control=True), toy_federation((2, 3))
    done = play(method, people)[0]
    down = method.broadcast(1, done.state, done.peers[0])
    up, memory = method.local_update(1, down, {}, people[0])
    for name, x in up["dc"].items():
        assert torch.equal(x, memory["c"][name])
