"""AJIVE on planted signals, on its degenerate inputs, and against frames that are really drawn."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fedelta import lowrank as lr
from fedelta.numerics import ajive
from fedelta.numerics.ajive import Ajive, decompose, read_settings

FIVE = Ajive(energy=1.0, max_rank=5)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(count: int, noise: float, seed: int = 0, *, joint: int = 3) -> tuple[Tensor, list[Tensor]]:
    """Joint scores (64, joint), and blocks (64, 12) of those, of two individual directions each, and of noise."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    scores = draw(64, joint)
    return scores, [scores @ draw(joint, 12) + draw(64, 2) @ draw(2, 12) + noise * draw(64, 12) for _ in range(count)]


def angle(x: Tensor, y: Tensor) -> float:
    """The largest principal angle, in degrees."""
    return math.degrees(float(lr.principal_angles(x, y).max()))


@pytest.mark.parametrize(
    ("count", "noise", "median", "largest"), [(3, 0.05, 1.0, 1.6), (3, 0.2, 4.0, 6.5), (8, 0.05, 0.6, 0.8), (8, 0.2, 2.3, 3.0)]
)
def test_a_planted_joint_part_is_found_galore_A1(count: int, noise: float, median: float, largest: float) -> None:
    angles = []
    for seed in range(10):
        scores, blocks = planted(count, noise, seed)
        found = decompose(blocks, FIVE, seed=seed)
        assert (found.joint_rank, found.ranks) == (3, (5,) * count)
        angles.append(angle(scores, found.basis))
    assert np.median(angles) < median
    assert max(angles) < largest


def test_the_error_falls_with_the_number_of_blocks_galore_A1() -> None:
    errors = [
        np.median([angle(s, decompose(b, FIVE).basis) for s, b in (planted(k, 0.2, i) for i in range(8))]) for k in (3, 8)
    ]
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("count", [2, 3, 8])
def test_without_noise_nothing_is_lost_to_rounding_galore_A2(count: int) -> None:
    for seed in range(10):
        scores, blocks = planted(count, 0.0, seed)
        found = decompose(blocks, FIVE)
        assert found.joint_rank == 3
        assert angle(scores, found.basis) < 1e-5


def test_without_a_joint_part_there_is_none_galore_A2() -> None:
    ranks = [
        decompose(planted(3, 0.05, seed, joint=0)[1], Ajive(energy=1.0, max_rank=2), seed=seed).joint_rank for seed in range(10)
    ]
    assert ranks == [0] * 10


def test_identical_blocks_are_joint_to_their_rank_galore_A2() -> None:
    X = normal(0, 40, 8)
    found = decompose([X] * 4, Ajive(max_rank=3, energy=1.0))
    assert found.joint_rank == 3
    torch.testing.assert_close(found.joint(X), lr.from_dense(X, rank=3).dense(), rtol=0, atol=1e-12)


def test_turns_of_columns_and_orders_of_blocks_do_not_matter_galore_A3() -> None:
    _, blocks = planted(3, 0.2)
    fixed = Ajive(energy=1.0, max_rank=5, joint_rank=3)
    U = decompose(blocks, fixed).basis
    turned = [blocks[0] @ torch.linalg.qr(normal(7, 12, 12)).Q, *blocks[1:]]
    assert angle(decompose(turned, fixed).basis, U) < 1e-6
    assert angle(decompose(blocks[::-1], fixed).basis, U) < 1e-6
    rows = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert angle(decompose([x[rows] for x in blocks], fixed).basis, U[rows]) < 1e-6


def test_joint_parts_are_projections_and_orthogonal_to_individual_ones_galore_A3() -> None:
    _, blocks = planted(3, 0.05)
    found = decompose(blocks, FIVE)
    for k, X in enumerate(blocks):
        J, alone = found.joint(X), found.individual(k, X)
        torch.testing.assert_close(found.joint(J), J, rtol=0, atol=1e-12)
        torch.testing.assert_close(J.mT @ alone, torch.zeros(12, 12).double(), rtol=0, atol=1e-10)
        assert lr.numerical_rank(torch.linalg.svdvals(alone), (64, 12), alone.dtype) == 2
        assert float((X - J - alone).norm() / X.norm()) < 0.05


