"""The battery on right aggregators and on the mistakes of public codes; plain torch, as a stranger would write it."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedelta.testing import ConformanceError, check_aggregator

State = dict[str, torch.Tensor]
LAYERS = ("encoder.query", "encoder.value", "encoder.dense")


def key(layer: str, which: str) -> str:
    return f"base_model.model.{layer}.lora_{which}.weight"


def normalised(weights: list[float]) -> list[float]:
    return [w / sum(weights) for w in weights]


def flex(states: list[State], alphas: list[float], ranks: list[int], weights: list[float], **mistakes: Any) -> list[State]:
    """FlexLoRA on dense matrices."""
    scale = mistakes.get("scale", lambda a, r: a / r)
    results: list[State] = [{} for _ in states]
    for layer in LAYERS:
        parts = zip(normalised(weights), states, alphas, ranks, strict=True)
        dense = sum(w * scale(a, r) * s[key(layer, "B")].double() @ s[key(layer, "A")].double() for w, s, a, r in parts)
        U, S, Vh = torch.linalg.svd(dense, full_matrices=False)
        for k, (a, r) in enumerate(zip(alphas, ranks, strict=True)):
            back = mistakes.get("back", scale)(a, r)
            dtype = states[k][key(layer, "A")].dtype
            results[k][key(layer, "B")] = (U[:, :r] * S[:r] / back).to(dtype)
            results[k][key(layer, "A")] = Vh[:r].to(dtype)
    return results


def factors(states: list[State], alphas: list[float], ranks: list[int], weights: list[float]) -> State:
    """FedIT, scales folded into B."""
    shares = {"A": normalised(weights)}
    shares["B"] = [w * a / alphas[0] for w, a in zip(shares["A"], alphas, strict=True)]
    which = {n: "A" if "lora_A" in n else "B" for n in states[0]}
    return {n: sum(w * s[n] for w, s in zip(shares[which[n]], states, strict=True)).to(x.dtype) for n, x in states[0].items()}


def residual(states: list[State], alphas: list[float], ranks: list[int], weights: list[float], turn: bool) -> State:
    """FedEx-LoRA, factors and residual in one stack; the published code transposes the residual always."""
    result, p = factors(states, alphas, ranks, weights), normalised(weights)
    for layer in LAYERS:
        A, B = result[key(layer, "A")], result[key(layer, "B")]
        parts = zip(p, states, alphas, strict=True)
        missed = sum(w * a / alphas[0] * s[key(layer, "B")].double() @ s[key(layer, "A")].double() for w, s, a in parts) - (
            B.double() @ A.double()
        )
        missed = missed.mT if turn and missed.shape[0] == missed.shape[1] else missed
        stacked = torch.cat([A, torch.eye(A.shape[1], dtype=A.dtype)]), torch.cat([B, missed.to(B.dtype)], dim=1)
        grown = len(stacked[0]) / ranks[0]  # the rank grew, and PEFT divides lora_alpha by it
        result[key(layer, "A")], result[key(layer, "B")] = stacked[0], stacked[1] * grown
    return result


def test_right_ones_pass() -> None:
    assert check_aggregator(flex, hetero_ranks=True).ok
    assert check_aggregator(factors, exact=False).ok
    assert check_aggregator(lambda *x: residual(*x, turn=False)).ok
    rs = check_aggregator(
        lambda *x: flex(*x, scale=lambda a, r: a / math.sqrt(r)), hetero_ranks=True, scale=lambda a, r: a / r**0.5
    )
    assert rs.count("kept") == len(rs.verdicts)


def mutating(states: list[State], alphas: list[float], ranks: list[int], weights: list[float]) -> Any:
    states[0][key("encoder.query", "A")].mul_(2.0)
    return flex(states, alphas, ranks, weights)


def transposed(*arguments: Any) -> Any:
    return [{n: x.mT for n, x in s.items()} for s in flex(*arguments)]


def unordered(states: list[State], alphas: list[float], ranks: list[int], weights: list[float]) -> Any:
    share = normalised([2.0 * weights[0], *weights[1:]])
    return flex(states, alphas, ranks, share)


def unweighted(states: list[State], alphas: list[float], ranks: list[int], weights: list[float]) -> Any:
    return flex(states, alphas, ranks, [1.0] * len(states))


def unnormalised(states: list[State], alphas: list[float], ranks: list[int], weights: list[float]) -> Any:
    results = flex(states, alphas, ranks, weights)
    return [{n: x * sum(weights) if "lora_B" in n else x for n, x in s.items()} for s in results]


def widening(*arguments: Any) -> Any:
    return [{n: x.double() for n, x in s.items()} for s in flex(*arguments)]


def renamed(*arguments: Any) -> Any:
    return [{n.removeprefix("base_model.model."): x for n, x in s.items()} for s in flex(*arguments)]


def no_scale(*arguments: Any) -> Any:
    return flex(*arguments, scale=lambda a, r: 1.0)


def lost_scale(*arguments: Any) -> Any:
    return flex(*arguments, scale=lambda a, r: 1.0, back=lambda a, r: a / r)


def sliced(states: list[State], alphas: list[float], ranks: list[int], weights: list[float]) -> Any:
    """One split at the largest rank, sliced for the others: the scale of the largest on all."""
    return flex(states, alphas, ranks, weights, back=lambda a, r: a / max(ranks))


def first_copy(states: list[State], alphas: list[float], ranks: list[int], weights: list[float]) -> Any:
    return [dict(states[0]) for _ in states]


WRONG: dict[Callable[..., Any], tuple[set[str], str]] = {
    mutating: ({"inputs unchanged"}, "lora_A.weight of client 0 is another after the call, relative change 1"),
    transposed: ({"layout"}, "a factor is transposed"),
    renamed: ({"layout"}, "differ in keys"),
    unordered: ({"order-free", "mean", "unequal ranks"}, "relative error"),
    unweighted: ({"weights", "mean", "unequal ranks"}, "ignores the weights"),
    unnormalised: ({"weights"}, "dW of layer 'encoder.query' is 10 times what is right"),
    widening: ({"dtype"}, "is torch.float64 where the inputs are torch.bfloat16"),
    no_scale: ({"scale", "unequal ranks"}, "one delta under lora_alpha"),
    lost_scale: ({"one client", "identical copies", "mean", "scale", "unequal ranks"}, "loses the scale"),
    sliced: ({"unequal ranks"}, "is 2 times what is right, relative error 1"),
    first_copy: ({"order-free", "weights", "mean", "scale", "unequal ranks"}, "the weights are not used"),
}


@pytest.mark.parametrize("fn", WRONG, ids=lambda fn: fn.__name__)
def test_wrong_ones_are_told_which_law_and_by_how_much(fn: Callable[..., Any]) -> None:
    laws, message = WRONG[fn]
    report = check_aggregator(fn, hetero_ranks=True, raise_on_failure=False)
    assert set(report.violations) == laws, str(report)
    assert message in str(report)


def test_a_mean_of_factors_is_told_from_the_mean_of_deltas() -> None:
    with pytest.raises(
        ConformanceError, match=r"mean: broken: averages factors: the cross terms B_j A_k .* relative error"
    ) as raised:
        check_aggregator(factors)
    assert set(raised.value.report.violations) == {"mean"}  # of one delta on one A its mean is right
    claimed = check_aggregator(flex, exact=False, raise_on_failure=False)
    assert "averages deltas where the mean of the factors is claimed" in claimed.violations["mean"]


def test_a_transposed_residual_is_told() -> None:
    report = check_aggregator(lambda *x: residual(*x, turn=True), raise_on_failure=False)
    assert "transposes the residual" in report.violations["mean"]
