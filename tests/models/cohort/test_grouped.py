"""Rows of several clients, each with factors of its own: forward and backward against the plain formula."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from fedelta.models.cohort.grouped import GroupedLoRA, Rows, add_times_, outer, times
from fedelta.models.products import PLAIN

EVEN, UNEVEN = Rows((2, 2, 2), {3: (3, 3, 3)}), Rows((3, 1, 2), {3: (3, 3, 3)})


def draw(*shape, grad=True):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=grad)


def case(rows, rank=2):
    """x (N, i) with three rows a sequence, A, B, scales, weight, bias."""
    factors = draw(3, rank, 4), draw(3, 5, rank), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    return (draw(3 * rows.total, 4), *factors, draw(5, 4, grad=False), draw(5, grad=False))


@pytest.mark.parametrize("rows", [EVEN, UNEVEN])
def test_products_are_each_clients_own(rows):
    x, A = (t.detach() for t in case(rows)[:2])
    parts = rows.split(x)
    expected = torch.cat([part @ a.T for part, a in zip(parts, A, strict=True)])
    torch.testing.assert_close(times(x, A.mT, rows.of(len(x))), expected)
    y = torch.ones(len(x), 2, dtype=torch.float64)
    torch.testing.assert_close(add_times_(y, x, A.mT, rows.of(len(x))), 1 + expected)
    torch.testing.assert_close(outer(x, x, rows.of(len(x))), torch.stack([p.T @ p for p in parts]))


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("rows", [EVEN, UNEVEN])
def test_the_node_is_the_formula_and_its_gradient(rows, frozen, dropped):
    x, A, B, s, weight, bias = case(rows)
    keep = (torch.rand(x.shape) > 0.3).double() / 0.7 if dropped else None
    base = (weight, bias) if frozen else (None, None)

    def node(x, A, B):
        return GroupedLoRA.apply(x, A, B, s, keep, rows.of(len(x)), *base, PLAIN)

    kept = x if keep is None else x * keep
    parts = zip(rows.split(kept), A, B, s, strict=True)
    expected = torch.cat([k * part @ a.T @ b.T for part, a, b, k in parts]) + (x @ weight.T + bias if frozen else 0)
    torch.testing.assert_close(node(x, A, B), expected)
    assert torch.autograd.gradcheck(node, (x, A, B))


@pytest.mark.parametrize("frozen", ["x", "A", "B"])
def test_what_needs_no_gradient_gets_none(frozen):
    x, A, B, s, weight, bias = case(EVEN)
    given = {"x": x, "A": A, "B": B}
    given[frozen].requires_grad_(False)
    GroupedLoRA.apply(x, A, B, s, None, EVEN.of(len(x)), weight, bias, PLAIN).sum().backward()
    assert [n for n, t in given.items() if t.grad is None] == [frozen]


def test_padded_components_have_gradients_of_exactly_zero():
    x, A, B, s, weight, bias = case(UNEVEN)
    with torch.no_grad():
        A[1, 1:], B[1, :, 1:] = 0, 0
    GroupedLoRA.apply(x, A, B, s, None, UNEVEN.of(len(x)), weight, bias, PLAIN).square().sum().backward()
    assert not A.grad[1, 1:].any()
    assert not B.grad[1, :, 1:].any()
    assert A.grad[1, :1].all()


def test_it_works_under_gradient_checkpointing():
    x, A, B, s, weight, bias = case(EVEN)

    def loss(x):
        return torch.tanh(GroupedLoRA.apply(x, A, B, s, None, EVEN.of(len(x)), weight, bias, PLAIN)).sum()

    expected = torch.autograd.grad(loss(x), (x, A, B))
    for found, right in zip(torch.autograd.grad(checkpoint(loss, x, use_reentrant=False), (x, A, B)), expected, strict=True):
        assert torch.equal(found, right)


def test_factors_wider_than_the_rows_work_in_the_dtype_of_the_rows():
    x, *rest = case(EVEN)
    exact = torch.autograd.grad(GroupedLoRA.apply(x, *rest[:3], None, EVEN.of(len(x)), *rest[3:], PLAIN).sum(), [x, *rest[:2]])
    A, B, s = (t.detach().float().requires_grad_(t.requires_grad) for t in rest[:3])
    half = x.detach().bfloat16().requires_grad_()
    y = GroupedLoRA.apply(half, A, B, s, None, EVEN.of(len(x)), *(t.bfloat16() for t in rest[3:]), PLAIN)
    found = torch.autograd.grad(y.sum(), [half, A, B])
    assert [t.dtype for t in (y, *found)] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    for one, other in zip(found, exact, strict=True):
        assert (one - other).norm() < 0.02 * other.norm()


@pytest.mark.parametrize("count", [7, 0, 3])
def test_rows_that_cannot_be_told_apart_are_refused(count):
    with pytest.raises(ValueError, match=f"a layer sees {count} rows of 6 sequences: the model mixes or drops rows"):
        EVEN.split(torch.zeros(count, 4))
