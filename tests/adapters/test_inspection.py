"""What `inspect` shows, against dense computations."""

import math

import numpy as np
import pytest
import torch

from fedelta.adapters.inspection import compare, describe
from fedelta.lowrank import LoRA
from fedelta.tree import Adapter

O, I = 7, 5


def adapter(*deltas: LoRA) -> Adapter:
    return Adapter({f"layer{k}": x for k, x in enumerate(deltas)})


def drawn(
    rank: int, seed: int, dtype: torch.dtype = torch.float64, scale: float = 0.5, shape: tuple[int, int] = (O, I)
) -> LoRA:
    generator = torch.Generator().manual_seed(seed)
    sizes = ((shape[0], rank), (rank, shape[1]))
    B, A = (torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes)
    return LoRA(B, A, scale)


def test_a_layer_is_described_by_the_spectrum_of_its_delta():
    (facts,) = describe(adapter(drawn(3, seed=1)))
    sigma = np.linalg.svd(drawn(3, seed=1).dense().numpy(), compute_uv=False)[:3]
    share = sigma / sigma.sum()
    assert (facts.layer, facts.shape, facts.rank, facts.scale) == ("layer0", (O, I), 3, 0.5)
    assert facts.spectrum == pytest.approx(sigma)
    assert facts.norm == pytest.approx(math.sqrt((sigma**2).sum()))
    assert facts.effective_rank == pytest.approx(math.exp(-(share * np.log(share)).sum()))
    assert facts.stable_rank == pytest.approx((sigma**2).sum() / sigma[0] ** 2)


def test_a_zero_delta_has_rank_zero_and_no_direction():
    zero = LoRA(torch.zeros(O, 2), torch.randn(2, I))
    (facts,) = describe(adapter(zero))
    assert (facts.norm, facts.effective_rank, facts.stable_rank) == (0, 0, 0)
    (both,) = compare(adapter(zero), adapter(drawn(2, seed=0, dtype=torch.float32)))
    assert both.cosine is None
    assert both.B.overlap is None
    assert both.A.overlap is not None


def test_cosine_and_angles_against_dense_matrices():
    x, y = drawn(2, seed=1), drawn(3, seed=2, scale=2.0)
    (both,) = compare(adapter(x), adapter(y))
    dense_x, dense_y = x.dense().numpy(), y.dense().numpy()
    assert both.cosine == pytest.approx((dense_x * dense_y).sum() / np.linalg.norm(dense_x) / np.linalg.norm(dense_y))
    for found, mine, others in ((both.A, x.A.T, y.A.T), (both.B, x.B, y.B)):
        cosines = np.linalg.svd(np.linalg.qr(mine.numpy())[0].T @ np.linalg.qr(others.numpy())[0], compute_uv=False)
        assert found.overlap == pytest.approx((cosines**2).mean())
        assert found.smallest == pytest.approx(math.degrees(math.acos(cosines.max())))
        assert found.largest == pytest.approx(math.degrees(math.acos(cosines.min())))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_an_adapter_overlaps_itself_wholly_in_any_precision(dtype: torch.dtype):
    x = drawn(3, seed=3, dtype=dtype, shape=(200, 160))  # the coarser the numbers, the sooner a large matrix counts as zero
    (both,) = compare(adapter(x), adapter(LoRA(-x.B, x.A, x.scale)))
    assert both.cosine == pytest.approx(-1)
    assert both.A.overlap == pytest.approx(1)
    assert both.B.largest == pytest.approx(0, abs=1e-2)


def test_a_part_of_a_subspace_overlaps_it_wholly():
    x = drawn(4, seed=4)
    (both,) = compare(adapter(LoRA(x.B[:, :2], x.A[:2])), adapter(x))
    assert both.A.overlap == pytest.approx(1)
    assert both.B.overlap == pytest.approx(1)


def test_adapters_of_other_layers_are_refused_by_name():
    with pytest.raises(ValueError, match="b/ and a/ do not adapt the same layers"):
        compare(adapter(drawn(2, 0)), adapter(drawn(2, 0), drawn(2, 1)), ("a/", "b/"))


def test_an_adapter_with_nan_is_refused_by_the_tensor():
    spoilt = drawn(2, seed=1)
    spoilt.A[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"the adapter: .*layer0.* holds 1 NaN or Inf of 10 values"):
        describe(adapter(spoilt))
