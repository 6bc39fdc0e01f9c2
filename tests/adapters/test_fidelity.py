"""How near a merged adapter is to the exact mean, against dense computations."""

import math

import pytest
import torch

import fedelta
from fedelta import lowrank as lr
from fedelta import tree
from fedelta.adapters.fidelity import fidelity
from fedelta.lowrank import LoRA
from fedelta.models.toy import random_adapter
from fedelta.tree import Adapter

WEIGHTS = [0.5, 0.2, 0.3]


def three() -> list[Adapter]:
    """Of ranks 2, 3 and 4 in layers of 6 x 5 or so; scales alpha/r, alpha/sqrt(r) and a constant."""
    scales = (8 / 2, 8 / 3**0.5, 0.7)
    drawn = (random_adapter(rank, seed=rank) for rank in (2, 3, 4))
    return [tree.map(lambda x, s=s: LoRA(x.B, x.A, s), a) for a, s in zip(drawn, scales, strict=True)]


@pytest.mark.parametrize(("method", "ranks"), [("flexlora", [1]), ("flexlora", [3]), ("zeropad", [4]), ("flora", None)])
def test_the_measures_are_those_of_dense_matrices(method: str, ranks: list[int] | None):
    given = three()
    merged = fedelta.aggregate(given, weights=WEIGHTS, method=method, ranks=ranks)[0]
    found = fidelity(merged, given, WEIGHTS)
    means, results, cuts = [], [], []
    for facts in found.layers:
        x = merged.layers[facts.layer]
        mean = sum(w * a.layers[facts.layer].dense() for w, a in zip(WEIGHTS, given, strict=True))
        singular = torch.linalg.svdvals(mean)
        assert facts.rank == x.rank
        assert facts.norm == pytest.approx(float(mean.norm()), rel=1e-12)
        assert facts.energy == pytest.approx(float((x.dense().norm() / mean.norm()) ** 2), rel=1e-10)
        assert facts.distance == pytest.approx(float((x.dense() - mean).norm() / mean.norm()), abs=1e-12)
        assert facts.least == pytest.approx(float(singular[x.rank :].norm() / mean.norm()), abs=1e-12)
        means, results, cuts = [*means, mean.flatten()], [*results, x.dense().flatten()], [*cuts, singular[x.rank :]]
    mean, result = torch.cat(means), torch.cat(results)
    assert found.distance == pytest.approx(float((result - mean).norm() / mean.norm()), abs=1e-12)
    assert found.energy == pytest.approx(float((result.norm() / mean.norm()) ** 2), rel=1e-10)
    assert found.least == pytest.approx(float(torch.cat(cuts).norm() / mean.norm()), abs=1e-12)


def test_the_best_approximation_has_the_least_distance_and_the_energy_that_is_left():
    given = three()
    (merged,) = fedelta.aggregate(given, weights=WEIGHTS, method="flexlora", ranks=[2])
    for facts in [*(found := fidelity(merged, given, WEIGHTS)).layers, found]:
        assert facts.distance == pytest.approx(facts.least, rel=1e-9)
        assert facts.distance is not None
        assert facts.energy == pytest.approx(1 - facts.distance**2, rel=1e-9)
    (padded,) = fedelta.aggregate(given, weights=WEIGHTS, method="zeropad", ranks=[4])
    worse = fidelity(padded, given, WEIGHTS)
    assert worse.distance is not None
    assert worse.least is not None
    assert worse.distance > worse.least + 0.01


def test_a_small_distance_keeps_its_digits():
    """Inner products would lose them below 1e-8."""
    given = three()[:1]
    moved = tree.map(lambda x: LoRA(x.B * (1 + 1e-11), x.A, x.scale), given[0])
    assert fidelity(moved, given, [1.0]).distance == pytest.approx(1e-11, rel=1e-3)


def test_a_mean_that_is_zero_has_no_shares():
    x = random_adapter(2, seed=1)
    opposite = tree.map(lambda x: LoRA(-x.B, x.A, x.scale), x)
    zero = tree.map(lambda x: lr.with_factor(x, "B", torch.zeros_like(x.B)), x)
    found = fidelity(x, [zero, zero], [0.5, 0.5])
    assert (found.energy, found.distance, found.least) == (None, None, None)
    assert math.isclose(found.layers[0].norm, 0)
    assert fidelity(zero, [x, opposite], [1.0, 0.0]).distance == pytest.approx(1)