def test_adversarial_blocks_give_finite_answers_galore_A4() -> None:
    X, zero = normal(0, 20, 6), torch.zeros(20, 6)
    for blocks in ([X, zero], [zero, zero], [X], [X, 1e-30 * X], [X, X.float()], [X[:, :1], X[:, :1]]):
        found = decompose(blocks)
        assert all(bool(torch.isfinite(found.joint(x)).all()) for x in blocks)
    assert decompose([X, zero]).joint_rank == 0
    assert decompose([X, X], Ajive(energy=1.0, max_rank=6)).ranks == (6, 6)


def test_a_seed_decides_galore_A4() -> None:
    _, blocks = planted(3, 0.4)
    first, again = (decompose(blocks, FIVE, seed=3) for _ in range(2))
    assert torch.equal(first.basis, again.basis)


def test_a_direction_that_drowns_in_one_block_is_not_joint() -> None:
    U = torch.linalg.qr(normal(1, 30, 2)).Q
    strong, weak = U @ normal(2, 2, 8), U[:, :1] @ normal(3, 1, 8) + 1e-3 * U[:, 1:] @ normal(4, 1, 8)
    noise = [0.02 * normal(5 + k, 30, 8) for k in range(3)]
    blocks = [strong + noise[0], strong + noise[1], weak + noise[2]]
    assert decompose(blocks[:2], Ajive(energy=1.0, max_rank=2)).joint_rank == 2
    assert decompose(blocks, Ajive(energy=1.0, max_rank=2)).joint_rank == 1


@pytest.mark.parametrize(("rows", "columns", "length"), [(3, 2, 30), (5, 2, 5), (2, 4, 5)])
def test_blocks_of_frames_have_the_law_of_drawn_frames(rows: int, columns: int, length: int) -> None:
    """Moments of the largest singular value, against frames that come from a QR of the whole."""
    found = ajive.frame_tops(np.random.default_rng(0), 4000, rows, columns, length)
    frames = torch.linalg.qr(normal(1, 4000, length, columns)).Q[:, :rows]
    a, b = (torch.linalg.matrix_norm(x, ord=2) for x in (found, frames))
    assert float(a.mean()) == pytest.approx(float(b.mean()), abs=0.02)
    assert float(a.std()) == pytest.approx(float(b.std()), abs=0.02)


@pytest.mark.parametrize(("n", "ranks"), [(40, (3, 2, 4)), (6, (3, 4))])
def test_chance_has_the_law_of_stacked_frames(n: int, ranks: tuple[int, ...]) -> None:
    found = ajive.chance(np.random.default_rng(0), 4000, n, ranks)
    stack = torch.cat([torch.linalg.qr(normal(k, 4000, n, r)).Q for k, r in enumerate(ranks)], dim=2)
    expected = torch.linalg.matrix_norm(stack, ord=2).square().numpy()
    np.testing.assert_allclose(np.percentile(found, [5, 50, 95]), np.percentile(expected, [5, 50, 95]), rtol=0.02)


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong in ({"energy": 0.0}, {"energy": 1.5}, {"percentile": (5,)}, {"percentile": (-1, 95)}):
        with pytest.raises(ValueError, match=r"ajive needs 0 < energy <= 1 and two values of percentile"):
            read_settings(wrong)
    for wrong in ({"n_samples": 0}, {"max_rank": 0}, {"joint_rank": -1}):
        with pytest.raises(ValueError, match=f"ajive needs {next(iter(wrong))} of at least"):
            read_settings(wrong)
    with pytest.raises(ValueError, match="no setting 'joint_rnk'; did you mean 'joint_rank'"):
        read_settings({"joint_rnk": 2})
    assert read_settings({"percentile": [1, 99]}) == Ajive(percentile=(1, 99))
