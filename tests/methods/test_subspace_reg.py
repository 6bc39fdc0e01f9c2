"""Subspace-Reg: the penalty in every reading, the gauges of its server, and what an overlap near 1 does not show."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedelta import lowrank as lr
from fedelta import topology, tree
from fedelta.client import Training
from fedelta.engines.gossip import gossip
from fedelta.engines.server import federate
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate
from fedelta.methods import get_method
from fedelta.models.toy import random_adapter, toy_federation, toy_template
from fedelta.peers import Peer
from fedelta.runs.config import load_config
from fedelta.runs.config.choices import choices_of
from fedelta.tree import Adapter

GAUGES = ["orth_b", "orth_a", "balanced"]


def leaves(seed: int, scale: float = 2.0) -> Adapter:
    return tree.map_tensors(lambda x: x.clone().requires_grad_(), random_adapter(3, seed=seed, scale=scale))


def gradients(value: Tensor, at: Adapter) -> dict[str, Tensor]:
    named = {n: p for n, p in tree.parameters(at).items() if "lora" in n}
    return dict(zip(named, torch.autograd.grad(value, list(named.values())), strict=True))


def by_hand(x: LoRA, g: LoRA, mu: float, alpha: float, lam: float, s: float) -> Tensor:
    product = (s * x.B @ x.A - s * g.B @ g.A).square().sum()
    return mu / 2 * product + alpha / 2 * (x.B - g.B).square().sum() + lam / 2 * (x.A.square().sum() + x.B.square().sum())


def test_penalty_and_gradients_are_those_of_the_dense_formula_sub_T4() -> None:
    method = get_method("subspace_reg", mu=0.7, alpha=0.4, lam=0.2)
    live, reference = leaves(0), random_adapter(3, seed=1, scale=2.0)
    found = method.regulariser().towards(reference)(live)
    expected = sum(by_hand(x, reference.layers[n], 0.7, 0.4, 0.2, 2.0) for n, x in live.layers.items()) / 2
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    dense = gradients(expected, live)
    for name, grad in gradients(found, live).items():
        torch.testing.assert_close(grad, dense[name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("objective", "strengths", "scale", "share"),
    [
        ("released", (0.7, 0.4, 0.2), 2.0, 0.5),
        ("equation", (0.7, 0.0, 0.2), 1.0, 1.0),
        ("algorithm", (0.7, 0.4, 0.0), 1.0, 1.0),
    ],
)
def test_three_readings_of_the_penalty_sub_T4(objective: str, strengths: tuple, scale: float, share: float) -> None:
    method = get_method("subspace_reg", mu=0.7, alpha=0.4, lam=0.2, objective=objective)
    live, reference = leaves(0), random_adapter(3, seed=1, scale=2.0)
    expected = share * sum(by_hand(x, reference.layers[n], *strengths, scale) for n, x in live.layers.items())
    torch.testing.assert_close(method.regulariser().towards(reference)(live), expected, rtol=1e-12, atol=0)


def test_released_gradient_of_one_layer_sub_T4() -> None:
    live, reference = leaves(0), random_adapter(3, seed=1, scale=2.0)
    found = gradients(get_method("subspace_reg", mu=0.7, alpha=0.4, lam=0.2).regulariser().towards(reference)(live), live)
    x, g = live.layers["hidden"], reference.layers["hidden"]
    apart = x.B @ x.A - g.B @ g.A
    torch.testing.assert_close(found["hidden.lora_A"], (0.7 * 4 * x.B.mT @ apart + 0.2 * x.A) / 2)
    torch.testing.assert_close(found["hidden.lora_B"], (0.7 * 4 * apart @ x.A.mT + 0.4 * (x.B - g.B) + 0.2 * x.B) / 2)


def test_nothing_pulls_at_the_reference_sub_T4() -> None:
    reference = leaves(0)
    value = get_method("subspace_reg", lam=0.0).regulariser().towards(tree.map_tensors(Tensor.detach, reference))(reference)
    assert abs(value.item()) < 1e-25
    assert all(g.abs().max() < 1e-12 for g in gradients(value, reference).values())


def test_a_rotation_within_the_span_of_B_costs_sub_T4() -> None:
    reference = random_adapter(3, seed=1)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double()).Q
    turned = tree.map(lambda x: lr.with_factor(x, "B", x.B @ turn), reference)
    penalty = get_method("subspace_reg", mu=0.0, alpha=1.0, lam=0.0).regulariser().towards(reference)
    assert penalty(turned).item() > 0.1


def test_first_round_pulls_B_to_zero_sub_T4() -> None:
    penalty = get_method("subspace_reg", mu=0.0, alpha=1.0, lam=0.0).regulariser().towards(toy_template(3))
    live = random_adapter(3, seed=0)
    expected = sum(x.B.square().sum().item() for x in live.layers.values()) / 4
    assert penalty(live).item() == pytest.approx(expected)


def test_without_strengths_there_is_no_penalty() -> None:
    off = get_method("subspace_reg", mu=0.0, alpha=0.0, lam=0.0)
    assert off.regulariser().towards(random_adapter(2, seed=0)) is None
    plain = get_method("flexlora", sigma_on="A")
    for a, b in zip(*(federate(m, toy_federation((2, 3)), rounds=3) for m in (off, plain)), strict=True):
        for n, x in a.state["adapter"].layers.items():
            assert torch.equal(x.B, b.state["adapter"].layers[n].B)
            assert torch.equal(x.A, b.state["adapter"].layers[n].A)


def test_the_penalty_holds_clients_back() -> None:
    def moves(**strengths: float) -> tuple[float, float]:
        """How far dW and B of the first client went from what was sent in the third round."""
        *_, done = federate(get_method("subspace_reg", **strengths), toy_federation((2, 2)), rounds=3)
        pairs = [(x, done.before["adapter"].layers[n]) for n, x in done.updates[0].content["adapter"].layers.items()]
        return sum(float(lr.dist2(x, g)) for x, g in pairs), sum(float((x.B - g.B).square().sum()) for x, g in pairs)

    free = moves(mu=0.0, alpha=0.0, lam=0.0)
    assert moves(mu=5.0, alpha=0.0, lam=0.0)[0] < 0.9 * free[0]
    assert moves(mu=0.0, alpha=5.0, lam=0.0)[1] < 0.9 * free[1]


def aggregated(adapters: list[Adapter], **hyper: object) -> tuple[Adapter, LoRA]:
    """The server's adapter after these updates with weights .3 and .7, and the exact mean at `hidden`."""
    peers = [Peer(k, 3, lora_alpha=6.0) for k in range(len(adapters))]
    method = get_method("subspace_reg", **hyper)
    updates = [ClientUpdate(p, w, {"adapter": a}) for p, w, a in zip(peers, (0.3, 0.7), adapters, strict=True)]
    state = method.aggregate(0, method.init(toy_template(3), peers), updates)
    return state["adapter"], lr.stack([0.3, 0.7], [a.layers["hidden"] for a in adapters])


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("gauge", GAUGES)
def test_server_sends_the_best_approximation_in_its_gauge_sub_T1(gauge: str, rescale: bool) -> None:
    adapter, exact = aggregated([random_adapter(3, seed=k, scale=2.0) for k in (0, 1)], gauge=gauge, rescale=rescale)
    x, M = adapter.layers["hidden"], exact.dense()
    U, S, Vh = torch.linalg.svd(M)
    best = U[:, :3] @ torch.diag(S[:3]) @ Vh[:3]
    rho2 = float(M.norm() / best.norm()) if rescale else 1.0
    torch.testing.assert_close(x.dense(), rho2 * best, rtol=1e-10, atol=1e-12)
    eye = rho2 * torch.eye(3, dtype=torch.float64)
    if gauge == "orth_b":
        torch.testing.assert_close(x.B.mT @ x.B, eye, rtol=1e-10, atol=1e-12)
    elif gauge == "orth_a":
        torch.testing.assert_close(x.A @ x.A.mT, eye, rtol=1e-10, atol=1e-12)
    else:
        torch.testing.assert_close(x.B.norm(dim=0), x.A.norm(dim=1), rtol=1e-10, atol=1e-12)
    if rescale:
        assert float(x.dense().norm()) == pytest.approx(float(M.norm()), rel=1e-10)


