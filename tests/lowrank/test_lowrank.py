"""Low-rank algebra against dense float64 oracles."""

import math
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedelta import lowrank as lr
from fedelta.lowrank import LoRA

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def draw(o: int, r: int, i: int, *, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> LoRA:
    generator = torch.Generator().manual_seed(seed)
    B, A = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((o, r), (r, i)))
    return LoRA(B.to(dtype), A.to(dtype), scale)


def array(x: LoRA) -> np.ndarray:
    return x.scale * x.B.double().numpy() @ x.A.double().numpy()


def best(matrix: np.ndarray, rank: int) -> np.ndarray:
    U, S, Vh = np.linalg.svd(matrix, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vh[:rank]


def assert_near(found: LoRA, expected: np.ndarray, tolerance: float = 1e-12) -> None:
    assert np.linalg.norm(array(found) - expected) <= tolerance * max(np.linalg.norm(expected), 1e-300)


lora = st.builds(
    draw,
    st.integers(1, 9),
    st.integers(1, 12),
    st.integers(1, 9),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1.0, 0.25, 16.0, -2.0]),
)
"""Deltas of any shape, ranks above both outer dimensions included."""


def test_factors_must_multiply() -> None:
    with pytest.raises(ValueError, match=r"share the rank r; got B \(3, 2\) and A \(3, 4\)"):
        LoRA(torch.zeros(3, 2), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="share the rank"):
        LoRA(torch.zeros(3), torch.zeros(3, 4))


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_is_a_number(scale: float) -> None:
    with pytest.raises(ValueError, match=f"must be a finite number, got {scale}"):
        LoRA(torch.zeros(3, 2), torch.zeros(2, 4), scale)


def test_shape_comes_from_the_factor_not_from_the_size() -> None:
    x = draw(4, 3, 3)  # d_in equals the rank
    assert (x.shape, x.rank) == ((4, 3), 3)
    assert x.to(torch.float32).dtype is torch.float32


# --- sums ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@given(weights=st.lists(st.floats(0.01, 1), min_size=2, max_size=6), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_mean_of_identical_tensors_is_bit_identical(dtype: torch.dtype, weights: list[float], seed: int) -> None:
    x = torch.randn(7, generator=torch.Generator().manual_seed(seed)).to(dtype)
    p = [w / sum(weights) for w in weights]
    assert torch.equal(lr.mean(p, [x.clone() for _ in p]), x)


def test_mean_is_formed_in_float32_or_wider() -> None:
    # In bfloat16 steps 1 + 2^-8 is lost each time; in float32 the sum of eight of them is not.
    xs = [torch.tensor([1.0]).bfloat16()] + [torch.tensor([1.0 + 2**-7]).bfloat16()] * 7
    assert float(lr.mean([1 / 8] * 8, xs)) == float(torch.tensor(1 + 7 / 8 * 2**-7).bfloat16())


def test_mean_holds_three_of_an_iterators_tensors_at_a_time() -> None:
    made: list[weakref.ref[torch.Tensor]] = []

    def tensors() -> Iterator[torch.Tensor]:
        for k in range(6):
            assert sum(other() is not None for other in made) <= 2, "the first and the one before"
            x = torch.full((3,), float(k))
            made.append(weakref.ref(x))
            yield x
            del x

    assert lr.mean([1 / 6] * 6, tensors()).tolist() == pytest.approx([2.5] * 3)


