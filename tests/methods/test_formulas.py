"""Every method against its formula, computed densely in float64 with numpy from the uploaded factors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch

from fedelta.methods import get_method, list_methods, method_class

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


@dataclass(frozen=True)
class Item:
    """One client's part in one layer."""

    p: float
    s: float
    B: np.ndarray
    A: np.ndarray
    size: float  # ||dW||_F of the client over all layers

    @property
    def delta(self) -> np.ndarray:
        return self.s * self.B @ self.A

    @property
    def rank(self) -> int:
        return self.A.shape[0]


Oracle = Callable[[Sequence[Item], int], np.ndarray]
"""(clients, receiver's rank) -> dW at the receiver."""


def mean_of_deltas(items: Sequence[Item], rank: int) -> np.ndarray:
    return sum(x.p * x.delta for x in items)


def mean_of_factors(items: Sequence[Item], rank: int, weights: Sequence[float]) -> np.ndarray:
    o, i, r_max = items[0].B.shape[0], items[0].A.shape[1], max(x.rank for x in items)
    B, A = np.zeros((o, r_max)), np.zeros((r_max, i))
    for w, x in zip(weights, items, strict=True):
        B[:, : x.rank] += w * x.s * x.B
        A[: x.rank] += w * x.A
    return B[:, :rank] @ A[:rank]


def fedavg(items: Sequence[Item], rank: int) -> np.ndarray:
    return mean_of_factors(items, rank, [x.p for x in items])


def zeropad_uniform(items: Sequence[Item], rank: int) -> np.ndarray:
    return mean_of_factors(items, rank, [1 / len(items)] * len(items))


def hetlora(items: Sequence[Item], rank: int) -> np.ndarray:
    return mean_of_factors(items, rank, [x.size / sum(y.size for y in items) for x in items])


def hetlora_by_layer(items: Sequence[Item], rank: int) -> np.ndarray:
    sizes = [np.linalg.norm(x.delta) for x in items]
    return mean_of_factors(items, rank, [s / sum(sizes) for s in sizes])


