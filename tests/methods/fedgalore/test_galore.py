"""Subspaces of GaLore: sides, bases, and the transport of moments between them."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from fedelta.lowrank import LoRA
from fedelta.methods._fedgalore.galore import (
    Side,
    basis_of,
    completed_basis,
    coordinates,
    leading_basis,
    project_back,
    seeded_basis,
    trained_factor,
    transport,
)
from fedelta.tree import Factor


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(seed: int, n: int, r: int) -> Tensor:
    return torch.linalg.qr(normal(seed, n, r)).Q


def plain(v: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """The transport without its completion."""
    return v @ (new.mT @ old).square().mT


@pytest.mark.parametrize(
    ("shape", "side", "expected"),
    [
        ((9, 4), "galore", "B"),
        ((4, 9), "galore", "A"),
        ((9, 4), "small_state", "A"),
        ((4, 9), "small_state", "B"),
        ((6, 6), "galore", "B"),
        ((6, 6), "small_state", "B"),
    ],
)
def test_the_side_rule_galore_G1(shape: tuple[int, int], side: Side, expected: Factor) -> None:
    assert trained_factor(shape, side) == expected


@pytest.mark.parametrize("which", ["B", "A"])
@pytest.mark.parametrize(("o", "i"), [(9, 5), (5, 9), (6, 6)])
def test_coordinates_come_back_from_their_delta_galore_G1(o: int, i: int, which: Factor) -> None:
    m, n = (o, i) if which == "B" else (i, o)
    Q, C = seeded_basis(0, 0, "layer", n, 3), normal(0, m, 3)
    torch.testing.assert_close(Q.mT @ Q, torch.eye(3).double(), rtol=0, atol=1e-12)
    x = project_back(C, Q, which, 0.5)
    assert (x.shape, x.rank, x.scale) == ((o, i), 3, 0.5)
    assert torch.equal(coordinates(x, which), C)
    assert torch.equal(basis_of(x, which), Q)
    W = x.dense() / 0.5
    torch.testing.assert_close(W @ Q if which == "B" else W.mT @ Q, C, rtol=0, atol=1e-12)


def test_a_basis_is_drawn_alike_everywhere_galore_G5() -> None:
    here = seeded_basis(7, 2, "encoder.query", 50, 4)
    code = (
        "from fedelta.methods._fedgalore.galore import seeded_basis; import sys;"
        "sys.stdout.buffer.write(seeded_basis(7, 2, 'encoder.query', 50, 4).numpy().tobytes())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert there == here.numpy().tobytes()
    for other in ((8, 2, "encoder.query"), (7, 3, "encoder.query"), (7, 2, "encoder.key")):
        assert not torch.allclose(seeded_basis(*other, 50, 4).abs(), here.abs())


def test_leading_vectors_are_those_of_the_svd_and_completed() -> None:
    x = LoRA(normal(5, 8, 2), normal(6, 2, 6), 0.5)
    U, _, Vh = torch.linalg.svd(x.dense())
    sides: dict[Factor, Tensor] = {"A": U[:, :2], "B": Vh[:2].mT}
    for which, vectors in sides.items():
        Q = leading_basis(x, which, 2)
        torch.testing.assert_close(Q @ Q.mT, vectors @ vectors.mT, rtol=0, atol=1e-12)
        more = leading_basis(x, which, 4)
        torch.testing.assert_close(more.mT @ more, torch.eye(4).double(), rtol=0, atol=1e-12)
        assert torch.equal(more[:, :2], Q)
    assert torch.equal(completed_basis(U, 3), U[:, :3])


def test_transport_to_the_same_basis_changes_nothing_galore_G7() -> None:
    Q, v = orthonormal(0, 20, 4), normal(1, 7, 4).square()
    torch.testing.assert_close(transport(v, Q, Q), v, rtol=1e-12, atol=0)


def test_a_turn_within_the_span_keeps_the_sum_galore_G7() -> None:
    Q, v = orthonormal(0, 20, 4), normal(1, 7, 4).square()
    found = transport(v, Q, Q @ orthonormal(2, 4, 4))
    torch.testing.assert_close(found.sum(1), v.sum(1), rtol=1e-12, atol=0)
    assert bool((found >= 0).all())
    assert not torch.allclose(found, v)


def test_transport_predicts_the_moments_of_independent_coordinates_galore_G7() -> None:
    old, turn = orthonormal(0, 20, 4), orthonormal(2, 4, 3)  # a new basis of three columns within the old span
    deviation = torch.tensor([0.1, 1.0, 3.0, 10.0]).double()
    samples = normal(3, 400_000, 4) * deviation
    expected = (samples @ turn).square().mean(0)
    found = transport(deviation.square()[None], old, old @ turn)[0]
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize("q", [2, 4, 6])
def test_moments_that_are_alike_stay_so_on_any_basis_galore_G7(q: int) -> None:
    v = normal(0, 7, 1).square().expand(-1, 4)
    torch.testing.assert_close(
        transport(v, orthonormal(1, 20, 4), orthonormal(2, 20, q)), v[:, :1].expand(-1, q), rtol=1e-12, atol=0
    )


def test_unrelated_bases_need_the_completion_galore_G7() -> None:
    """n = 256 and r = 8: what the old span does not tell is nearly everything."""
    G = normal(0, 256, 64)  # independent entries of variance one, so that every coordinate's moment is 1
    old, new = orthonormal(1, 256, 8), orthonormal(2, 256, 8)
    v = (G.mT @ old).square()
    true = torch.ones(64, 8).double()
    assert 0.8 < float((transport(v, old, new) / true).median()) < 1.3
    assert float((plain(v, old, new) / true).median()) < 0.05


def test_transport_keeps_the_dtype() -> None:
    v = torch.rand(5, 3)
    assert transport(v, orthonormal(0, 9, 3).float(), orthonormal(1, 9, 2)).dtype == torch.float32
