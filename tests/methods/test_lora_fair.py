"""LoRA-FAIR: the correction of B in closed form and by descent."""

import numpy as np
import pytest
import torch

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate
from fedelta.methods import get_method
from fedelta.methods.lora_fair import _Problem
from fedelta.models.toy import random_adapter, toy_template
from fedelta.peers import Peer
from fedelta.tree import Adapter

WEIGHTS = (0.2, 0.5, 0.3)


def one(value: float) -> Adapter:
    return Adapter({"w": LoRA(torch.full((1, 1), value).double(), torch.full((1, 1), value).double())})


def aggregated(adapters: list[Adapter], weights: tuple[float, ...] = WEIGHTS, **hyper: object) -> Adapter:
    first = adapters[0]
    peers = [Peer(k, next(iter(a.layers.values())).rank) for k, a in enumerate(adapters)]
    template = tree.map(lambda x: lr.with_factor(x, "B", torch.zeros_like(x.B)), first)
    method = get_method("lora_fair", **hyper)
    updates = [ClientUpdate(p, w, {"adapter": a}) for p, w, a in zip(peers, weights, adapters, strict=True)]
    return method.aggregate(0, method.init(template, peers), updates)["adapter"]


def three() -> list[Adapter]:
    return [random_adapter(2, seed=k) for k in range(3)]


def dense(adapters: list[Adapter], layer: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """M, B' and A of a layer."""
    xs = [a.layers[layer] for a in adapters]
    pairs = [(w, x.B.numpy(), x.A.numpy()) for w, x in zip(WEIGHTS, xs, strict=True)]
    return sum(w * B @ A for w, B, A in pairs), sum(w * B for w, B, _ in pairs), sum(w * A for w, _, A in pairs)


@pytest.mark.parametrize(("lam", "shift"), [(0.0, 0.5), (0.01, 0.498753)])
def test_ridge_on_scalars_hetero_LF1(lam: float, shift: float) -> None:
    x = aggregated([one(1.0), one(3.0)], (0.5, 0.5), lam=lam).layers["w"]
    assert float(x.B) - 2 == pytest.approx(shift, abs=1e-6)
    assert float(x.A) == 2


def test_the_ends_of_the_ridge_hetero_LF2() -> None:
    for layer, x in aggregated(three(), lam=1e12).layers.items():
        _, B, A = dense(three(), layer)
        np.testing.assert_allclose(x.B.numpy(), B, rtol=1e-9)
        np.testing.assert_allclose(x.A.numpy(), A, rtol=1e-12)
    for layer, x in aggregated(three(), lam=0.0).layers.items():
        M, _, A = dense(three(), layer)
        left = M - x.dense().numpy()
        np.testing.assert_allclose(left @ A.T, 0, atol=1e-12)
        np.testing.assert_allclose(left, M @ (np.eye(A.shape[1]) - np.linalg.pinv(A) @ A), atol=1e-12)


def objective(x: LoRA, B: np.ndarray, M: np.ndarray, lam: float) -> float:
    product, shift = x.dense().numpy(), x.B.numpy() - B
    return 1 - (M * product).sum() / np.linalg.norm(M) / np.linalg.norm(product) + lam * np.linalg.norm(shift)


@pytest.mark.parametrize("lam", [0.0, 0.01, 10.0])
def test_descent_lowers_the_cosine_objective_step_by_step_hetero_LF3(lam: float) -> None:
    def values_of(adapter: Adapter) -> list[float]:
        return [objective(x, B, M, lam) for x, (M, B, _) in ((x, dense(three(), n)) for n, x in adapter.layers.items())]

    plain = tree.mean_factors(WEIGHTS, three())
    runs = [aggregated(three(), solver="cosine", lam=lam, steps=n) for n in (1, 2, 4, 8, 16, 64, 500)]
    values = np.array([values_of(adapter) for adapter in (plain, *runs)])
    assert (np.diff(values, axis=0) <= 1e-9).all()
    if lam < 10:
        assert (values[-1] < values[0] - 1e-3).all()
    else:
        np.testing.assert_allclose(values[-1], values[0])  # a correction that costs more than it can gain is not made


def test_descent_finds_the_best_angle_that_A_allows_hetero_LF3() -> None:
    """Without a cost the angle between M and its projection on the rows of A, which the ridge with lam = 0 reaches."""
    exact, found = aggregated(three(), lam=0.0), aggregated(three(), solver="cosine", lam=0.0, steps=2000)
    for layer, x in found.layers.items():
        M, B, _ = dense(three(), layer)
        assert objective(x, B, M, 0.0) == pytest.approx(objective(exact.layers[layer], B, M, 0.0), abs=1e-6)


def test_the_gradient_of_the_cosine_objective_is_its_own() -> None:
    mean, missed = random_adapter(2, seed=0).layers["hidden"], random_adapter(2, seed=1).layers["hidden"].B
    shift = random_adapter(2, seed=2).layers["hidden"].B
    problem = _Problem(mean, missed, 3.0, 0.3)
    _, gradient = problem.objective(shift)
    for at in ((0, 0), (3, 1)):
        step = torch.zeros_like(shift)
        step[at] = 1e-6
        rise = problem.objective(shift + step)[0] - problem.objective(shift - step)[0]
        assert float(gradient[at]) == pytest.approx(rise / 2e-6, rel=1e-6)


@pytest.mark.parametrize("solver", ["ridge", "cosine"])
def test_a_common_A_is_exact_and_not_corrected_drift_LF4(solver: str) -> None:
    common = random_adapter(2, seed=9)
    same_A = [tree.map(lambda x, y: lr.with_factor(x, "A", y.A), a, common) for a in three()]
    for layer, x in aggregated(same_A, solver=solver).layers.items():
        M, B, _ = dense(same_A, layer)
        np.testing.assert_allclose(x.B.numpy(), B, rtol=0, atol=1e-15)
        np.testing.assert_allclose(x.dense().numpy(), M, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lam", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_error_is_never_above_that_of_the_means_drift_LF4(lam: float, seed: int) -> None:
    adapters = [random_adapter(2, seed=10 * seed + k) for k in range(3)]
    for layer, x in aggregated(adapters, lam=lam).layers.items():
        M, B, A = dense(adapters, layer)
        assert np.linalg.norm(M - x.dense().numpy()) < np.linalg.norm(M - B @ A)


@pytest.mark.parametrize("solver", ["ridge", "cosine"])
def test_a_round_without_an_update_leaves_zero(solver: str) -> None:
    start = tree.map(lambda x: x, toy_template(2))
    for layer, x in aggregated([start, start, start], solver=solver).layers.items():
        assert not x.B.any()
        assert torch.equal(x.A, start.layers[layer].A)


@pytest.mark.parametrize("hyper", [{"lam": -1.0}, {"steps": 0}])
def test_values_out_of_range_are_refused(hyper: dict) -> None:
    with pytest.raises(ValueError, match="LoRAFAIR needs lam >= 0 and steps >= 1"):
        get_method("lora_fair", **hyper)
