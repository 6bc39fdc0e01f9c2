"""DeCAF: the best approximation of the mixed product, whatever the factors of a neighbour look like."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from fedelta import lowrank as lr
from fedelta import topology, tree
from fedelta.engines.gossip import gossip
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate
from fedelta.methods import get_method
from fedelta.methods.decaf import aligned
from fedelta.models.toy import random_adapter, toy_federation
from fedelta.peers import Peer
from fedelta.tree import Adapter

WEIGHTS = (0.5, 0.3, 0.2)


def mixed(adapters: list[Adapter], *, rank: int = 2, name: str = "decaf", **hyper: Any) -> Adapter:
    """Node 0's next adapter after hearing the others."""
    method = get_method(name, **hyper)
    state = {"adapter": replace(random_adapter(rank, seed=9), base="toy")}
    peers = [Peer(k, max(x.rank for x in a.layers.values())) for k, a in enumerate(adapters)]
    updates = [ClientUpdate(p, w, {"adapter": a}) for p, w, a in zip(peers, WEIGHTS, adapters, strict=True)]
    return method.aggregate(0, state, updates)["adapter"]


def turned(adapter: Adapter, seed: int) -> Adapter:
    """The same products in other factors, B R^-1 and R A."""
    generator = torch.Generator().manual_seed(seed)

    def turn(x: LoRA) -> LoRA:
        R = torch.randn(x.rank, x.rank, generator=generator, dtype=torch.float64) + 2 * torch.eye(x.rank)
        return LoRA(x.B @ torch.linalg.inv(R), R @ x.A, x.scale)

    return tree.map(turn, adapter)


def test_the_result_is_the_best_approximation_of_the_mixture_dec_23() -> None:
    adapters = [random_adapter(2, seed=k, scale=1.0 + k) for k in range(3)]
    for layer, x in mixed(adapters).layers.items():
        dense = sum(w * a.layers[layer].dense() for w, a in zip(WEIGHTS, adapters, strict=True))
        U, S, Vh = torch.linalg.svd(torch.as_tensor(dense), full_matrices=False)
        torch.testing.assert_close(x.dense(), U[:, :2] * S[:2] @ Vh[:2], rtol=0, atol=1e-12)
        residual = float((dense - x.dense()).norm())
        assert residual == pytest.approx(float(S[2:].norm()), abs=1e-12)
        torch.testing.assert_close(x.B.norm(dim=0), x.A.norm(dim=1))  # the square root on both sides


def test_enough_components_make_it_exact_dec_23() -> None:
    adapters = [random_adapter(1, seed=k) for k in range(3)]
    for layer, x in mixed(adapters, rank=3).layers.items():
        dense = sum(w * a.layers[layer].dense() for w, a in zip(WEIGHTS, adapters, strict=True))
        torch.testing.assert_close(x.dense(), dense, rtol=0, atol=1e-12)


def test_the_factors_of_a_neighbour_do_not_matter_dec_23() -> None:
    adapters = [random_adapter(2, seed=k) for k in range(3)]
    other = [adapters[0], turned(adapters[1], 1), turned(adapters[2], 2)]
    for layer, x in mixed(adapters).layers.items():
        torch.testing.assert_close(mixed(other).layers[layer].dense(), x.dense(), rtol=0, atol=1e-11)
        averaged = [mixed(a, name="fedavg").layers[layer].dense() for a in (adapters, other)]
        assert float((averaged[0] - averaged[1]).norm()) > 0.1, "averaging factors would depend on them"


def test_alignment_leaves_every_product_and_brings_turned_copies_together_dec_24() -> None:
    adapters = [random_adapter(3, seed=k) for k in range(3)]
    plain, turned_back = mixed(adapters, rank=3), mixed(adapters, rank=3, align="procrustes")
    old = random_adapter(3, seed=9)
    for layer, x in plain.layers.items():
        y = turned_back.layers[layer]
        torch.testing.assert_close(y.dense(), x.dense(), rtol=0, atol=1e-12)
        target = old.layers[layer].A
        assert float((y.A - target).norm()) < float((x.A - target).norm())
        Q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
        copy = LoRA(x.B @ Q.mT, Q @ x.A)
        mean = lr.mean_factors([0.5, 0.5], [x, aligned(copy, x)])
        torch.testing.assert_close(mean.dense(), x.dense(), rtol=0, atol=1e-12)
        torch.testing.assert_close(mean.A, x.A, rtol=0, atol=1e-12)
        assert not torch.allclose(lr.mean_factors([0.5, 0.5], [x, copy]).dense(), x.dense(), atol=1e-3)


@pytest.mark.parametrize("align", ["none", "procrustes"])
def test_no_component_dies_when_nothing_was_learned(align: str) -> None:
    method, clients = get_method("decaf", align=align), toy_federation((3, 3))
    state = method.init(clients[0].template, [c.peer for c in clients])
    after = method.aggregate(0, state, [ClientUpdate(c.peer, 0.5, {"adapter": c.template}) for c in clients])["adapter"]
    for layer, x in after.layers.items():
        assert not bool(x.B.any())
        assert bool(x.A.any(dim=1).all())
        torch.testing.assert_close(x.A, clients[0].template.layers[layer].A, rtol=0, atol=1e-12)
    one = tree.map(lambda x: LoRA(torch.cat([x.B[:, :1] + 1, x.B[:, 1:]], 1), x.A, x.scale), clients[0].template)
    for x in method.aggregate(0, state, [ClientUpdate(clients[0].peer, 1.0, {"adapter": one})])["adapter"].layers.values():
        assert bool((x.B.any(dim=0) | x.A.any(dim=1)).all())


def test_nodes_of_unequal_ranks_come_together_on_a_ring() -> None:
    def spread(mixing: torch.Tensor) -> float:
        *_, done = gossip(get_method("decaf"), toy_federation((2, 4, 3, 4)), rounds=20, mixing=mixing, debug=True)
        adapters = [done.participant_model(p)["adapter"] for p in done.peers]
        return sum(float(lr.dist2(a.layers[n], adapters[0].layers[n])) for a in adapters for n in a.layers)

    assert spread(topology.ring(4)) < 0.3 * spread(torch.eye(4, dtype=torch.float64))