def test_the_default_departs_from_the_released_code_as_far_as_its_docstring_says() -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    peers, template = [Peer(k, 8) for k in range(3)], Adapter({"w": LoRA(torch.zeros(64, 8).double(), drawn(8, 48))})
    sent = [Adapter({"w": LoRA(drawn(64, 8), drawn(8, 48))}) for _ in peers]

    def played(**hyper: object) -> LoRA:
        method = get_method("subspace_reg", **hyper)
        updates = [ClientUpdate(p, 1 / 3, {"adapter": a}) for p, a in zip(peers, sent, strict=True)]
        return method.aggregate(0, method.init(template, peers), updates)["adapter"].layers["w"]

    ours, theirs = played(), played(rescale=True)
    assert (lr.dist2(ours, theirs) / lr.norm(ours) ** 2).sqrt().item() == pytest.approx(0.20, abs=0.005)


def test_the_released_settings_are_a_config() -> None:
    path = Path(__file__).resolve().parents[2] / "experiments" / "subspace_reg" / "released.yaml"
    config = load_config(path)
    chosen = choices_of(config)
    assert chosen.method == get_method("subspace_reg", rescale=True, norm_cap=15)
    assert chosen.training.local_steps == 4


@pytest.mark.parametrize("gauge", [*GAUGES, "keep"])
def test_norm_cap(gauge: str) -> None:
    adapters = [random_adapter(3, seed=k, scale=2.0) for k in (0, 1)]
    cut, free = (aggregated(adapters, gauge=gauge, norm_cap=c)[0].layers["hidden"].dense() for c in (0.5, None))
    torch.testing.assert_close(cut / cut.norm(), free / free.norm(), rtol=1e-10, atol=1e-12)
    assert float(cut.norm()) <= 0.5 + 1e-12


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("gauge", [*GAUGES, "keep"])
def test_identical_clients_and_one_client_are_fixed_points_sub_T6_T7(gauge: str, rescale: bool) -> None:
    given = random_adapter(3, seed=0, scale=2.0)
    adapter, _ = aggregated([given, given], gauge=gauge, rescale=rescale)
    torch.testing.assert_close(adapter.layers["hidden"].dense(), given.layers["hidden"].dense(), rtol=1e-10, atol=1e-12)