@given(xs=st.lists(st.tuples(st.integers(1, 4), st.floats(0.1, 4)), min_size=1, max_size=5), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_stack_is_the_weighted_sum_of_deltas(xs: list[tuple[int, float]], seed: int) -> None:
    deltas = [draw(6, r, 4, seed=seed + k, scale=s) for k, (r, s) in enumerate(xs)]
    weights = list(np.random.default_rng(seed).uniform(-1, 1, len(xs)))
    stacked = lr.stack(weights, deltas)
    assert stacked.rank == sum(r for r, _ in xs)
    assert_near(stacked, sum(w * array(x) for w, x in zip(weights, deltas, strict=True)), 1e-11)


def test_stack_takes_a_weight_for_each_component() -> None:
    x = draw(5, 3, 4, scale=2.0)
    w = torch.tensor([1.0, 0.0, 0.5])
    expected = 2.0 * sum(float(w[k]) * np.outer(x.B[:, k], x.A[k]) for k in range(3))
    assert_near(lr.stack([w], [x]), expected)


def test_stack_keeps_the_first_dtype_or_the_given_one() -> None:
    xs = [draw(3, 1, 2, dtype=torch.float32), draw(3, 1, 2)]
    assert lr.stack([0.5, 0.5], xs).dtype is torch.float32
    assert lr.stack([0.5, 0.5], xs, dtype=torch.float64).A.dtype is torch.float64


def test_mean_of_factors_wants_equal_ranks_and_scales() -> None:
    with pytest.raises(ValueError, match=r"equal ranks, got \[2, 3\]: rescale or pad first"):
        lr.mean_factors([0.5, 0.5], [draw(4, 2, 3), draw(4, 3, 3)])
    with pytest.raises(ValueError, match=r"equal scales, got \[1.0, 2.0\]"):
        lr.mean_factors([0.5, 0.5], [draw(4, 2, 3), draw(4, 2, 3, scale=2.0)])


# --- components ------------------------------------------------------------------------------------------------------


@given(x=lora, edges=st.lists(st.integers(0, 12), max_size=3))
@settings(max_examples=40, deadline=None)
def test_bands_add_up(x: LoRA, edges: list[int]) -> None:
    inner = sorted({e for e in edges if e < x.rank})
    parts = lr.bands(x, inner)
    assert sum(p.rank for p in parts) == x.rank
    assert all(p.rank > 0 for p in parts)
    np.testing.assert_allclose(sum(array(p) for p in parts), array(x), atol=1e-10)


@pytest.mark.parametrize("on", ["A", "B", "both"])
def test_rescale_writes_the_same_delta(on: lr.SigmaOn) -> None:
    x = draw(5, 3, 4, scale=16 / 3)
    y = lr.rescale(x, 0.75, on=on)
    assert y.scale == 0.75
    assert_near(y, array(x))
    assert (y.A is x.A) is (on == "B")
    assert (y.B is x.B) is (on == "A")
    assert lr.rescale(x, 16 / 3, on=on) is x
    with pytest.raises(ValueError, match="cannot be written with scale 0; check lora_alpha"):
        lr.rescale(x, 0, on=on)


def test_rescale_by_a_square_root_keeps_the_sign() -> None:
    assert_near(lr.rescale(draw(5, 3, 4), -2.0), array(draw(5, 3, 4)))
    with pytest.raises(ValueError, match=r"of scale 1\.0 cannot be written with scale -2\.0"):
        lr.rescale(draw(5, 3, 4), -2.0, on="both")


@pytest.mark.parametrize("on", ["A", "B", "both"])
def test_rescale_keeps_the_rows_of_A_that_dW_does_not_show(on: lr.SigmaOn) -> None:
    x = draw(5, 3, 4, scale=4.0)
    x.B[:, 1] = 0
    y = lr.rescale(x, 0.25, on=on)
    assert_near(y, array(x))
    assert torch.equal(y.A[1], x.A[1])
    assert torch.equal(y.A[0], x.A[0]) is (on == "B")


@given(x=lora, extra=st.integers(0, 6), live=st.booleans())
@settings(max_examples=40, deadline=None)
def test_pad_writes_the_same_delta_with_live_rows(x: LoRA, extra: int, live: bool) -> None:
    y = lr.pad(x, x.rank + extra, live=live)
    np.testing.assert_array_equal(array(lr.components(y, 0, x.rank)), array(x))
    rows = y.A[x.rank :]
    assert not y.B[:, x.rank :].any()
    assert bool(rows.any(dim=1).all()) is (live or extra == 0)
    free = max(0, x.shape[1] - x.rank)
    np.testing.assert_allclose(x.A @ rows[:free].mT, 0, atol=1e-9 if live else 0)
    assert torch.equal(lr.pad(x, x.rank + extra, live=live).A, y.A)


def test_pad_can_take_the_rows_of_another() -> None:
    x, fill = draw(5, 2, 4), draw(1, 6, 4, seed=1).A
    assert torch.equal(lr.pad(x, 4, fill=fill).A[2:], fill[2:4])
    assert lr.pad(x, 2) is x
    assert lr.pad(x, 1) is x


# --- factorisations --------------------------------------------------------------------------------------------------


@given(x=lora)
@settings(max_examples=80, deadline=None)
def test_svd_is_the_dense_one_with_fixed_signs(x: LoRA) -> None:
    U, S, Vh = lr.svd(x)
    expected = np.linalg.svd(array(x), compute_uv=False)[: len(S)]
    np.testing.assert_allclose(S, expected, atol=1e-11 * expected[0])
    np.testing.assert_allclose((U * S) @ Vh, array(x), atol=1e-11 * expected[0])
    np.testing.assert_allclose(U.mT @ U, np.eye(len(S)), atol=1e-11)
    np.testing.assert_allclose(Vh @ Vh.mT, np.eye(len(S)), atol=1e-11)
    pivots = U.abs().argmax(0)
    assert bool((U[pivots, range(U.shape[1])] > 0).all())


def test_signs_go_by_the_first_of_tied_entries() -> None:
    x = LoRA(torch.tensor([[-1.0], [1.0 + 1e-12], [1.0]]).double(), torch.tensor([[2.0, 0.0]]).double())
    assert lr.svd(x)[0][0, 0] > 0


def test_signs_do_not_depend_on_the_gauge() -> None:
    x = draw(8, 3, 7)
    G = torch.randn(3, 3, generator=torch.Generator().manual_seed(2)).double() + 3 * torch.eye(3)
    y = LoRA(x.B @ G, torch.linalg.solve(G, x.A))
    for a, b in zip(lr.svd(x), lr.svd(y), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sigma_on", ["A", "B", "both"])
@given(x=lora, rank=st.integers(1, 14), scale=st.sampled_from([1.0, 0.5, 16.0]))
@settings(max_examples=40, deadline=None)
def test_truncate_is_the_best_approximation(sigma_on: lr.SigmaOn, x: LoRA, rank: int, scale: float) -> None:
    y = lr.truncate(x, rank, scale=scale, sigma_on=sigma_on)
    assert (y.rank, y.scale) == (rank, scale)
    np.testing.assert_allclose(array(y), best(array(x), rank), atol=1e-10 * np.linalg.norm(array(x)))
    assert bool((y.B.any(dim=0) | y.A.any(dim=1)).all())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_truncate_at_a_width_where_float32_qr_fails(dtype: torch.dtype) -> None:
    xs = [draw(384, 8, 384, seed=k, dtype=dtype) for k in range(10)]
    stacked = lr.stack([0.1] * 10, xs, dtype=torch.float64)
    assert_near(lr.truncate(stacked, 8, dtype=dtype), best(sum(0.1 * array(x) for x in xs), 8), TOLERANCE[dtype])


def test_truncate_keeps_small_singular_values() -> None:
    U = torch.linalg.qr(draw(50, 3, 50).B).Q
    x = LoRA(U * torch.tensor([1.0, 1e-5, 1e-9]).double(), U.mT)
    np.testing.assert_allclose(lr.spectrum(x), [1.0, 1e-5, 1e-9], rtol=1e-6)


def test_a_zero_delta_keeps_its_rows() -> None:
    x = LoRA(torch.zeros(5, 3), draw(1, 3, 6, dtype=torch.float32).A)
    for rank in (2, 3, 4):
        y = lr.truncate(x, rank, sigma_on="both")
        assert not y.B.any()
        assert torch.equal(y.A[:3], x.A[:rank])
        assert bool(y.A.any(dim=1).all())
    fill = torch.ones(4, 6)
    assert torch.equal(lr.truncate(x, 2, fill=fill).A, fill[:2])


def test_a_component_without_a_singular_value_is_idle_but_alive() -> None:
    thin = draw(6, 1, 5)
    x = LoRA(torch.cat([thin.B, thin.B], 1), torch.cat([thin.A, thin.A]))  # rank one, written with two components
    y = lr.truncate(x, 4, sigma_on="both")
    assert_near(y, array(x))
    assert not y.B[:, 1:].any()
    np.testing.assert_allclose(y.A[1:].norm(dim=1), 1.0)


def test_a_zero_delta_revives_rows_of_zeros_and_keeps_the_others() -> None:
    x = draw(5, 3, 6, dtype=torch.float32)
    x.B.zero_()
    x.A[1].zero_()
    y = lr.truncate(x, 3)
    assert torch.equal(y.A[[0, 2]], x.A[[0, 2]])
    assert float(y.A[1].norm()) == pytest.approx(1.0)
    np.testing.assert_allclose(y.A[[0, 2]] @ y.A[1], 0.0, atol=1e-6)
    all_zero = lr.truncate(LoRA(x.B, torch.zeros_like(x.A)), 4)
    np.testing.assert_allclose(all_zero.A @ all_zero.A.mT, np.eye(4), atol=1e-6)


def test_no_components_at_all_are_a_zero_delta() -> None:
    x = lr.components(draw(4, 2, 3), 0, 0)
    assert x.rank == 0
    assert not lr.truncate(x, 2).B.any()
    assert bool(lr.pad(x, 2).A.any(dim=1).all())
    assert lr.spectrum(x).numel() == 0
    assert float(lr.norm(x)) == 0.0


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_truncate_refuses_what_has_no_svd(poison: float) -> None:
    x = draw(4, 2, 3)
    x.B[1, 1] = poison
    with pytest.raises(ValueError, match=r"cannot factorise a delta of shape \(4, 3\): its factors hold NaN or Inf"):
        lr.truncate(x, 1)


def test_truncate_refuses_senseless_arguments() -> None:
    with pytest.raises(ValueError, match="cannot truncate to rank 0: a rank is at least 1"):
        lr.truncate(draw(4, 2, 3), 0)
    with pytest.raises(ValueError, match="sigma_on must be 'A', 'B' or 'both', got 'C'"):
        lr.truncate(draw(4, 2, 3), 1, sigma_on="C")  # type: ignore[arg-type]
    for scale in (0.0, float("nan")):
        with pytest.raises(ValueError, match=f"cannot be written with scale {scale}; check lora_alpha"):
            lr.truncate(draw(4, 2, 3), 1, scale=scale)


def test_truncate_refuses_to_overflow() -> None:
    x = draw(4, 2, 3, scale=1e3).to(torch.float16)
    with pytest.raises(ValueError, match=r"overflows torch.float16 at scale 0.001"):
        lr.truncate(x, 1, scale=1e-3)
    assert_near(lr.truncate(x, 2, scale=1e3), array(x), 2e-3)


@pytest.mark.parametrize(("o", "i"), [(6, 4), (4, 6), (5, 5)])
def test_from_dense(o: int, i: int) -> None:
    matrix = draw(o, 2, i).dense()
    assert lr.from_dense(matrix).rank == 2
    assert_near(lr.from_dense(matrix), matrix.numpy())
    assert_near(lr.from_dense(matrix, rank=1), best(matrix.numpy(), 1))
    assert lr.from_dense(torch.zeros(o, i)).rank == 1


def test_from_dense_keeps_the_long_tail_of_a_float32_matrix() -> None:
    U, V = (torch.linalg.qr(draw(64, 64, 64, seed=k).B).Q for k in (0, 1))
    matrix = ((U * torch.logspace(0, -7, 64, dtype=torch.float64)) @ V).float()
    assert_near(lr.from_dense(matrix), matrix.double().numpy(), 1e-6)


def test_the_numerical_rank_of_a_product_is_its_rank() -> None:
    for dtype in (torch.float32, torch.float64):
        assert lr.from_dense(draw(90, 7, 70, dtype=dtype).dense()).rank == 7


# --- inner products and distances ------------------------------------------------------------------------------------


@given(x=lora, seed=st.integers(0, 100), rank=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_inner_products_and_distances_are_those_of_the_matrices(x: LoRA, seed: int, rank: int) -> None:
    y = draw(x.shape[0], rank, x.shape[1], seed=seed, scale=0.5)
    size = np.linalg.norm(array(x)) + np.linalg.norm(array(y))
    assert math.isclose(float(lr.inner(x, y)), float((array(x) * array(y)).sum()), abs_tol=1e-11 * size**2)
    assert math.isclose(float(lr.norm(x)), np.linalg.norm(array(x)), rel_tol=1e-7)
    assert math.isclose(float(lr.dist2(x, y)), np.linalg.norm(array(x) - array(y)) ** 2, rel_tol=1e-9, abs_tol=1e-11 * size**2)


def test_small_moves_keep_their_digits_in_float32() -> None:
    x = draw(64, 4, 48, dtype=torch.float32)
    step = draw(64, 4, 48, seed=1, dtype=torch.float32)
    y = LoRA(x.B + 1e-4 * step.B, x.A + 1e-4 * step.A)
    exact = np.linalg.norm(array(x) - array(y)) ** 2
    assert abs(float(lr.dist2(x, y)) / exact - 1) < 1e-5
    textbook = float(lr.inner(x, x) - 2 * lr.inner(x, y) + lr.inner(y, y))
    assert abs(textbook / exact - 1) > 1e-2  # what the other form would lose


def test_a_distance_is_never_negative() -> None:
    for seed in range(20):
        x, G = draw(6, 3, 5, seed=seed), draw(3, 3, 3, seed=seed).B
        assert float(lr.dist2(x, LoRA(x.B @ G, torch.linalg.solve(G, x.A)))) >= 0


def test_gradient_of_the_distance() -> None:
    x, y = draw(5, 2, 4), draw(5, 3, 4, seed=1, scale=2.0)
    B, A = x.B.clone().requires_grad_(), x.A.clone().requires_grad_()
    lr.dist2(LoRA(B, A), y).backward()
    difference = x.dense() - y.dense()
    torch.testing.assert_close(B.grad, 2 * difference @ x.A.mT)
    torch.testing.assert_close(A.grad, 2 * x.B.mT @ difference)


# --- spectra and subspaces -------------------------------------------------------------------------------------------


def test_a_difference_is_that_of_the_deltas_whatever_ranks_and_scales() -> None:
    x, y = draw(6, 3, 5, scale=0.7), draw(6, 2, 5, scale=-1.5)
    for a, b in ((x, y), (y, x), (x, lr.components(x, 0, 0))):
        np.testing.assert_allclose(array(lr.difference(a, b)), array(a) - array(b), atol=1e-12)
    assert not lr.difference(x, x).dense().any()


def test_effective_and_stable_rank() -> None:
    assert lr.effective_rank(torch.tensor([2.0, 2.0, 2.0])) == pytest.approx(3)
    assert lr.effective_rank(torch.tensor([5.0, 0.0])) == pytest.approx(1)
    p = np.array([0.75, 0.25])
    assert lr.effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx(math.exp(-(p * np.log(p)).sum()))
    assert lr.stable_rank(torch.tensor([2.0, 1.0])) == pytest.approx(1.25)
    for rank in (lr.effective_rank, lr.stable_rank):
        assert rank(torch.zeros(3)) == 0.0
        assert rank(torch.zeros(0)) == 0.0


def test_higher_rank_energy_hetero_R10() -> None:
    S = torch.tensor([2.0, 1.0], dtype=torch.float64)
    assert lr.higher_rank_energy(S, 1) == pytest.approx(0.2)
    assert lr.higher_rank_energy(1e-9 * S, 1) == pytest.approx(0.2)
    assert lr.higher_rank_energy(0 * S, 1) == 0
    assert lr.higher_rank_energy(S, 2) == lr.higher_rank_energy(S, 5) == 0
    assert 0 < lr.higher_rank_energy(torch.ones(1000), 1) < 1
    with pytest.raises(ValueError, match="r_min must be a rank of at least 1, got 0"):
        lr.higher_rank_energy(S, 0)


def test_principal_angles_at_both_ends() -> None:
    Q = torch.linalg.qr(draw(9, 4, 9).B).Q
    for angle in (0.0, 1e-9, 0.3, math.pi / 4, math.pi / 2 - 1e-9, math.pi / 2):
        turned = math.cos(angle) * Q[:, :1] + math.sin(angle) * Q[:, 1:2]
        assert float(lr.principal_angles(Q[:, :1], turned)[0]) == pytest.approx(angle, abs=1e-15, rel=1e-9)
    both = lr.principal_angles(Q[:, :2], torch.cat([Q[:, :1], Q[:, 2:3]], 1))
    np.testing.assert_allclose(both, [0.0, math.pi / 2], atol=1e-12)


def test_principal_angles_of_unequal_and_empty_spans() -> None:
    Q = torch.linalg.qr(draw(9, 4, 9).B).Q
    assert lr.principal_angles(Q[:, :3], Q[:, 1:2]).tolist() == pytest.approx([0.0], abs=1e-12)
    assert lr.principal_angles(Q, torch.zeros(9, 2).double()).numel() == 0
    twice = torch.cat([Q[:, :1], Q[:, :1]], 1)  # one direction, written twice
    assert lr.principal_angles(twice, Q[:, :2]).numel() == 1


def test_with_factor() -> None:
    x = draw(4, 2, 3)
    assert lr.with_factor(x, "B", x.B * 2).A is x.A
    assert lr.with_factor(x, "A", x.A * 2).B is x.B


@pytest.mark.parametrize("seed", [0, 0x6665_6465_6C74_61], ids=["common", "its own"])
def test_rows_are_completed_whatever_the_generator_that_drew_them(seed: int) -> None:
    rows = torch.randn(10, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mT
    found = lr.complete_rows(rows, 3)
    torch.testing.assert_close(found @ found.mT, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(found @ rows.mT, torch.zeros(3, 3, dtype=torch.float64))
