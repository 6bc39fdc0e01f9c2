"""FedRot-LoRA: a turn keeps products, is the nearest one, leaves alone what it need not turn, and mends a mean of gauges."""

from typing import Any

import numpy as np
import pytest
import torch

from fedelta import tree
from fedelta.engines.server import federate
from fedelta.exchange.wire import encode
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate
from fedelta.methods import Compose, FedAvg, FedRotLoRA, Scaffold
from fedelta.methods.fedrot_lora import turned
from fedelta.models.toy import random_adapter, toy_federation
from fedelta.peers import Peer
from fedelta.tree import Adapter

FACTORS = ["A", "B"]


def rotation(rank: int, seed: int) -> torch.Tensor:
    """A random orthogonal matrix, perhaps with a reflection."""
    drawn = torch.randn(rank, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn).Q


def in_gauge(x: LoRA, Q: torch.Tensor) -> LoRA:
    return LoRA(x.B @ Q, Q.mT @ x.A, x.scale)


def layer(seed: int, rank: int = 3) -> LoRA:
    return random_adapter(rank, seed=seed).layers["hidden"]


def factor(x: LoRA, which: str) -> torch.Tensor:
    return x.A if which == "A" else x.B


@pytest.mark.parametrize("which", FACTORS)
def test_a_turn_keeps_the_product_hetero_FT1(which: Any) -> None:
    x, like = layer(1), layer(2)
    found = turned(x, like, which)
    torch.testing.assert_close(found.dense(), x.dense(), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found.A, x.A, rtol=1e-2)


@pytest.mark.parametrize("which", FACTORS)
def test_no_other_turn_comes_nearer(which: Any) -> None:
    x, like = layer(1), layer(2)
    best = float((factor(turned(x, like, which), which) - factor(like, which)).norm())
    others = [in_gauge(x, rotation(3, seed)) for seed in range(200)]
    assert best < min(float((factor(y, which) - factor(like, which)).norm()) for y in [x, *others])


@pytest.mark.parametrize("which", FACTORS)
def test_what_lies_as_the_server_does_is_not_turned_by_a_bit(which: Any) -> None:
    like, other = layer(1), layer(2)
    x = LoRA(other.B, like.A, 1.0) if which == "A" else LoRA(like.B, other.A, 1.0)
    found = turned(x, like, which)
    assert torch.equal(found.A, x.A)
    assert torch.equal(found.B, x.B)


def test_what_the_factors_leave_open_is_not_turned() -> None:
    """One direction of the components is seen, and has the other sign; across it they could be turned in any way."""
    v = torch.nn.functional.normalize(torch.tensor([1.0, -2, 3]).double(), dim=0)
    x, like = layer(1), layer(2)
    like = LoRA(like.B[:, :1] * v, like.A, 1.0)
    x = LoRA(-like.B, x.A, 1.0)
    found = turned(x, like, "B")
    torch.testing.assert_close(found.B, like.B)
    reflection = torch.eye(3, dtype=torch.float64) - 2 * torch.outer(v, v)
    torch.testing.assert_close(found.A, reflection @ x.A, rtol=0, atol=1e-9)


def aggregated(method: Any, adapters: list[Adapter], t: int, reference: Adapter) -> Adapter:
    peers = [Peer(k, 3) for k in range(len(adapters))]
    updates = [ClientUpdate(p, 1 / len(peers), {"adapter": a}) for p, a in zip(peers, adapters, strict=True)]
    return method.aggregate(t, {"adapter": reference}, updates)["adapter"]


@pytest.mark.parametrize("t", [0, 1])
def test_the_mean_is_that_of_the_formula(t: int) -> None:
    """With weights and scales of each client's own; Q by numpy, from the product of the factors that the round looks at."""
    reference, weights, scales = random_adapter(3, seed=1), [0.5, 0.2, 0.3], [1.0, 2.0, 0.5]
    sent = [tree.map(lambda x, s=s: LoRA(x.B, x.A, s), random_adapter(3, seed=k)) for k, s in enumerate(scales, start=2)]
    updates = [ClientUpdate(Peer(k, 3, lora_alpha=3 * scales[k]), weights[k], {"adapter": a}) for k, a in enumerate(sent)]
    found = FedRotLoRA().aggregate(t, {"adapter": reference}, updates)["adapter"]
    for n, old in reference.layers.items():
        B, A = np.zeros(old.B.shape), np.zeros(old.A.shape)
        for w, a in zip(weights, sent, strict=True):
            mine = a.layers[n].B.numpy() * a.layers[n].scale, a.layers[n].A.numpy()
            U, _, Vh = np.linalg.svd(mine[0].T @ old.B.numpy() if t else mine[1] @ old.A.numpy().T)
            B += w * mine[0] @ U @ Vh
            A += w * (U @ Vh).T @ mine[1]
        np.testing.assert_allclose(found.layers[n].B.numpy(), B, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(found.layers[n].A.numpy(), A, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("t", [0, 1])
def test_one_delta_in_many_gauges_is_its_own_mean(t: int) -> None:
    reference, learned = random_adapter(3, seed=1), random_adapter(3, seed=2)
    sent = [tree.map(lambda x, k=k: in_gauge(x, rotation(3, k)), learned) for k in range(4)]
    mean, plain = (aggregated(method, sent, t, reference) for method in (FedRotLoRA(), FedAvg()))
    for n, x in learned.layers.items():
        torch.testing.assert_close(mean.layers[n].dense(), x.dense(), rtol=1e-10, atol=1e-12)
        assert float((plain.layers[n].dense() - x.dense()).norm()) > 0.5 * float(x.dense().norm())


def test_rounds_alternate_between_the_factors() -> None:
    reference, sent = random_adapter(3, seed=1), [random_adapter(3, seed=k) for k in (2, 3)]
    for t, which in enumerate(["A", "B", "A", "B"]):
        found = aggregated(FedRotLoRA(), sent, t, reference)
        assert encode({"": found}) == encode({"": aggregated(FedRotLoRA(on=which), sent, t, reference)})
    assert encode({"": found}) != encode({"": aggregated(FedRotLoRA(), sent, 0, reference)})


def test_while_B_is_zero_it_says_nothing_of_a_turn() -> None:
    rounds = [next(iter(federate(m, toy_federation((3, 3, 3)), rounds=1))) for m in (FedRotLoRA(on="B"), FedAvg())]
    assert encode(rounds[0].state) == encode(rounds[1].state)


def test_another_word_is_refused() -> None:
    with pytest.raises(ValueError, match="on must be 'alternate', 'A' or 'B', got 'both'"):
        FedRotLoRA(on="both")


def test_rules_and_optimisers_that_keep_vectors_go_with_it() -> None:
    method = Compose(local=Scaffold(), server=FedRotLoRA(), optimizer={"name": "fedavgm", "momentum": 0.5})
    rounds = list(federate(method, toy_federation((3, 3, 3)), rounds=6, debug=True))
    assert rounds[-1].loss is not None
    assert rounds[0].loss is not None
    assert rounds[-1].loss < rounds[0].loss
