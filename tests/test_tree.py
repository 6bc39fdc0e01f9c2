"""Adapters, base deltas and messages: combining them, taking them apart, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.lowrank import LoRA
from fedelta.models.toy import random_adapter
from fedelta.tree import Adapter, BaseDelta

P = [0.2, 0.3, 0.5]


def three(ranks: tuple[int, ...] = (2, 3, 4)) -> list[Adapter]:
    return [random_adapter(r, seed=k, scale=1.0 + k) for k, r in enumerate(ranks)]


def mean_of(adapters: list[Adapter], layer: str) -> torch.Tensor:
    return sum(p * a.layers[layer].dense() for p, a in zip(P, adapters, strict=True))


# --- maps and merges -------------------------------------------------------------------------------------------------


def test_map_works_layer_by_layer_and_keeps_the_rest() -> None:
    x, y = three((2, 2, 2))[:2]
    seen: list[str] = []

    def note(name: str, delta: LoRA) -> LoRA:
        seen.append(name)
        return delta

    assert tree.map_named(note, x).dense is x.dense
    assert seen == ["hidden", "output"]
    summed = tree.map(lambda a, b: lr.stack([1.0, 1.0], [a, b]), x, y)
    assert summed.base == "toy"
    for n in x.layers:
        torch.testing.assert_close(summed.layers[n].dense(), x.layers[n].dense() + y.layers[n].dense())


def test_mean_of_deltas_is_exact_and_in_float64() -> None:
    adapters = [tree.map_tensors(lambda x: x.float(), a) for a in three()]
    mean = tree.mean_deltas(P, adapters)
    for n, x in mean.layers.items():
        assert (x.rank, x.scale, x.dtype) == (9, 1.0, torch.float64)
        wide = [tree.map_tensors(lambda x: x.double(), a) for a in adapters]
        torch.testing.assert_close(x.dense(), mean_of(wide, n))
    expected = sum(p * a.dense["bias"] for p, a in zip(P, adapters, strict=True))
    torch.testing.assert_close(mean.dense["bias"], expected)


def test_mean_of_factors_brings_scales_together() -> None:
    adapters = three((2, 2, 2))
    for n, x in tree.mean_factors(P, adapters).layers.items():
        assert x.scale == 1.0
        B = sum(p * a.layers[n].scale * a.layers[n].B for p, a in zip(P, adapters, strict=True))
        torch.testing.assert_close(x.B, B)
        torch.testing.assert_close(x.A, sum(p * a.layers[n].A for p, a in zip(P, adapters, strict=True)))


def test_the_first_known_base_is_kept() -> None:
    x, y = three((2, 2, 2))[:2]
    assert tree.mean_factors([0.5, 0.5], [replace(x, base=None), y]).base == "toy"
    assert tree.mean_factors([1.0], [replace(x, base=None)]).base is None


def test_factors_and_parameters_come_apart_and_together() -> None:
    x = three()[0]
    assert torch.equal(tree.factors(x, "B")["hidden"], x.layers["hidden"].B)
    zeroed = tree.with_factors(x, "A", {n: A * 0 for n, A in tree.factors(x, "A").items()}, {"bias": torch.ones(4)})
    assert not zeroed.layers["output"].A.any()
    assert zeroed.layers["output"].B is x.layers["output"].B
    assert torch.equal(zeroed.dense["bias"], torch.ones(4))
    assert sorted(tree.parameters(x)) == ["bias", "hidden.lora_A", "hidden.lora_B", "output.lora_A", "output.lora_B"]
    doubled = tree.with_parameters(x, {k: 2 * v for k, v in tree.parameters(x).items() if k != "bias"})
    assert torch.equal(doubled.layers["hidden"].A, 2 * x.layers["hidden"].A)
    assert doubled.dense["bias"] is x.dense["bias"]


# --- base deltas -----------------------------------------------------------------------------------------------------


def lora(rank: int, seed: int, shape: tuple[int, int] = (40, 30)) -> LoRA:
    generator = torch.Generator().manual_seed(seed)
    return LoRA(torch.randn(shape[0], rank, generator=generator), torch.randn(rank, shape[1], generator=generator), 0.5)


def test_sums_stay_factored_while_that_is_smaller() -> None:
    assert isinstance(tree.add(lora(8, 0), lora(9, 1)), LoRA)
    for x, y in ((lora(8, 0), lora(10, 1)), (torch.zeros(40, 30), lora(1, 1))):
        assert isinstance(tree.add(x, y), torch.Tensor)
        torch.testing.assert_close(tree.add(x, y), tree.dense(x) + tree.dense(y))


def test_dense_sums_are_in_float32_or_wider() -> None:
    total = tree.dense(tree.add(lora(10, 0).to(torch.bfloat16), lora(10, 1).to(torch.bfloat16)))
    assert total.dtype is torch.float32


@given(ranks=st.lists(st.integers(1, 9), min_size=1, max_size=6), seen=st.integers(0, 6))
@settings(max_examples=30, deadline=None)
def test_whoever_replays_steps_gets_the_same_bits(ranks: list[int], seen: int) -> None:
    seen = min(seen, len(ranks))
    steps = [lora(r, k) for k, r in enumerate(ranks)]
    whole = BaseDelta(len(ranks), {"w": steps})
    held = BaseDelta(seen, {"w": steps[:seen]}) if seen else BaseDelta(0, {})
    late = tree.catch_up(held, BaseDelta(len(ranks), {"w": steps[seen:]} if seen < len(ranks) else {}, since=seen))
    assert late.version == len(ranks)
    assert torch.equal(tree.dense(tree.total(late)["w"]), tree.dense(tree.total(whole)["w"]))


def test_a_gap_between_what_is_held_and_what_arrives_is_refused() -> None:
    with pytest.raises(ValueError, match="from version 2 to 3 arrived, but version 1 is held; report base_version 0"):
        tree.catch_up(BaseDelta(1, {"w": [lora(1, 0)]}), BaseDelta(3, {"w": [lora(1, 1)]}, since=2))
    assert tree.catch_up(BaseDelta(1, {"w": [lora(1, 0)]}), None).version == 0


def test_effective_is_adapter_plus_base() -> None:
    x = random_adapter(2, seed=0)
    assert tree.effective(x) is x
    base = BaseDelta(1, {"hidden": [random_adapter(1, seed=1).layers["hidden"]], "output": [torch.ones(4, 6).double()]})
    whole = tree.effective(x, base)
    for n in x.layers:
        expected = x.layers[n].dense() + tree.dense(base.terms[n][0])
        torch.testing.assert_close(whole.layers[n].dense(), expected)
    assert whole.layers["output"].rank == 3  # a dense term of rank one
    assert whole.dense is x.dense
    assert tree.effective(Adapter({}), base).layers.keys() == base.terms.keys()


# --- guards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, 0.5], "2 weights for 3 updates"),
        ([0.5, 0.5, 0.5], r"non-negative with sum 1, got \[0.5, 0.5, 0.5\]"),
        ([1.5, -0.5, 0.0], "non-negative"),
        ([float("nan"), 0.5, 0.5], "non-negative"),
    ],
)
def test_weights_must_make_a_mean(weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tree.mean_deltas(weights, three())


def test_nothing_to_aggregate() -> None:
    with pytest.raises(ValueError, match="nothing to aggregate: no update arrived"):
        tree.mean_deltas([], [])


def broken(kind: str) -> Adapter:
    x = random_adapter(2, seed=1)
    hidden = x.layers["hidden"]
    nan = hidden.A.clone()
    nan[0, 0] = float("nan")
    return {
        "layer lacks": replace(x, layers={"hidden": hidden}),
        "layer added": replace(x, layers={**x.layers, "more": hidden}),
        "turned": tree.map(lambda x: LoRA(x.A.mT, x.B.mT), x),
        "other base": replace(x, base="another"),
        "head shape": replace(x, dense={"bias": torch.zeros(3)}),
        "head name": replace(x, dense={"weight": torch.zeros(4)}),
        "nan in A": replace(x, layers={**x.layers, "hidden": lr.with_factor(hidden, "A", nan)}),
        "inf in head": replace(x, dense={"bias": torch.full((4,), float("inf"))}),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("layer lacks", r"adapter 1 and adapter 0 do not adapt the same layers: adapter 1 lacks \['output'\]; use"),
        ("layer added", r"adds \['more'\]; use one LoRA configuration"),
        ("turned", r"layer 'hidden': adapter 1 has \(d_out, d_in\) = \(5, 6\), adapter 0 has \(6, 5\)"),
        ("other base", "adapter 1 was trained on base another, adapter 0 on toy: adapters of different base models"),
        ("head shape", r"dense tensor 'bias': adapter 1 has shape \(3,\), adapter 0 \(4,\); both must have the same head"),
        ("head name", "do not adapt the same dense tensors"),
        ("nan in A", "adapter 1: hidden/A holds 1 NaN or Inf of 10 values; lower the learning rate or clip"),
        ("inf in head", "adapter 1: bias holds 4 NaN or Inf of 4 values"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tree.mean_deltas([0.5, 0.5], [random_adapter(2, seed=0), broken(kind)])


def test_an_unknown_base_fits_any() -> None:
    x, y = random_adapter(2, seed=0), replace(random_adapter(2, seed=1), base=None)
    tree.check_alike([x, y])
    tree.check_alike([y, x])


def test_an_unknown_base_does_not_join_two_that_differ() -> None:
    unknown, first, second = (replace(random_adapter(2, seed=0), base=b) for b in (None, "first", "second"))
    with pytest.raises(ValueError, match="adapter 2 was trained on base second, adapter 1 on first"):
        tree.check_alike([unknown, first, second])


# --- flat form -------------------------------------------------------------------------------------------------------

plain = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=8)
tensor = st.builds(
    lambda n, dtype: torch.arange(n).to(dtype),
    st.integers(0, 4),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]),
)
adapters = st.builds(lambda r, s: random_adapter(r, seed=s, scale=0.5), st.integers(1, 3), st.integers(0, 9))
bases = st.builds(lambda a, v: BaseDelta(v, {n: [x] for n, x in a.layers.items()}, since=v - 1), adapters, st.integers(1, 3))
messages = st.dictionaries(
    st.text(max_size=6),
    st.recursive(
        plain | tensor | adapters | bases,
        lambda x: (
            st.lists(x, max_size=3) | st.lists(x, max_size=3).map(tuple) | st.dictionaries(st.text(max_size=4), x, max_size=3)
        ),
        max_leaves=6,
    ),
    max_size=4,
)


def same(x: object, y: object) -> bool:
    if isinstance(x, torch.Tensor):
        return isinstance(y, torch.Tensor) and x.dtype == y.dtype and torch.equal(x, y)
    if isinstance(x, dict):
        return isinstance(y, dict) and list(x) == list(y) and all(same(v, y[k]) for k, v in x.items())
    if isinstance(x, list | tuple):
        return type(x) is type(y) and len(x) == len(y) and all(map(same, x, y))
    if isinstance(x, LoRA | Adapter | BaseDelta):
        return type(x) is type(y) and same(vars(x), vars(y))
    return type(x) is type(y) and x == y


@given(message=messages)
@settings(max_examples=80, deadline=None)
def test_messages_come_back_from_their_flat_form(message: dict) -> None:
    tensors, structure = tree.flatten(message)
    assert all(isinstance(t, torch.Tensor) for t in tensors.values())
    assert same(tree.unflatten(tensors, json.loads(json.dumps(structure))), message)


@pytest.mark.parametrize(
    ("message", "where"),
    [
        ({"a": [1, object()]}, r"message/a\[1\]: a object cannot travel"),
        ({"a": np.zeros(2)}, "message/a: a ndarray cannot travel"),
        ({"a": {1: 2}}, "message/a: key 1 is not a string"),
    ],
)
def test_what_cannot_travel_is_named(message: dict, where: str) -> None:
    with pytest.raises(TypeError, match=where):
        tree.flatten(message)


@pytest.mark.parametrize("structure", [{"x": 1}, {"t": 3}, {"c": "Popen", "f": {"v": 1}}, [], "text", None])
def test_foreign_structures_are_refused(structure: object) -> None:
    with pytest.raises(ValueError, match="not the structure of a message"):
        tree.unflatten({}, structure)


def test_a_tensor_that_is_missing_is_named() -> None:
    tensors, structure = tree.flatten({"x": torch.ones(2)})
    with pytest.raises(ValueError, match="names tensor 't0' but does not carry it: it was cut or altered"):
        tree.unflatten({}, structure)
    assert list(tensors) == ["t0"]


def test_tensors_have_readable_paths() -> None:
    message = {"adapter": random_adapter(1, seed=0), "base": BaseDelta(1, {"w": [lora(1, 0)]}), "n": [torch.ones(1)]}
    names = [name for name, _ in tree.named_tensors(message)]
    assert names[:2] == ["adapter/hidden/B", "adapter/hidden/A"]
    assert names[-3:] == ["base/w[0]/B", "base/w[0]/A", "n[0]"]


def test_what_is_of_one_kind_is_found_at_any_depth_outside_adapters() -> None:
    adapter, base = random_adapter(2, seed=0), BaseDelta(1, {})
    message = {"adapter": adapter, "more": [(base, 1.0), {"inner": torch.ones(2)}]}
    assert list(tree.find(message, Adapter)) == [adapter]
    assert list(tree.find(message, BaseDelta)) == [base]
    assert [x.shape for x in tree.find(message, torch.Tensor)] == [(2,)]


def test_map_tensors_reaches_every_tensor() -> None:
    message = {"adapter": random_adapter(1, seed=0), "list": [torch.ones(2), 3], "base": BaseDelta(1, {"w": [lora(1, 0)]})}
    doubled = tree.map_tensors(lambda x: 2 * x, message)
    for (name, x), (other, y) in zip(tree.named_tensors(message), tree.named_tensors(doubled), strict=True):
        assert name == other
        assert torch.equal(2 * x, y)
    assert doubled["list"][1] == 3


def test_a_description_without_numbers() -> None:
    assert repr(random_adapter(2, seed=0)) == "Adapter(2 layers, ranks [2], 1 dense tensors, base toy)"
