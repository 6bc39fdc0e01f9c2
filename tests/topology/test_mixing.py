"""Push-sum, CHOCO and gradient tracking: what each keeps in every round, and where it leads that plain mixing does not."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import fedelta
from fedelta import lowrank as lr
from fedelta import topology, tree
from fedelta.models.toy import random_adapter
from fedelta.topology import mixing
from fedelta.topology.mixing import Choco, PushSum, Tracking, pack, push_weights, top_k, unpack

NODES = 8
RING = topology.ring(NODES)
EDGES = [(i, (i + 1) % NODES) for i in range(NODES)] + [(0, 3), (0, 5), (2, 6)]
"""Strongly connected and one-way, with unequal degrees, so that P is not doubly stochastic."""


def drawn(d: int = 50, seed: int = 0) -> Tensor:
    return torch.randn(NODES, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distance(X: Tensor) -> float:
    """From consensus: ||X - mean||."""
    return float((X - X.mean(0)).norm())


def farthest(x: Tensor, y: Tensor) -> float:
    return float((x - y).abs().max())


# --- push-sum --------------------------------------------------------------------------------------------------------


def test_senders_share_out_what_they_have_dec_26() -> None:
    P = push_weights(NODES, EDGES)
    assert farthest(P.sum(0), torch.ones(NODES)) < 1e-15
    assert P[:, 0].tolist() == [0.25, 0.25, 0, 0.25, 0, 0.25, 0, 0]
    assert float((P.sum(1) - 1).abs().max()) > 0.2
    for edge in ((0, 0), (0, NODES), (-1, 0)):
        with pytest.raises(ValueError, match="is no edge between two of 8 nodes"):
            push_weights(NODES, [edge])


def test_push_sum_keeps_both_sums_and_reaches_the_mean_where_plain_mixing_does_not_dec_26() -> None:
    P, X = push_weights(NODES, EDGES), drawn()
    state, plain = PushSum.start(X), X
    for _ in range(200):
        state, plain = state.step(P), P @ plain
        assert farthest(state.x.sum(0), X.sum(0)) < 1e-12
        assert abs(float(state.w.sum()) - NODES) < 1e-12
    assert farthest(state.z, X.mean(0)) < 1e-13
    assert farthest(plain, X.mean(0)) > 0.1
    turned = push_weights(NODES, [(j, i) for i, j in EDGES])
    state = PushSum.start(X)
    for t in range(200):
        state = state.step((P, turned)[t % 2])
    assert farthest(state.z, X.mean(0)) < 1e-13


def test_a_step_at_z_moves_the_mean_by_the_mean_step_dec_26() -> None:
    P, X, step = push_weights(NODES, EDGES), drawn(), drawn(seed=1)
    state = PushSum.start(X).step(P)
    state = replace(state, x=state.x + step)
    for _ in range(200):
        state = state.step(P)
    assert farthest(state.z, (X + step).mean(0)) < 1e-13


def test_a_lost_message_leaves_z_an_average_dec_26() -> None:
    P, X = push_weights(NODES, EDGES), drawn()
    cut = P.clone()
    cut[1, 0] = 0
    state = PushSum.start(X).step(cut)
    for _ in range(200):
        state = state.step(P)
    assert distance(state.z) < 1e-12
    assert 1e-3 < farthest(state.z, X.mean(0)) < 0.5
    assert farthest(PushSum.start(torch.ones_like(X)).step(cut).z, torch.ones_like(X)) < 1e-15


def test_what_makes_or_swallows_mass_is_refused() -> None:
    state = PushSum.start(drawn())
    with pytest.raises(ValueError, match="columns of sum 1"):
        state.step(push_weights(NODES, EDGES).mT)
    with pytest.raises(ValueError, match="a diagonal above 0"):
        state.step(torch.eye(NODES, dtype=torch.float64).roll(1, 0))
    with pytest.raises(ValueError, match=r"shape \(3, 3\), but there are 8 nodes"):
        state.step(torch.eye(3, dtype=torch.float64))


# --- CHOCO -----------------------------------------------------------------------------------------------------------


def signs(X: Tensor) -> Tensor:
    return X.sign() * X.abs().mean(1, keepdim=True)


def nothing(X: Tensor) -> Tensor:
    return torch.zeros_like(X)


def coarse(X: Tensor) -> Tensor:
    return (X * 2).round() / 2


@pytest.mark.parametrize("compress", [top_k(0.1), top_k(1.0), signs, nothing, coarse])
def test_choco_keeps_the_mean_whatever_is_cut_dec_27(compress: Any) -> None:
    X = drawn()
    state = Choco.start(X)
    for _ in range(50):
        state, _ = state.step(RING, compress, 0.3)
        assert farthest(state.x.mean(0), X.mean(0)) < 2e-14


def test_choco_with_nothing_cut_is_gossip_dec_27() -> None:
    state, plain = Choco.start(drawn()), drawn()
    for _ in range(10):
        state, _ = state.step(RING, lambda X: X, 1.0)
        plain = RING @ plain
        assert farthest(state.x, plain) < 1e-14


def test_choco_reaches_consensus_through_a_tenth_of_the_entries_dec_27() -> None:
    X = drawn()
    state, compress = Choco.start(X), top_k(0.1)
    for _ in range(600):
        state, sent = state.step(RING, compress, 0.1)
        assert bool(((sent != 0).sum(1) <= 5).all())
    assert distance(state.x) < 1e-5 * distance(X)
    unfed = X
    for _ in range(600):  # without public copies what is cut is cut for good
        cut = compress(unfed)
        unfed = unfed + 0.1 * (RING @ cut - cut)
    assert distance(unfed) > 0.01 * distance(X)


def test_all_who_hold_a_copy_hold_the_same_dec_27() -> None:
    """Each node by itself, with copies of its own that hear nothing but what is sent."""
    X, compress = drawn(), top_k(0.2)
    state, x = Choco.start(X), X.clone()
    copies = [{j: torch.zeros(50, dtype=torch.float64) for j in range(NODES) if RING[i, j] > 0} for i in range(NODES)]
    for _ in range(20):
        messages = [compress((x[i] - copies[i][i])[None])[0] for i in range(NODES)]
        for held in copies:
            for j in held:
                held[j] = held[j] + messages[j]
        x = torch.stack([x[i] + 0.2 * sum(RING[i, j] * (c - copies[i][i]) for j, c in copies[i].items()) for i in range(NODES)])
        state, sent = state.step(RING, compress, 0.2)
        assert farthest(sent, torch.stack(messages)) < 1e-13
        assert farthest(state.x, x) < 1e-13
        for j in range(NODES):
            held_by_all = [held[j] for held in copies if j in held]
            assert len(held_by_all) == 3
            assert all(torch.equal(c, held_by_all[0]) for c in held_by_all)
            assert farthest(held_by_all[0], state.public[j]) < 1e-13


def test_top_k_keeps_the_largest_of_each_row_dec_27() -> None:
    X = torch.tensor([[1.0, -4.0, 2.0, 3.0], [0.1, 0.0, -0.3, 0.2]])
    assert top_k(0.5)(X).tolist() == [[0, -4, 0, 3], pytest.approx([0, 0, -0.3, 0.2])]
    assert int((top_k(0.01)(X) != 0).sum()) == 2
    for share in (0, 1.5):
        with pytest.raises(ValueError, match="top_k keeps a share"):
            top_k(share)
    with pytest.raises(ValueError, match="gamma must be in"):
        Choco.start(drawn()).step(RING, top_k(0.5), 1.1)
    with pytest.raises(ValueError, match="columns of a mixing matrix"):
        Choco.start(drawn()).step(push_weights(NODES, EDGES).mT, top_k(0.5), 0.1)


# --- gradient tracking -----------------------------------------------------------------------------------------------


class Quadratics:
    """Node i's loss is sum_j h_ij (x_j - c_ij)^2 / 2, with its own curvature and its own optimum."""

    h = drawn(6, seed=2).abs() + 0.5
    c = drawn(6, seed=3)

    @property
    def optimum(self) -> Tensor:
        return (self.h * self.c).sum(0) / self.h.sum(0)

    def gradient(self, X: Tensor) -> Tensor:
        return self.h * (X - self.c)