def test_gauge_keep_is_the_mean_of_factors_at_equal_ranks() -> None:
    adapters = [random_adapter(3, seed=k, scale=2.0) for k in (0, 1)]
    found = aggregated(adapters, gauge="keep")[0].layers["hidden"]
    expected = tree.mean_factors([0.3, 0.7], adapters).layers["hidden"]
    assert torch.equal(found.B, expected.B)
    assert torch.equal(found.A, expected.A)
    with pytest.raises(ValueError, match="subspace_reg with gauge 'keep' needs equal ranks"):
        list(federate(get_method("subspace_reg", gauge="keep"), toy_federation((2, 3)), rounds=1))


def test_overlap_near_one_is_the_gauge_and_not_the_penalty_sub_T8() -> None:
    clients = toy_federation((2, 2, 2), disagreement=1.0)
    for client in clients:
        client.training = Training(local_steps=4, batch_size=8, learning_rate=1e-4)  # AdamW

    def overlap(name: str, **hyper: object) -> float:
        *_, done = federate(get_method(name, **hyper), clients, rounds=4)
        worst = [
            torch.cos(lr.principal_angles(u.content["adapter"].layers[n].B, done.state["adapter"].layers[n].B)).square().mean()
            for u in done.updates
            for n in done.state["adapter"].layers
        ]
        return float(torch.stack(worst).mean())

    off = overlap("subspace_reg", mu=0.0, alpha=0.0, lam=0.0)
    assert off > 0.9999
    assert abs(overlap("subspace_reg", mu=5.0, alpha=1.0) - off) < 1e-4
    assert overlap("fedavg") < 0.999


def test_nodes_of_a_ring_come_together() -> None:
    def spread(mixing: Tensor) -> float:
        *_, done = gossip(get_method("subspace_reg"), toy_federation((2, 2, 2, 2)), rounds=12, mixing=mixing)
        adapters = [s["adapter"] for s in done.state.values()]
        return sum(float(lr.dist2(a.layers[n], adapters[0].layers[n])) for a in adapters for n in a.layers)

    assert spread(topology.ring(4)) < 0.3 * spread(torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("hyper", [{"mu": -1.0}, {"alpha": -1.0}, {"lam": -1e-9}])
def test_negative_strengths_are_refused(hyper: dict) -> None:
    with pytest.raises(ValueError, match="mu, alpha and lam must not be negative"):
        get_method("subspace_reg", **hyper)
