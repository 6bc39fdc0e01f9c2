"""The overlap of subspaces, as `subspace_reg` and its baselines are compared by it; ids of that specification."""

import math

import pytest
import torch
from torch import Tensor

from fedelta.diagnostics import Undefined, numbers
from fedelta.diagnostics.layers import cumulative
from fedelta.lowrank import LoRA

O, R = 400, 4


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def overlap(B1: Tensor, B2: Tensor, form: str) -> float:
    """Of the column spaces of two clients' B, whose A are unrelated."""
    xs = [LoRA(B, drawn(B.shape[1], 9, seed=k)) for k, B in enumerate((B1, B2))]
    return numbers.overlap("B", form, [cumulative([0.5, 0.5], xs)])


@pytest.mark.parametrize("form", ["root", "squared"])
def test_one_span_in_two_bases_overlaps_wholly_sub_T5(form: str) -> None:
    B = drawn(O, R, seed=5)
    assert overlap(B, B @ drawn(R, R, seed=6), form) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("form", ["root", "squared"])
def test_orthogonal_spans_do_not_overlap_sub_T5(form: str) -> None:
    Q = torch.linalg.qr(drawn(O, 2 * R, seed=7)).Q
    assert overlap(Q[:, :R] @ drawn(R, R, seed=8), Q[:, R:], form) == pytest.approx(0.0, abs=1e-9)


def test_random_spans_overlap_by_the_share_of_dimensions_sub_T5() -> None:
    found = [overlap(drawn(O, R, seed=2 * k), drawn(O, R, seed=2 * k + 1), "squared") for k in range(40)]
    assert math.fsum(found) / len(found) == pytest.approx(R / O, rel=0.15)


def test_a_zero_factor_has_no_overlap_and_a_deficient_one_that_of_what_it_spans_sub_T5() -> None:
    B = drawn(O, R, seed=9)
    dead = torch.cat([B[:, :-1], B[:, :1]], dim=1)
    with pytest.raises(Undefined):
        overlap(torch.zeros_like(B), B, "root")
    assert overlap(dead, B, "squared") == pytest.approx(1.0, abs=1e-9)  # three directions, all of them in the span of B
