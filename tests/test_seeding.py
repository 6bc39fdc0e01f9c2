"""Streams of random numbers: one for each purpose, the same everywhere, none shared."""

from itertools import product

import pytest
import torch

from fedelta import seeding


def test_all_five_parts_matter() -> None:
    parts = product((0, 1), (0, 1), (seeding.SERVER, 0, 1), ("batches", "template"), (None, "a", "b"))
    seeds = [seeding.derive(*p) for p in parts]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**63 for s in seeds)


def test_neighbouring_seeds_do_not_share_rounds() -> None:
    runs = [{seeding.derive(seed, t, 0, "batches") for t in range(100)} for seed in (42, 43)]
    assert not runs[0] & runs[1]


def test_known_values_stay() -> None:
    """Published results are repeated from their seeds, so the streams are part of the interface."""
    assert seeding.derive(0, 0, -1, "template", "x") == 7660295702032388134
    assert seeding.derive(42, 7, 3, "batches") == 8137472421719586066


def test_draws_do_not_depend_on_one_another() -> None:
    first = torch.rand(3, generator=seeding.generator(1, 2, 3, "a"))
    torch.rand(5, generator=seeding.generator(1, 2, 3, "b"))
    assert torch.equal(first, torch.rand(3, generator=seeding.generator(1, 2, 3, "a")))
    assert seeding.numpy_generator(1, 2, 3, "a").random() == seeding.numpy_generator(1, 2, 3, "a").random()


@pytest.mark.parametrize("seed", [0, -1, 2**40])
def test_any_integer_is_a_seed(seed: int) -> None:
    seeding.generator(seed, 0, 0, "batches")