def test_tracking_follows_the_mean_gradient_and_reaches_the_optimum_dec_28() -> None:
    losses, X = Quadratics(), torch.zeros(NODES, 6, dtype=torch.float64)
    state, plain = Tracking.start(X, losses.gradient), X
    for _ in range(1500):
        state = state.step(RING, losses.gradient, 0.05)
        assert torch.equal(state.g, losses.gradient(state.x))
        assert farthest(state.y.mean(0), state.g.mean(0)) < 1e-12
        plain = RING @ plain - 0.05 * losses.gradient(plain)
    assert farthest(state.x, losses.optimum) < 1e-12
    assert farthest(plain, losses.optimum) > 0.05


def test_tracking_refuses_what_does_not_mix() -> None:
    state = Tracking.start(torch.zeros(NODES, 6, dtype=torch.float64), Quadratics().gradient)
    with pytest.raises(ValueError, match="rows of a mixing matrix"):
        state.step(push_weights(NODES, EDGES), Quadratics().gradient, 0.1)


# --- all of them -----------------------------------------------------------------------------------------------------


def test_identical_nodes_stay_identical_to_the_last_bit() -> None:
    X = drawn().float()[:1].repeat(NODES, 1)
    choco, _ = Choco.start(X).step(RING, lambda X: X, 0.7)
    assert torch.equal(choco.x, X)
    still = Tracking.start(X, torch.zeros_like).step(RING, torch.zeros_like, 0.1)
    assert torch.equal(still.x, X)
    assert still.x.dtype == PushSum.start(X).step(RING).z.dtype == torch.float32


def test_adapters_go_in_and_come_out() -> None:
    adapters = [random_adapter(2, seed=k, scale=3.0, dtype=torch.bfloat16) for k in range(NODES)]
    turned = [replace(a, layers=dict(reversed(a.layers.items()))) if k % 2 else a for k, a in enumerate(adapters)]
    X = pack(turned)
    assert X.dtype == torch.float32
    assert X.shape == (NODES, tree.count(adapters[0]))
    for before, after in zip(turned, unpack(X, turned), strict=True):
        assert after.base == "toy"
        assert all(torch.equal(t, tree.parameters(before)[n]) for n, t in tree.parameters(after).items())
        assert after.layers["hidden"].scale == 3.0
    mean = tree.mean_factors([1 / NODES] * NODES, adapters)
    for node in unpack(PushSum.start(X).step(topology.complete(NODES)).z, turned):
        for n, t in tree.parameters(mean).items():
            torch.testing.assert_close(tree.parameters(node)[n], t)


def test_adapters_whose_numbers_mean_different_things_are_refused() -> None:
    one = random_adapter(2, seed=0)
    for other in (random_adapter(3, seed=0), tree.map(lambda x: lr.rescale(x, 2.0), one)):
        with pytest.raises(ValueError, match="layer 'hidden': nodes mix factors of one rank and scale"):
            pack([one, other])
    with pytest.raises(ValueError, match=r"X has shape \(2, 3\), the adapters need \(2, \d+\)"):
        unpack(torch.zeros(2, 3), [one, one])


def test_it_is_public() -> None:
    assert fedelta.topology.mixing is mixing
