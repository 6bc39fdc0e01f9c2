"""`fedelta.aggregate`: adapters in, adapters out, without an engine."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import fedelta
from fedelta import lowrank as lr
from fedelta import tree
from fedelta.lowrank import LoRA
from fedelta.methods import get_method, list_methods, method_class
from fedelta.models.toy import random_adapter
from fedelta.tree import Adapter

ONE_SHOT = [n for n in list_methods() if method_class(n).one_shot]
UNEQUAL = [n for n in ONE_SHOT if method_class(n).hetero_rank]
EXACT = ["flora", "fedex_lora"]


def scaled(adapter: Adapter, scale: float) -> Adapter:
    return tree.map(lambda x: LoRA(x.B, x.A, scale), adapter)


def three(ranks=(2, 3, 4), scales=(8.0, 16 / 3, 4.0), dtype=torch.float64) -> list[Adapter]:
    return [scaled(random_adapter(r, seed=k, dtype=dtype), s) for k, (r, s) in enumerate(zip(ranks, scales, strict=True))]


def dense(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {n: x.to(torch.float64).dense() for n, x in adapter.layers.items()}


def mean_delta(adapters: list[Adapter], weights: list[float], layer: str) -> torch.Tensor:
    return sum(w * dense(a)[layer] for w, a in zip(weights, adapters, strict=True))


def best(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return U[:, :rank] * S[:rank] @ Vh[:rank]


def test_one_result_for_each_input_at_its_own_rank_and_scale() -> None:
    given = three()
    out = fedelta.aggregate(given, method="flexlora")
    for x, y in zip(given, out, strict=True):
        for layer in x.layers:
            assert (y.layers[layer].rank, y.layers[layer].scale) == (x.layers[layer].rank, x.layers[layer].scale)
            expected = best(mean_delta(given, [1 / 3] * 3, layer), x.layers[layer].rank)
            torch.testing.assert_close(y.layers[layer].dense(), expected, rtol=1e-12, atol=1e-12)


def test_weights_are_scaled_to_sum_one() -> None:
    given = three()
    (out,) = fedelta.aggregate(given, weights=[1, 1, 2], method="flexlora", ranks=[6])
    for layer, found in dense(out).items():
        torch.testing.assert_close(found, best(mean_delta(given, [0.25, 0.25, 0.5], layer), 6), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("scales", "expected"),
    [
        ((8.0, 16 / 3, 4.0), 16 / 8),  # lora_alpha / r
        ((4 / 2**0.5, 4 / 3**0.5, 2.0), 4 / 8**0.5),  # rank-stabilised
        ((2.0, 2.0, 2.0), 2.0),  # constant
        ((1.0, 3.0, 2.0), 1.0),  # no rule in common
    ],
)
def test_with_ranks_the_scale_follows_the_inputs(scales: tuple[float, ...], expected: float) -> None:
    given = three(scales=scales)
    out = fedelta.aggregate(given, method="flexlora", ranks=[8, 1])
    assert [x.layers["hidden"].rank for x in out] == [8, 1]
    assert out[0].layers["hidden"].scale == pytest.approx(expected)
    torch.testing.assert_close(
        out[0].layers["hidden"].dense(), mean_delta(given, [1 / 3] * 3, "hidden"), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("method", EXACT)
def test_methods_that_move_the_base_return_the_whole_delta(method: str) -> None:
    given = three()
    for out in fedelta.aggregate(given, weights=[1, 2, 3], method=method):
        for layer, found in dense(out).items():
            torch.testing.assert_close(found, mean_delta(given, [1 / 6, 2 / 6, 3 / 6], layer), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ONE_SHOT)
def test_a_single_adapter_comes_back_as_the_same_delta(method: str) -> None:
    given = scaled(random_adapter({"hidden": 3, "output": 4}, seed=1), 0.7)
    (out,) = fedelta.aggregate([given], method=method)
    for layer, found in dense(out).items():
        torch.testing.assert_close(found, dense(given)[layer], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("method", ["fedavg", "zeropad", "hetlora", "ffa_lora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_identical_adapters_come_back_bit_for_bit_from_methods_on_factors(method: str, dtype: torch.dtype) -> None:
    given = scaled(random_adapter(3, seed=1, dtype=dtype), 16 / 3)
    for out in fedelta.aggregate([given] * 3, weights=[0.2, 0.5, 0.4], method=method):
        assert all(torch.equal(v, tree.parameters(given)[k]) for k, v in tree.parameters(out).items())


def test_ffa_lora_takes_adapters_with_one_A() -> None:
    wide = random_adapter(4, seed=1)
    narrow = tree.map(lambda x, y: LoRA(x.B, y.A[:2], 2.0), random_adapter(2, seed=2), wide)
    out = fedelta.aggregate([wide, narrow], method="ffa_lora")
    for layer, x in out[1].layers.items():
        B = 0.5 * (wide.layers[layer].B[:, :2] + 2.0 * narrow.layers[layer].B)
        torch.testing.assert_close(x.dense(), B @ wide.layers[layer].A[:2], rtol=1e-12, atol=1e-12)


def test_ffa_lora_refuses_adapters_whose_A_differ() -> None:
    with pytest.raises(ValueError, match=r"layer 'hidden': FFALoRA does not send all of adapter 0.*flexlora"):
        fedelta.aggregate(three(), method="ffa_lora")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", ["zeropad", "flexlora", "flora", "fedex_lora", "svd_redistribution", "hetlora"])
def test_the_dtype_is_kept_and_costs_one_rounding(method: str, dtype: torch.dtype) -> None:
    given = three(dtype=dtype)
    exact = fedelta.aggregate([tree.map_tensors(lambda x: x.double(), a) for a in given], method=method)
    for x, y in zip(fedelta.aggregate(given, method=method), exact, strict=True):
        assert {t.dtype for t in tree.parameters(x).values()} == {dtype}
        for layer, expected in dense(y).items():
            error = (dense(x)[layer] - expected).norm() / expected.norm()
            assert error < 4 * torch.finfo(dtype).eps


def test_fedavg_refuses_unequal_ranks_and_says_what_can() -> None:
    with pytest.raises(ValueError, match=r"(?s)layer 'hidden' has ranks.*zeropad.*flexlora"):
        fedelta.aggregate(three())
    with pytest.raises(ValueError, match="needs equal ranks"):
        fedelta.aggregate(three(ranks=(2, 2, 2)), ranks=[4])


@pytest.mark.parametrize("method", sorted(set(list_methods()) - set(ONE_SHOT)))
def test_ways_of_training_are_refused_by_name(method: str) -> None:
    with pytest.raises(ValueError, match=f"{method_class(method).__name__} is a way of training"):
        fedelta.aggregate(three(), method=method)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "1 weights for 3 adapters"),
        ([0.0, 0.0, 0.0], "not all zero"),
        ([1.0, -1.0, 1.0], "not negative"),
        ([1.0, np.nan, 1.0], "finite"),
        ([1.0, np.inf, 1.0], "finite"),
    ],
)
def test_weights_that_make_no_mean_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fedelta.aggregate(three(), weights=weights, method="flexlora")


def test_weights_whose_sum_is_no_float_count_by_their_ratio() -> None:
    one, other = (fedelta.aggregate(three(), weights=w, method="flexlora") for w in ([1e308, 1e308, 5e307], [2.0, 2.0, 1.0]))
    for layer, x in one[0].layers.items():
        assert torch.allclose(x.dense(), other[0].layers[layer].dense())


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match="at least one adapter"):
        fedelta.aggregate([])
    for ranks in ([4, 0], [2.5], 4):
        with pytest.raises(ValueError, match=r"ranks must be a list of whole numbers of at least 1, .* got"):
            fedelta.aggregate(three(), method="flexlora", ranks=ranks)
    for single in (three()[0], "folder"):
        with pytest.raises(TypeError, match="aggregate takes a list of adapters, got one"):
            fedelta.aggregate(single)
    with pytest.raises(ValueError, match="did you mean 'flexlora'"):
        fedelta.aggregate(three(), method="flexlor")
    with pytest.raises(ValueError, match="no hyper-parameter 'sigma'; did you mean 'sigma_on'"):
        fedelta.aggregate(three(), method="flexlora", sigma="A")


@pytest.mark.parametrize("method", [n for n in UNEQUAL if "adapter" in get_method(n).upload(three()[0])])
def test_adapters_that_do_not_fit_together_are_refused(method: str) -> None:
    good, other = random_adapter(2, seed=0), random_adapter(3, seed=1)
    x = other.layers["hidden"]
    poisoned = tree.with_parameters(other, {"hidden.lora_A": x.A * float("nan")})
    with pytest.raises(ValueError, match=r"adapter 1: hidden/A holds 15 NaN"):
        fedelta.aggregate([good, poisoned], method=method)
    fewer = Adapter({"hidden": x}, other.dense, other.base)
    with pytest.raises(ValueError, match="do not adapt the same layers"):
        fedelta.aggregate([good, fewer], method=method)
    foreign = Adapter(other.layers, other.dense, "another")
    with pytest.raises(ValueError, match="trained on base another"):
        fedelta.aggregate([good, foreign], method=method)
    turned = tree.map(lambda x: LoRA(x.A.mT, x.B.mT), other)
    with pytest.raises(ValueError, match=r"layer 'hidden': adapter 1 has \(d_out, d_in\) = \(5, 6\)"):
        fedelta.aggregate([good, turned], method=method)


def test_adapters_of_two_bases_are_refused_beside_one_of_an_unknown_base() -> None:
    adapters = [replace(a, base=b) for a, b in zip(three(), (None, "first", "second"), strict=True)]
    for given in (adapters, adapters[::-1]):
        with pytest.raises(ValueError, match="different base models cannot be merged"):
            fedelta.aggregate(given, method="flora")


def test_heads_alone_and_layers_without_components_can_be_aggregated() -> None:
    heads = [replace(a, layers={}) for a in three()]
    expected = torch.stack([a.dense["bias"] for a in heads]).mean(0)
    torch.testing.assert_close(fedelta.aggregate(heads)[0].dense["bias"], expected)
    empty = [tree.map(lambda x: lr.components(x, 0, 0), a) for a in three()]
    assert {x.rank for x in fedelta.aggregate(empty, method="flora")[0].layers.values()} == {0}


def test_a_method_object_and_hyper_parameters() -> None:
    given = three()
    by_name = fedelta.aggregate(given, method="flexlora", sigma_on="A")
    by_object = fedelta.aggregate(given, method=get_method("flexlora", sigma_on="A"))
    assert torch.equal(by_name[0].layers["hidden"].A, by_object[0].layers["hidden"].A)
    with pytest.raises(ValueError, match=r"FlexLoRA is given with its hyper-parameters already; drop \['sigma_on'\]"):
        fedelta.aggregate(given, method=get_method("flexlora"), sigma_on="A")


def test_layers_whose_names_end_alike_keep_their_own_ranks() -> None:
    x, y = random_adapter(2, seed=0).layers["hidden"], random_adapter(4, seed=1).layers["hidden"]
    given = Adapter({"query": x, "encoder.query": y})
    (out,) = fedelta.aggregate([given], method="flexlora")
    assert {n: x.rank for n, x in out.layers.items()} == {"query": 2, "encoder.query": 4}


def test_real_adapters_pass_through_peft_folders(shared_data, tmp_path) -> None:
    folders = sorted(p for p in (shared_data / "adapters").iterdir() if (p / "adapter_config.json").is_file())[:2]
    if len(folders) < 2:
        pytest.skip("fewer than two adapters in the shared data")
    pytest.importorskip("peft")
    out = fedelta.aggregate([folders[0], str(folders[0])], method="flexlora", ranks=[4])
    given = fedelta.load_adapter(folders[0])
    layer, x = next(iter(given.layers.items()))
    expected = best(x.to(torch.float64).dense(), 4)
    torch.testing.assert_close(out[0].layers[layer].to(torch.float64).dense(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["fedavg", "zeropad"])
def test_unequal_scales_are_folded_into_B(method: str) -> None:
    given = three(ranks=(3, 3), scales=(1.0, 4.0))
    out = fedelta.aggregate(given, method=method)
    assert [x.layers["hidden"].scale for x in out] == [1.0, 4.0]
    for layer in given[0].layers:
        x, y = (a.layers[layer] for a in given)
        expected = 0.25 * (x.B + 4 * y.B) @ (x.A + y.A)
        for found in out:
            torch.testing.assert_close(found.layers[layer].dense(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["zeropad", "flexlora", "flora", "ffa_lora"])
def test_an_adapter_without_weight_does_not_count(method: str) -> None:
    wide, narrow = random_adapter(4, seed=1), random_adapter(2, seed=2)
    wide = tree.map(lambda x, y: LoRA(x.B, torch.cat([y.A, x.A[2:]]), x.scale), wide, narrow)  # one A, for ffa_lora
    alone = fedelta.aggregate([narrow], method=method, ranks=[2])[0]
    both = fedelta.aggregate([wide, narrow], weights=[0, 1], method=method, ranks=[2])[0]
    for layer, found in dense(both).items():
        torch.testing.assert_close(found, dense(alone)[layer], rtol=1e-12, atol=1e-12)


def test_at_equal_ranks_the_rule_of_scales_is_taken_to_be_peft_s_default() -> None:
    given = three(ranks=(3, 3, 3), scales=(2.0, 2.0, 2.0))  # could be lora_alpha 6, rsLoRA, or a constant
    (out,) = fedelta.aggregate(given, method="flexlora", ranks=[8])
    assert out.layers["hidden"].scale == pytest.approx(6 / 8)
