"""Cohorts: right sizes, a function of (seed, round) alone, everybody's turn comes."""

from collections import Counter
from dataclasses import dataclass

import pytest
import torch

from fedelta import sampling, seeding


@dataclass(frozen=True)
class Someone:
    id: int


def people(n: int) -> list[Someone]:
    return [Someone(3 * k + 1) for k in range(n)]


@pytest.mark.parametrize(
    ("part", "n", "count"),
    [
        (0.07, 100, 7),
        (0.29, 100, 29),
        (0.1, 3, 1),
        (0.01, 10, 1),
        (0.25, 10, 3),
        (1.0, 7, 7),
        (3, 7, 3),
        (1, 7, 1),
        (0.7, 10, 7),
    ],
)
def test_a_share_is_exact(part: float, n: int, count: int) -> None:
    assert sampling.share(part, n, "participation") == count
    assert len(sampling.uniform(part)(0, people(n), 0)) == count


def test_a_share_can_round_up() -> None:
    assert [sampling.share(f, 10, "quorum", up=True) for f in (0.5, 0.51, 0.3, 0.1)] == [5, 6, 3, 1]


@pytest.mark.parametrize("part", [0.0, -0.5, 1.5, 0, float("nan")])
def test_a_share_outside_its_range_is_refused_at_once(part: float) -> None:
    with pytest.raises(ValueError, match="participation = "):
        sampling.uniform(part)


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="participation = 8 must be between 1 and the 7"):
        sampling.uniform(8)(0, people(7), 0)


def test_a_cohort_depends_on_seed_and_round_and_on_nothing_else() -> None:
    draw, crowd = sampling.uniform(0.5), people(10)
    drawn = [draw(t, crowd, 4) for t in range(6)]
    assert drawn == [sampling.uniform(0.5)(t, crowd[::-1], 4) for t in range(6)]
    assert all(ids == sorted(set(ids)) for ids in drawn)
    assert len({tuple(ids) for ids in drawn}) > 1
    assert drawn != [draw(t, crowd, 5) for t in range(6)]


def test_everybody_has_the_same_chance() -> None:
    counts = Counter(i for t in range(2000) for i in sampling.uniform(3)(t, people(10), 0))
    assert set(counts) == {p.id for p in people(10)}
    assert all(abs(c - 600) < 100 for c in counts.values())  # five standard deviations


def test_everyone_and_round_robin() -> None:
    crowd = people(5)[::-1]
    assert sampling.everyone(0, crowd, 0) == [1, 4, 7, 10, 13]
    draw = sampling.round_robin(2)
    assert [draw(t, crowd, 0) for t in range(4)] == [[1, 4], [7, 10], [1, 13], [4, 7]]


@pytest.mark.parametrize("size", [1, 2, 3, 10, 1_000, 50_000, 1_000_000])
def test_a_draw_is_the_beginning_of_the_permutation_that_torch_makes(size: int) -> None:
    for seed in (0, 7, 2**40 + 3):
        whole = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        for count in {1, min(2, size), min(101, size), size if size <= 1_000 else 100}:
            drawn = sampling.first_of_permutation(size, count, torch.Generator().manual_seed(seed))
            assert drawn == whole[:count].tolist()


BEGINNINGS = [
    (10, [1, 4, 9, 6, 3]),
    (1_000_000, [453411, 997051, 774247, 536598, 855558]),
    (214_748_363, [94459959, 22248453, 89044632, 134552128, 28858574]),  # the largest that torch 2.13 shuffles from the front
    (214_748_364, [30369182, 118932089, 171840252, 188441613, 117236816]),
    (10_000_000_000, [8741643470, 4109395514, 1782892914, 5444684746, 8438898944]),
]
"""Written down, so that no version of torch changes who takes part without a test that says so."""


@pytest.mark.parametrize(("size", "beginning"), BEGINNINGS)
def test_a_draw_is_the_same_under_every_version_of_torch(size: int, beginning: list[int]) -> None:
    assert sampling.first_of_permutation(size, 5, torch.Generator().manual_seed(5)) == beginning


def test_a_cohort_is_the_one_that_a_whole_permutation_of_the_ids_gives() -> None:
    order = torch.randperm(40, generator=seeding.generator(4, 2, seeding.SERVER, "cohort"))
    assert sampling.uniform(10)(2, people(40), 4) == sorted(3 * k + 1 for k in order[:10].tolist())
