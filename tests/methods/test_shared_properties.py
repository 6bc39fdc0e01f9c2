"""Properties that the specifications ask of all methods, or of a family of them, by their ids."""

import numpy as np
import pytest
import torch

from fedelta import tree
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate
from fedelta.method import Method
from fedelta.methods import get_method, list_methods, method_class
from fedelta.models.toy import random_adapter, toy_template
from fedelta.peers import Peer
from fedelta.tree import Adapter, effective

ONE_SHOT = [n for n in list_methods() if method_class(n).one_shot]
EXACT = ["flora", "fedex_lora"]


HYPER = {"florist": {"tau": 1.0}}  # by default it cuts, whoever agrees
TEMPLATE = tree.map_named(lambda _, x: LoRA(x.B, x.A, 2.0), toy_template(3))


def aggregate(method: Method, adapters: list[Adapter], sizes: list[float]) -> Adapter:
    """What a newcomer runs after one round with weights n_k / n."""
    peers = [Peer(k, 3, lora_alpha=6.0, num_examples=int(n)) for k, n in enumerate(sizes)]
    updates = [ClientUpdate(p, n / sum(sizes), method.upload(a)) for p, n, a in zip(peers, sizes, adapters, strict=True)]
    state = method.aggregate(0, method.init(TEMPLATE, peers, seed=0), updates)
    model = method.deploy(method.broadcast(1, state, peers[0]), {}, TEMPLATE)
    return effective(model["adapter"], model.get("base"))


def drawn(count: int) -> list[Adapter]:
    """Trained adapters on the template's own A, which methods of one factor need."""
    A = TEMPLATE.layers
    adapters = [random_adapter(3, seed=k, scale=2.0) for k in range(count)]
    return [Adapter({n: LoRA(x.B, A[n].A, 2.0) for n, x in a.layers.items()}, a.dense, a.base) for a in adapters]


def deltas(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {n: x.dense() for n, x in adapter.layers.items()}


@pytest.mark.parametrize("name", ONE_SHOT)
def test_the_unit_of_sizes_does_not_matter_sub_T9(name: str) -> None:
    method, sizes, adapters = get_method(name, **HYPER.get(name, {})), [5.0, 3.0, 2.0], drawn(3)
    plain, larger = (deltas(aggregate(method, adapters, [unit * n for n in sizes])) for unit in (1, 8))
    for n, x in plain.items():
        torch.testing.assert_close(x, larger[n], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (3, 3), (2, 5)], ids=str)
@pytest.mark.parametrize("name", [*EXACT, "flexlora", "zeropad", "rbla", "raflora"])
def test_an_axis_as_long_as_a_rank_is_not_taken_for_it_hetero_G13(written_round, name: str, shape: tuple[int, int]) -> None:
    o, i = shape
    rng = np.random.default_rng(0)

    def layer(rank: int) -> LoRA:
        return LoRA(torch.from_numpy(rng.normal(size=(o, rank))), torch.from_numpy(rng.normal(size=(rank, i))))

    low, high = layer(2), layer(3)
    done = written_round(low, high, weights=[0.25, 0.75])
    method = get_method(name)
    found = done.received(method, done.run(method), done.peers[1])["w"]
    assert found.shape == (o, i)
    if name in EXACT or (name == "flexlora" and min(shape) <= 3):
        np.testing.assert_allclose(found, (0.25 * low.dense() + 0.75 * high.dense()).numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("ranks", [(1, 2, 4), (4, 1, 1)], ids=str)
@pytest.mark.parametrize("name", ["subspace_reg", "svd_redistribution"])
def test_unequal_ranks_match_the_dense_formula_sub_T10(fake_round, name: str, ranks: tuple[int, ...]) -> None:
    done = fake_round(ranks, scales="alpha/r")
    method = get_method(name, rescale=False)
    state = done.run(method)
    for peer in done.peers:
        for n, found in done.received(method, state, peer).items():
            terms = zip(done.weights, done.adapters, strict=True)
            M = sum(w * a.layers[n].dense().numpy() for w, a in terms)
            U, S, Vh = np.linalg.svd(M, full_matrices=False)
            r = min(peer.rank_of(n), max(p.rank_of(n) for p in done.peers))
            np.testing.assert_allclose(found, (U[:, :r] * S[:r]) @ Vh[:r], rtol=1e-9, atol=1e-11)
