"""raFLoRA against hand-checked numbers; test names end in the id of the acceptance test in the method's specification."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedelta import lowrank as lr
from fedelta import topology
from fedelta.diagnostics import diagnose
from fedelta.engines.server import federate
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate
from fedelta.method import TrainResult
from fedelta.methods import get_method
from fedelta.methods.raflora import component_weights
from fedelta.models.toy import random_adapter
from fedelta.peers import Peer
from fedelta.tree import Adapter

e = torch.eye(2, dtype=torch.float64)
TWO_ONE = LoRA(torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64)), e)
NARROW, WIDE = LoRA(2 * e[:, :1], e[:1]), LoRA(torch.diag(torch.tensor([4.0, 3.0], dtype=torch.float64)), e)


class Still:
    """A client whose training changes nothing."""

    num_steps = 1

    def __init__(self, k: int, rank: int) -> None:
        self.peer, self.template = Peer(k, rank), Adapter({"w": lr.components(TWO_ONE, 0, rank)})

    def train(self, t: int, start: Adapter, **request: Any) -> TrainResult:
        return TrainResult(start, 1, 0.0)


def at_largest(done: Any, method: Any) -> np.ndarray:
    return done.received(method, done.run(method), max(done.peers, key=lambda p: p.rank))["w"]


@pytest.mark.parametrize("shrink", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("sigma_on", ["A", "B", "both"])
def test_equal_ranks_are_flexlora_to_the_bit_hetero_R1(fake_round: Callable, sigma_on: str, shrink: float) -> None:
    done = fake_round((4, 4, 4), scales="alpha/sqrt(r)")
    mine = done.run(get_method("raflora", sigma_on=sigma_on, shrink=shrink))["adapter"]
    for n, x in done.run(get_method("flexlora", sigma_on=sigma_on))["adapter"].layers.items():
        assert torch.equal(mine.layers[n].B, x.B)
        assert torch.equal(mine.layers[n].A, x.A)


def test_each_direction_over_its_owners_hetero_R2(written_round: Callable) -> None:
    done = written_round(NARROW, WIDE, weights=[0.5, 0.5])
    np.testing.assert_allclose(at_largest(done, get_method("flexlora")), np.diag([3, 1.5]), atol=1e-12)
    np.testing.assert_allclose(at_largest(done, get_method("raflora")), np.diag([3, 3]), atol=1e-12)


@pytest.mark.parametrize(
    ("name", "second", "ratios"),
    [("raflora", [1, 1, 1], [0.2, 0.2, 0.2]), ("flexlora", [0.5, 0.25, 0.125], [1 / 17, 1 / 65, 1 / 257])],
)
def test_rounds_without_training_hetero_R3(name: str, second: list[float], ratios: list[float]) -> None:
    rounds = list(federate(get_method(name), [Still(0, 1), Still(1, 2)], Adapter({"w": TWO_ONE}), rounds=3, debug=True))
    spectra = [lr.spectrum(r.state["adapter"].layers["w"]).tolist() for r in rounds]
    assert spectra == [pytest.approx([2, s], rel=1e-12) for s in second]
    assert [diagnose(r)["higher_rank_energy_ratio"] for r in rounds] == pytest.approx(ratios, rel=1e-12)
    assert ratios[-1] == pytest.approx(0.2 if name == "raflora" else 0.0038911, abs=1e-7)


def test_weights_of_components_hetero_R4() -> None:
    p, ranks = [0.5, 0.3, 0.2], [1, 2, 4]
    full = [[0.5], [0.3, 0.6], [0.2, 0.4, 1, 1]]
    assert [w.tolist() for w in component_weights(p, ranks)] == [pytest.approx(w) for w in full]
    assert [w.tolist() for w in component_weights(p, ranks, shrink=0.0)] == [[0.5], [0.3] * 2, [0.2] * 4]


def test_levels_that_nobody_stands_on_change_nothing_hetero_R5(fake_round: Callable) -> None:
    done, method = fake_round((2, 4, 5), scales="constant"), get_method("raflora")
    reference = done.run(method)["adapter"]
    for absent in ([Peer(9, 1)], [Peer(9, 3), Peer(10, 4)]):
        state = replace(done, absent=absent).run(method)["adapter"]
        assert all(torch.equal(state.layers[n].B, x.B) for n, x in reference.layers.items())


def test_a_sum_of_balanced_rank_one_terms_hetero_R6(fake_round: Callable) -> None:
    done, method = fake_round((2, 5, 4)), get_method("rb_lora")
    for n, found in done.received(method, done.run(method), done.peers[1]).items():
        xs = [a.layers[n] for a in done.adapters]
        expected = np.zeros(found.shape)
        for p, x in zip(done.weights, xs, strict=True):
            for i in range(x.rank):
                balance = 1 / sum(q for q, y in zip(done.weights, xs, strict=True) if y.rank > i)
                expected += p * balance * lr.components(x, i, i + 1).dense().numpy()
        np.testing.assert_allclose(found, expected, atol=1e-12)  # rank 5 holds any delta of these layers


@pytest.mark.parametrize("common_A", [True, False])
def test_with_a_common_A_it_is_rbla_hetero_R7(fake_round: Callable, common_A: bool) -> None:
    done = fake_round((2, 4, 5), scales="constant", common_A=common_A)
    mine, theirs = (done.received(m, done.run(m), done.peers[2]) for m in map(get_method, ("raflora", "rbla")))
    assert np.allclose(mine["output"], theirs["output"], rtol=1e-10, atol=1e-12) is common_A


@pytest.mark.parametrize(("empty_partition", "second"), [("keep", 1.0), ("zero", 0.0)])
@pytest.mark.parametrize("absentee", ["away", "without weight"])
def test_a_partition_without_a_participant_hetero_R8(empty_partition: str, second: float, absentee: str) -> None:
    method, peers = get_method("raflora", empty_partition=empty_partition), [Peer(0, 1), Peer(1, 2)]
    state = method.init(Adapter({"w": TWO_ONE}), peers)
    updates = [ClientUpdate(peers[0], 1.0, method.broadcast(0, state, peers[0]))]
    if absentee == "without weight":
        updates.append(ClientUpdate(peers[1], 0.0, {"adapter": Adapter({"w": WIDE})}))
    x = method.aggregate(0, state, updates)["adapter"].layers["w"]
    torch.testing.assert_close(x.dense(), torch.diag(torch.tensor([2.0, second])).double())
    assert bool((x.B.any(dim=0) | x.A.any(dim=1)).all())


def test_shrink_lies_between_flexlora_and_raflora_hetero_R9(written_round: Callable) -> None:
    done = written_round(NARROW, WIDE, weights=[0.5, 0.5])
    for shrink, second in {0: 1.5, 0.25: 1.78381, 0.5: 2.12132, 0.75: 2.52269, 1: 3}.items():
        found = at_largest(done, get_method("raflora", shrink=shrink))
        np.testing.assert_allclose(found, np.diag([3, second]), atol=1e-5)


@pytest.mark.parametrize(("ranks", "contracts"), [((3, 3, 3, 3, 3, 3), True), ((2, 4, 3, 2, 4, 3), False)])
def test_gossip_may_drift_apart_at_unequal_ranks(ranks: tuple[int, ...], contracts: bool) -> None:
    """Why the method does not claim to be decentralised: without training, six nodes on a ring should come together."""
    method, mixing = get_method("raflora"), topology.ring(6)
    peers = [Peer(k, r) for k, r in enumerate(ranks)]
    states = [method.init(random_adapter(max(ranks), seed=k), peers) for k in range(6)]

    def distance() -> float:
        xs = [s["adapter"].layers["hidden"] for s in states]
        return sum(float(lr.dist2(x, xs[0])) for x in xs)

    before = distance()
    for t in range(40):
        sent = [method.broadcast(t, s, p) for s, p in zip(states, peers, strict=True)]
        rows = [[ClientUpdate(peers[j], float(w), sent[j]) for j, w in enumerate(row) if w > 0] for row in mixing]
        states = [method.aggregate(t, s, heard) for s, heard in zip(states, rows, strict=True)]
    assert (distance() < 1e-3 * before) is contracts
    assert not method.decentralised


@pytest.mark.parametrize("shrink", [-0.1, 1.1])
def test_shrink_out_of_range_is_refused(shrink: float) -> None:
    with pytest.raises(ValueError, match=f"shrink must lie between 0 .* got {shrink}"):
        get_method("raflora", shrink=shrink)


@pytest.mark.parametrize(("blocks", "same"), [(True, True), (False, False)])
def test_gauges_within_a_partition_do_not_matter_hetero_G6(written_round: Callable, blocks: bool, same: bool) -> None:
    torch.manual_seed(1)
    low, high = (LoRA(torch.randn(5, r).double(), torch.randn(r, 4).double()) for r in (2, 4))
    gauge = torch.randn(4, 4).double() + 4 * torch.eye(4).double()
    if blocks:
        gauge[:2, 2:], gauge[2:, :2] = 0, 0
    turned = LoRA(high.B @ gauge, torch.linalg.inv(gauge) @ high.A)
    plain, other = (at_largest(written_round(low, x, weights=[0.4, 0.6]), get_method("raflora")) for x in (high, turned))
    assert np.allclose(plain, other, rtol=1e-9, atol=1e-9) is same


def test_the_trained_start_reaches_every_rank() -> None:
    """A start whose components are not sorted by size: the smallest client gets the largest of them."""
    method, start = get_method("raflora"), LoRA(torch.diag(torch.tensor([1.0, 2.0])).double(), e)
    down = method.broadcast(0, method.init(Adapter({"w": start}), [Peer(0, 1), Peer(1, 2)]), Peer(0, 1))
    torch.testing.assert_close(down["adapter"].layers["w"].dense(), torch.diag(torch.tensor([0.0, 2.0])).double())
