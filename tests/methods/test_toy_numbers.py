"""Numbers small enough to check by hand; test names end in the id of the acceptance test in the method's specification."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate
from fedelta.method import Method
from fedelta.methods import get_method
from fedelta.peers import Peer
from fedelta.tree import Adapter

PRODUCT = ["flexlora", "svd_redistribution", "flora", "fedex_lora"]
e = torch.eye(2, dtype=torch.float64)


def matrix(*rows: Sequence[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def one_layer(B: torch.Tensor, A: torch.Tensor, scale: float = 1.0) -> Adapter:
    return Adapter({"w": LoRA(B, A, scale)})


def play(method: Method, adapters: Sequence[Adapter], p: Sequence[float], to: Peer | None = None, **peer) -> torch.Tensor:
    """One round without training; dW at a receiver, by default one that can hold all."""
    peers = [Peer(k, a.layers["w"].rank, **peer) for k, a in enumerate(adapters)]
    widest = max((a.layers["w"] for a in adapters), key=lambda x: x.rank)
    template = one_layer(torch.zeros_like(widest.B), widest.A, peers[0].scale_of("w", widest.rank))
    everyone = [*peers, *([to] if to else [])]
    state = method.init(template, everyone, seed=0)
    updates = [ClientUpdate(q, w, method.upload(a)) for q, w, a in zip(peers, p, adapters, strict=True)]
    down = method.broadcast(1, method.aggregate(0, state, updates), to or max(peers, key=lambda q: q.rank))
    model = method.deploy(down, {})
    return tree.effective(model["adapter"], model.get("base")).layers["w"].dense()


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


CROSS = [one_layer(e[:, :1], e[:1]), one_layer(e[:, 1:], e[1:])]


@pytest.mark.parametrize("name", ["fedavg", "zeropad"])
def test_mean_of_factors_has_cross_terms_hetero_G1(name: str) -> None:
    found = play(get_method(name), CROSS, [0.5, 0.5])
    close(found, torch.full((2, 2), 0.25, dtype=torch.float64))
    assert float((found - 0.5 * e).norm()) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["flora", "fedex_lora"])
def test_mean_of_deltas_has_none_hetero_G1(name: str) -> None:
    close(play(get_method(name), CROSS, [0.5, 0.5]), 0.5 * e)


def test_flexlora_needs_the_rank_for_it_hetero_G1() -> None:
    close(play(get_method("flexlora"), CROSS, [0.5, 0.5], Peer(9, 2)), 0.5 * e)


def test_bias_identity_hetero_G2() -> None:
    drawn = np.random.default_rng(0)
    p = drawn.dirichlet(np.ones(4))
    B, A = drawn.normal(size=(4, 6, 3)), drawn.normal(size=(4, 3, 5))
    xs = [LoRA(torch.tensor(b), torch.tensor(a)) for b, a in zip(B, A, strict=True)]
    bias = lr.stack(list(p), xs).dense() - lr.mean_factors(list(p), xs).dense()
    pairs = 0.5 * sum(p[i] * p[j] * (B[i] - B[j]) @ (A[i] - A[j]) for i in range(4) for j in range(4))
    close(bias, torch.tensor(pairs))


@pytest.mark.parametrize("name", ["fedavg", "zeropad", "hetlora", "ffa_lora", "rbla", "replication"])
def test_one_client_gets_its_own_factors_back_hetero_G3(fake_round, name: str) -> None:
    done = fake_round((3,), scales="alpha/r", common_A=name == "ffa_lora")
    method = get_method(name)
    template = tree.map(lambda x, own: replace(x, scale=own.scale), done.template, done.adapters[0])
    model = method.deploy(method.broadcast(1, done.run(method), done.peers[0]), {}, template)
    for layer, x in done.adapters[0].layers.items():
        assert torch.equal(model["adapter"].layers[layer].B, x.B)
        assert torch.equal(model["adapter"].layers[layer].A, x.A)


def random_pair(seed: int, gauge: torch.Tensor | None = None) -> list[Adapter]:
    torch.manual_seed(seed)
    xs = [LoRA(torch.randn(5, 3).double(), torch.randn(3, 4).double()) for _ in range(2)]
    if gauge is not None:
        xs[0] = LoRA(xs[0].B @ gauge, torch.linalg.inv(gauge) @ xs[0].A)
    return [Adapter({"w": x}) for x in xs]


@pytest.mark.parametrize(
    ("name", "same"), [*((n, True) for n in PRODUCT), *((n, False) for n in ("zeropad", "hetlora", "fedavg", "rbla"))]
)
def test_gauge_of_one_client_hetero_G6(name: str, same: bool) -> None:
    gauge = torch.randn(3, 3, generator=torch.Generator().manual_seed(9)).double() + 3 * torch.eye(3).double()
    plain, turned = (play(get_method(name), random_pair(1, g), [0.4, 0.6]) for g in (None, gauge))
    assert torch.allclose(plain, turned, rtol=1e-9, atol=1e-9) is same


SIXTEEN = [one_layer(e[:, :1], e[:1], 16.0), one_layer(2 * torch.diag(e[0]), torch.diag(e[0]), 8.0)]
"""Two clients under lora_alpha 16 whose deltas are both 16 at (0, 0)."""


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("name", [*PRODUCT, "raflora", "florist"])
def test_product_methods_give_16_at_every_rank_hetero_G7(name: str, rank: int) -> None:
    found = play(get_method(name), SIXTEEN, [0.5, 0.5], Peer(9, rank, lora_alpha=16.0), lora_alpha=16.0)
    close(found, matrix([16, 0], [0, 0]))


@pytest.mark.parametrize(("rank", "expected"), [(2, 12.0), (1, 24.0)])
def test_raw_factors_depend_on_the_receiver_hetero_G7(rank: int, expected: float) -> None:
    method = get_method("zeropad", scale_policy="raw")
    found = play(method, SIXTEEN, [0.5, 0.5], Peer(9, rank, lora_alpha=16.0), lora_alpha=16.0)
    assert float(found[0, 0]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_effective_factors_do_not_hetero_G7(rank: int) -> None:
    found = play(get_method("zeropad"), SIXTEEN, [0.5, 0.5], Peer(9, rank, lora_alpha=16.0), lora_alpha=16.0)
    close(found, matrix([16, 0], [0, 0]))  # with all of the scale on B; a root of it on each factor would give 16.4853


FOUR_TWO_ONE = one_layer(torch.eye(3).double(), torch.diag(torch.tensor([4.0, 2.0, 1.0])).double() * 3 / 16, 16 / 3)


@pytest.mark.parametrize(("rank", "B", "error"), [(1, [0.25], 5**0.5), (2, [0.5, 0.25], 1.0), (3, [0.75, 0.375, 0.1875], 0.0)])
def test_redistribution_error_hetero_G8(rank: int, B: list[float], error: float) -> None:
    method, peer = get_method("flexlora"), Peer(0, 3, lora_alpha=16.0)
    state = method.init(tree.map(lambda x: LoRA(torch.zeros_like(x.B), x.A, x.scale), FOUR_TWO_ONE), [peer])
    state = method.aggregate(0, state, [ClientUpdate(peer, 1.0, {"adapter": FOUR_TWO_ONE})])
    x = method.broadcast(1, state, Peer(1, rank, lora_alpha=16.0))["adapter"].layers["w"]
    close(x.B, torch.eye(3).double()[:, :rank] * torch.tensor(B).double())
    assert float((x.dense() - FOUR_TWO_ONE.layers["w"].dense()).norm()) == pytest.approx(error, abs=1e-12)


@pytest.mark.parametrize("sigma_on", ["A", "B", "both"])
def test_adapters_are_nested_hetero_G9(fake_round, sigma_on: str) -> None:
    method, done = get_method("flexlora", sigma_on=sigma_on), fake_round((2, 4, 5), scales="alpha/sqrt(r)")
    state = done.run(method)
    small, _, large = (method.broadcast(1, state, p)["adapter"] for p in done.peers)
    for layer, x in small.layers.items():
        close(x.dense(), lr.truncate(large.layers[layer], x.rank).dense())


def test_dense_and_factored_svd_agree_hetero_G10(fake_round) -> None:
    done = fake_round((2, 3, 4))
    xs = [a.layers["hidden"] for a in done.adapters]
    stacked = lr.stack(done.weights, xs)
    # The way of FLoRIST: an SVD of each stack, then of the core between them.
    U_b, S_b, V_b = torch.linalg.svd(stacked.B, full_matrices=False)
    U_a, S_a, V_a = torch.linalg.svd(stacked.A, full_matrices=False)
    U_p, S_p, V_p = torch.linalg.svd((S_b[:, None] * V_b) @ (U_a * S_a), full_matrices=False)
    S_dense = torch.linalg.svdvals(stacked.dense())
    close(lr.spectrum(stacked), S_dense)
    close(S_p[: len(S_dense)], S_dense)
    close((U_b @ U_p * S_p) @ V_p @ V_a, stacked.dense())


@pytest.mark.parametrize("name", [*PRODUCT, "zeropad", "hetlora", "ffa_lora", "raflora", "rbla", "replication", "florist"])
def test_zero_updates_stay_zero_and_alive_hetero_G11(fake_round, name: str) -> None:
    done = fake_round((2, 4, 5), common_A=True)
    zero = [tree.map(lambda x: lr.with_factor(x, "B", torch.zeros_like(x.B)), a) for a in done.adapters]
    done = replace(done, adapters=zero)
    method = get_method(name)
    state = done.run(method)
    tree.check_finite(state, "the state")
    for peer in done.peers:
        assert all(not x.any() for x in done.received(method, state, peer).values())
    if name != "flora":
        assert all(bool(x.A.any(dim=1).all()) for x in state["adapter"].layers.values())
    if name in ("flexlora", "svd_redistribution", "ffa_lora", "raflora"):
        assert all(torch.equal(x.A, done.template.layers[n].A) for n, x in state["adapter"].layers.items())


@pytest.mark.parametrize("name", [*PRODUCT, "zeropad", "hetlora", "raflora", "rbla", "florist"])
def test_ranks_above_the_outer_dimensions_hetero_G11(name: str) -> None:
    torch.manual_seed(0)
    wide = [Adapter({"w": LoRA(torch.randn(3, r).double(), torch.randn(r, 4).double())}) for r in (6, 2)]
    found = play(get_method(name), wide, [0.5, 0.5])
    assert found.shape == (3, 4)
    assert bool(found.isfinite().all())
    if name in PRODUCT:
        close(found, 0.5 * (wide[0].layers["w"].dense() + wide[1].layers["w"].dense()), 1e-11)


@pytest.mark.parametrize(
    "name", ["fedavg", "zeropad", "ffa_lora", "hetlora", "flexlora", "flora", "raflora", "rbla", "florist"]
)
def test_bfloat16_costs_one_rounding_hetero_G12(fake_round, name: str) -> None:
    done = fake_round((4, 4, 4), dtype=torch.bfloat16, common_A=name == "ffa_lora", scales="constant")
    exact = replace(
        done,
        template=tree.map_tensors(lambda x: x.double(), done.template),
        adapters=[tree.map_tensors(lambda x: x.double(), a) for a in done.adapters],
    )
    method = get_method(name)
    found = done.received(method, done.run(method), done.peers[0])
    expected = exact.received(method, exact.run(method), done.peers[0])
    for layer, x in expected.items():
        assert np.linalg.norm(found[layer] - x) < 2 * torch.finfo(torch.bfloat16).eps * np.linalg.norm(x)


def test_pad_then_cut_is_the_identity_hetero_G15() -> None:
    x = random_pair(3)[0].layers["w"]
    for live in (True, False):
        back = lr.components(lr.pad(x, 7, live=live), 0, x.rank)
        assert torch.equal(back.B, x.B)
        assert torch.equal(back.A, x.A)


def count(message: object) -> int:
    return sum(t.numel() for _, t in tree.named_tensors(message))


@pytest.mark.parametrize("name", ["zeropad", "hetlora", "flexlora", "svd_redistribution", "raflora", "rbla", "replication"])
def test_slicing_methods_send_each_its_own_rank_hetero_G16(fake_round, name: str) -> None:
    method, done = get_method(name), fake_round((2, 4, 5), scales="constant")
    state = done.run(method)
    for peer, update in zip(done.peers, done.updates(method), strict=True):
        size = peer.rank * (6 + 5 + 4 + 6) + 4  # two layers and the bias
        assert count(update.content) == count(method.broadcast(1, state, peer)) == size


def test_ffa_lora_sends_B_alone_hetero_G16(fake_round) -> None:
    method, done = get_method("ffa_lora"), fake_round((2, 4, 5), common_A=True, scales="constant")
    assert [count(u.content) for u in done.updates(method)] == [r * (6 + 4) + 4 for r in (2, 4, 5)]
    assert count(method.broadcast(1, done.run(method), done.peers[0])) == 2 * (6 + 4) + 4


def test_flora_sends_the_stack_hetero_G16() -> None:
    adapters = [Adapter({"w": LoRA(torch.randn(40, r), torch.randn(r, 30))}) for r in (1, 2, 3)]
    peers = [Peer(k, k + 1) for k in range(3)]
    method = get_method("flora")
    state = method.init(Adapter({"w": LoRA(torch.zeros(40, 3), torch.randn(3, 30))}), peers)
    state = method.aggregate(0, state, [ClientUpdate(p, 1 / 3, {"adapter": a}) for p, a in zip(peers, adapters, strict=True)])
    assert count(method.broadcast(1, state, peers[0])) == 6 * (40 + 30)


# --- FlexLoRA, FLoRA, FedEx-LoRA -------------------------------------------------------------------------------------


def test_enough_rank_makes_redistribution_exact_hetero_F1(fake_round) -> None:
    done, method = fake_round((1, 2)), get_method("flexlora")
    wide = replace(done, peers=[*done.peers, Peer(9, 3, lora_alpha=16.0)])
    found = wide.received(
        method, method.aggregate(0, method.init(done.template, wide.peers), done.updates(method)), done.peers[0]
    )
    assert set(found) == {"hidden", "output"}
    state = method.aggregate(0, method.init(done.template, wide.peers), done.updates(method))
    for layer, x in method.broadcast(1, state, wide.peers[2])["adapter"].layers.items():
        close(x.dense(), lr.stack(done.weights, [a.layers[layer] for a in done.adapters]).dense())


@pytest.mark.parametrize("sigma_on", ["A", "B", "both"])
def test_splits_differ_in_factors_only_hetero_F2(fake_round, sigma_on: str) -> None:
    done = fake_round((4, 4))
    state, reference = done.run(get_method("flexlora", sigma_on=sigma_on)), done.run(get_method("flexlora"))
    for layer, x in state["adapter"].layers.items():
        close(x.dense(), reference["adapter"].layers[layer].dense())
        orthonormal = {"B": x.A @ x.A.mT, "A": x.B.mT @ x.B}.get(sigma_on)
        if orthonormal is not None:
            close(orthonormal, torch.eye(4).double())
        else:
            close(x.B.norm(dim=0), x.A.norm(dim=1) * 1.0)


def test_flora_stacks_with_weights_and_scales_hetero_F3_F4_F6() -> None:
    adapters = [one_layer(e[:, :1], matrix([2, 0]), 2.0), one_layer(e[:, 1:], matrix([0, 4]), 2.0)]
    close(play(get_method("flora"), adapters, [0.25, 0.75]), matrix([1, 0], [0, 6]))
    mixed = [one_layer(e[:, :1], matrix([2, 0]), 4.0), one_layer(e, matrix([0, 4], [1, 1]), 2.0)]
    close(play(get_method("flora"), mixed, [0.25, 0.75], lora_alpha=4.0), matrix([2, 6], [1.5, 1.5]))


def test_fedex_lora_is_exact_on_scalars_hetero_FX2() -> None:
    method = get_method("fedex_lora")
    peers = [Peer(0, 1), Peer(1, 1)]
    adapters = [one_layer(matrix([x]), matrix([x])) for x in (1.0, 3.0)]
    state = method.init(one_layer(matrix([0.0]), matrix([1.0])), peers)
    state = method.aggregate(0, state, [ClientUpdate(p, 0.5, {"adapter": a}) for p, a in zip(peers, adapters, strict=True)])
    assert float(state["adapter"].layers["w"].dense()) == pytest.approx(4)
    assert float(tree.dense(tree.total(state["base"])["w"])) == pytest.approx(1)


# --- HetLoRA ---------------------------------------------------------------------------------------------------------


def test_hetlora_weighs_by_norm_hetero_H1() -> None:
    method, peers = get_method("hetlora"), [Peer(0, 1), Peer(1, 2)]
    adapters = [one_layer(e[:, :1], matrix([2, 0])), one_layer(matrix([3, 0], [0, 4]), e)]
    state = method.init(one_layer(torch.zeros(2, 2).double(), e), peers)
    updates = [ClientUpdate(p, 0.5, {"adapter": a}) for p, a in zip(peers, adapters, strict=True)]
    x = method.aggregate(0, state, updates)["adapter"].layers["w"]
    close(x.B, matrix([17 / 7, 0], [0, 20 / 7]))
    close(x.A, matrix([9 / 7, 0], [0, 5 / 7]))
    close(x.dense(), matrix([3.12245, 0], [0, 2.04082]), 1e-5)


def test_norm_of_a_product_without_the_product_hetero_H2() -> None:
    x = random_pair(5)[0].layers["w"]
    assert float(lr.norm(x)) == pytest.approx(float(x.dense().norm()), rel=1e-13)


def test_a_zero_update_has_no_weight_and_all_zero_is_the_mean_hetero_H6() -> None:
    zero, some = one_layer(torch.zeros(2, 1).double(), matrix([1, 0])), one_layer(e[:, :1], matrix([0, 3]))
    close(play(get_method("hetlora"), [zero, some], [0.9, 0.1]), matrix([0, 3], [0, 0]))
    found = play(get_method("hetlora"), [zero, zero], [0.9, 0.1])
    assert not found.any()


# --- SVD redistribution ----------------------------------------------------------------------------------------------


def test_svd_redistribution_restores_the_norm_it_cut() -> None:
    diagonal = one_layer(torch.diag(torch.tensor([4.0, 3.0])).double(), e)
    found = play(get_method("svd_redistribution"), [diagonal], [1.0], Peer(9, 1))
    close(found, matrix([5, 0], [0, 0]))
    plain = play(get_method("svd_redistribution", rescale=False), [diagonal], [1.0], Peer(9, 1))
    close(plain, matrix([4, 0], [0, 0]))


def test_svd_redistribution_caps_the_norm_by_layer() -> None:
    diagonal = one_layer(torch.diag(torch.tensor([4.0, 3.0])).double(), e)
    close(play(get_method("svd_redistribution", norm_cap=1.0), [diagonal], [1.0]), matrix([0.8, 0], [0, 0.6]))
    close(play(get_method("svd_redistribution", norm_cap=9.0), [diagonal], [1.0]), matrix([4, 0], [0, 3]))
    with pytest.raises(ValueError, match=r"norm_cap must be positive, or None for no cap, got -1"):
        get_method("svd_redistribution", norm_cap=-1.0)


def test_the_split_is_balanced() -> None:
    method, peer = get_method("svd_redistribution"), Peer(0, 2)
    state = method.init(one_layer(torch.zeros(2, 2).double(), e), [peer])
    diagonal = one_layer(torch.diag(torch.tensor([4.0, 9.0])).double(), e)
    x = method.aggregate(0, state, [ClientUpdate(peer, 1.0, {"adapter": diagonal})])["adapter"].layers["w"]
    close(x.B, matrix([0, 2], [3, 0]))
    assert math.isclose(float(x.A[0].norm()), 3.0)


def test_hetlora_weighs_products_not_factors_hetero_H3() -> None:
    method, gauge = get_method("hetlora"), torch.diag(torch.tensor([10.0, 0.1, 3.0])).double()
    (plain, _), (turned, _) = random_pair(1), random_pair(1, gauge)
    sizes = [method._size(list(a.layers.values())) for a in (plain, turned)]
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-12)
    assert sizes[0] == pytest.approx(float(plain.layers["w"].dense().norm()), rel=1e-12)


@pytest.mark.parametrize(("scale_policy", "expected"), [("effective", 24.0), ("raw", 3.0)])
def test_hetlora_norms_follow_the_scale_policy(scale_policy: str, expected: float) -> None:
    method = get_method("hetlora", scale_policy=scale_policy)
    assert method._size([LoRA(e[:, :1], matrix([0, 3]), 8.0)]) == pytest.approx(expected)