def best_of_rank(M: np.ndarray, rank: int) -> np.ndarray:
    U, S, Vh = np.linalg.svd(M, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vh[:rank]


def flexlora(items: Sequence[Item], rank: int) -> np.ndarray:
    r_max = max(x.rank for x in items)
    return best_of_rank(best_of_rank(mean_of_deltas(items, rank), r_max), rank)


def svd_redistribution(items: Sequence[Item], rank: int) -> np.ndarray:
    M = mean_of_deltas(items, rank)
    cut = best_of_rank(M, rank)
    return cut * np.linalg.norm(M) / np.linalg.norm(cut)


def svd_redistribution_capped(items: Sequence[Item], rank: int) -> np.ndarray:
    M = mean_of_deltas(items, rank)
    return flexlora(items, rank) * min(1.0, 0.7 / np.linalg.norm(M))


def ffa_lora(items: Sequence[Item], rank: int) -> np.ndarray:
    widest = max(items, key=lambda x: x.rank)
    B = np.zeros_like(widest.B)
    for j in range(widest.rank):
        owners = [x for x in items if x.rank > j]
        B[:, j] = sum(x.p * x.s * x.B[:, j] for x in owners) / sum(x.p for x in owners)
    return B[:, :rank] @ widest.A[:rank]


def lora_fair(items: Sequence[Item], rank: int) -> np.ndarray:
    s = max(items, key=lambda x: x.rank).s  # the server's, at the largest rank
    B, A = (np.zeros(shape) for shape in ((items[0].B.shape[0], 5), (5, items[0].A.shape[1])))
    for x in items:
        B[:, : x.rank] += x.p * (x.s / s) * x.B
        A[: x.rank] += x.p * x.A
    missed = mean_of_deltas(items, rank) / s - B @ A
    B += missed @ A.T @ np.linalg.inv(A @ A.T + 0.01 * np.eye(5))
    return s * B[:, :rank] @ A[:rank]


def by_owners(items: Sequence[Item], component: int, shrink: float = 1.0) -> list[float]:
    """The weight of a component at each of the clients that have it, 0 at the others."""
    owners = sum(x.p for x in items if x.rank > component)
    return [x.p / owners**shrink if x.rank > component else 0.0 for x in items]


def rbla(items: Sequence[Item], rank: int) -> np.ndarray:
    B, A = np.zeros((items[0].B.shape[0], rank)), np.zeros((rank, items[0].A.shape[1]))
    for j in range(rank):
        owners = [(w, x) for w, x in zip(by_owners(items, j), items, strict=True) if w]
        B[:, j] = sum(w * x.s * x.B[:, j] for w, x in owners)
        A[j] = sum(w * x.A[j] for w, x in owners)
    return B @ A


def raflora(items: Sequence[Item], rank: int, shrink: float = 1.0) -> np.ndarray:
    r_max = max(x.rank for x in items)
    weights = np.array([by_owners(items, j, shrink) for j in range(r_max)])
    M = sum((weights[: x.rank, k] * x.s * x.B) @ x.A for k, x in enumerate(items))
    return best_of_rank(M, rank)


def ilora_by_slices(items: Sequence[Item], rank: int) -> np.ndarray:
    Q, R = np.linalg.qr(mean_of_deltas(items, rank))
    return Q[:, :rank] @ R[:rank]


def florist(items: Sequence[Item], rank: int, tau: float = 0.99) -> np.ndarray:
    M = mean_of_deltas(items, rank)
    energy = np.linalg.svd(M)[1] ** 2
    return best_of_rank(M, 1 + int(np.argmax(np.cumsum(energy) >= tau * energy.sum())))


CASES: dict[str, tuple[str, dict, Oracle]] = {
    "fedavg": ("fedavg", {}, fedavg),
    "zeropad": ("zeropad", {}, fedavg),
    "zeropad uniform": ("zeropad", {"weights": "uniform"}, zeropad_uniform),
    "hetlora": ("hetlora", {}, hetlora),
    "hetlora by layer": ("hetlora", {"level": "layer"}, hetlora_by_layer),
    "flexlora": ("flexlora", {}, flexlora),
    "flexlora, sigma on A": ("flexlora", {"sigma_on": "A"}, flexlora),
    "flexlora, sigma on both": ("flexlora", {"sigma_on": "both"}, flexlora),
    "svd_redistribution": ("svd_redistribution", {}, svd_redistribution),
    "svd_redistribution capped": ("svd_redistribution", {"norm_cap": 0.7, "rescale": False}, svd_redistribution_capped),
    "flora": ("flora", {}, mean_of_deltas),
    "ilora": ("ilora", {}, mean_of_deltas),
    "ilora, published": ("ilora", {"fixed_start": False, "factor": "qr"}, ilora_by_slices),
    "ilora, published with an SVD": ("ilora", {"fixed_start": False}, flexlora),
    "fedrot_lora, where nothing is turned": ("fedrot_lora", {"on": "B"}, fedavg),  # B = 0; else see its own tests
    "florist": ("florist", {}, florist),
    "florist, less": ("florist", {"tau": 0.7}, partial(florist, tau=0.7)),
    "florist, all": ("florist", {"tau": 1.0}, mean_of_deltas),
    "raflora": ("raflora", {}, raflora),
    "raflora, sigma on A": ("raflora", {"sigma_on": "A"}, raflora),
    "raflora, half way": ("raflora", {"shrink": 0.5}, partial(raflora, shrink=0.5)),
    "raflora, none of it": ("raflora", {"shrink": 0.0}, flexlora),
    "rbla": ("rbla", {}, rbla),
    "replication": ("replication", {}, rbla),
    "fedex_lora": ("fedex_lora", {}, mean_of_deltas),
    "ffa_lora": ("ffa_lora", {}, ffa_lora),
    "rolora": ("rolora", {}, ffa_lora),
    "lora_fair": ("lora_fair", {}, lora_fair),
    "decaf": ("decaf", {}, flexlora),
    "decaf, turned": ("decaf", {"align": "procrustes"}, flexlora),
    "tad_lora": ("tad_lora", {"interval": 1}, fedavg),
    "fedsvd": ("fedsvd", {}, mean_of_deltas),
    "lora_a2": ("lora_a2", {}, mean_of_deltas),
    "fedsvd, warming up": ("fedsvd", {"warmup_rounds": 1}, mean_of_deltas),
    "subspace_reg": ("subspace_reg", {}, flexlora),
    "subspace_reg rescaled": ("subspace_reg", {"rescale": True, "gauge": "balanced"}, svd_redistribution),
    "subspace_reg, other gauge": ("subspace_reg", {"gauge": "orth_a"}, flexlora),
}

COMMON_A = {"ffa_lora", "rolora", "fedsvd", "lora_a2"}
"""Methods that get B of all on one A, in the first round at least."""


def test_every_method_that_aggregates_has_an_oracle() -> None:
    assert {name for name, _, _ in CASES.values()} >= {n for n in list_methods() if method_class(n).one_shot}


def items_of(done, layer: str) -> list[Item]:
    arrays = [{n: (x.scale, x.B.double().numpy(), x.A.double().numpy()) for n, x in a.layers.items()} for a in done.adapters]
    sizes = [np.sqrt(sum(np.linalg.norm(s * B @ A) ** 2 for s, B, A in a.values())) for a in arrays]
    return [Item(p, *a[layer], size) for p, a, size in zip(done.weights, arrays, sizes, strict=True)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("scales", ["constant", "alpha/r", "alpha/sqrt(r)", "patterns"])
@pytest.mark.parametrize("case", CASES)
def test_equals_its_formula(fake_round, case: str, scales: str, dtype: torch.dtype) -> None:
    name, hyper, oracle = CASES[case]
    method = get_method(name, **hyper)
    for seed in range(3):
        ranks = (4, 4, 4) if not method.hetero_rank else tuple(np.random.default_rng(seed).permutation([1, 2, 4, 5]))
        done = fake_round(tuple(map(int, ranks)), scales=scales, seed=seed, dtype=dtype, common_A=name in COMMON_A)
        state = done.run(method)
        for peer in done.peers:
            for layer, found in done.received(method, state, peer).items():
                expected = oracle(items_of(done, layer), peer.rank_of(layer))
                error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
                assert error < TOLERANCE[dtype], (seed, layer, peer.rank_of(layer))


@pytest.mark.parametrize("case", CASES)
def test_heads_are_weighted_means(fake_round, case: str) -> None:
    name, hyper, _ = CASES[case]
    done = fake_round((4, 4, 4), common_A=name in COMMON_A)
    method = get_method(name, **hyper)
    state = done.run(method)
    weights = [1 / 3] * 3 if "uniform" in case else done.weights
    expected = sum(w * a.dense["bias"] for w, a in zip(weights, done.adapters, strict=True))
    torch.testing.assert_close(state["adapter"].dense["bias"], expected, rtol=1e-12, atol=1e-14)
