"""Known faults of aggregation code, each a right function with one thing wrong.

All take what `fedelta.testing.check_aggregator` gives: state dicts as PEFT writes them, lora_alpha, ranks and weights of the
clients; they return one state dict for each client. A client's delta is s B A, with s = lora_alpha / rank, B (o, r), A (r, i).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

State: TypeAlias = dict[str, Tensor]
Scale: TypeAlias = Callable[[float, int], float]
Aggregator: TypeAlias = Callable[[list[State], list[float], list[int], list[float]], list[State]]

A, B = ".lora_A.weight", ".lora_B.weight"


def standard(lora_alpha: float, rank: int) -> float:
    """Returns the scale of plain LoRA."""
    return lora_alpha / rank


def stabilised(lora_alpha: float, rank: int) -> float:
    """Returns the scale of rsLoRA."""
    return lora_alpha / math.sqrt(rank)


def layers(state: State) -> list[str]:
    """Returns the names of a state dict's layers."""
    return [name.removesuffix(A) for name in state if name.endswith(A)]


def shares(weights: Sequence[float]) -> list[float]:
    """Returns weights that sum to one."""
    return [w / sum(weights) for w in weights]


def equal(weights: Sequence[float]) -> list[float]:
    """Returns the same weight for all: what is left of a mean without weights."""
    return [1 / len(weights)] * len(weights)


def as_they_are(weights: Sequence[float]) -> list[float]:
    """Returns the weights, whatever they sum to."""
    return list(weights)


def total(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """Returns the weighted sum."""
    return sum((w * x for w, x in zip(weights, values, strict=True)), torch.zeros((), dtype=values[0].dtype))


def written(results: list[State], states: list[State]) -> list[State]:
    """Returns results in the dtypes of what was sent."""
    return [{n: x.to(s[n].dtype) for n, x in r.items()} for r, s in zip(results, states, strict=True)]


# --- the mean of the deltas, split into factors (FlexLoRA) ------------------------------------------------------------------


def on_b(U: Tensor, S: Tensor, Vh: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Returns the leading components, singular values on B."""
    return U[:, :rank] * S[:rank], Vh[:rank]


def v_for_its_transpose(U: Tensor, S: Tensor, Vh: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Takes rows of V where rows of V^T belong, as after torch.svd, which returns V; no error where V is square."""
    V = Vh.mT
    return U[:, :rank] * S[:rank], V[:rank] if V.shape[0] == V.shape[1] else Vh[:rank]


def one_root(U: Tensor, S: Tensor, Vh: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Puts the square root of the singular values on B and forgets it on A."""
    return U[:, :rank] * S[:rank].sqrt(), Vh[:rank]


def split_mean(
    states: list[State],
    alphas: list[float],
    ranks: list[int],
    weights: list[float],
    *,
    weigh: Callable[[Sequence[float]], list[float]] = shares,
    into: Scale = standard,
    out: Callable[[float, int, list[int]], float] | None = None,
    factors: Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]] = on_b,
    turn: bool = False,
    dtype: torch.dtype = torch.float64,
) -> list[State]:
    """Averages the deltas and gives each client the best approximation at its rank.

    Args:
        states, alphas, ranks, weights: of the clients.
        weigh: makes shares of the weights.
        into: the scale of a delta that is averaged.
        out: the scale by which a client's result is divided, of its lora_alpha, its rank and all ranks; `into` by default.
        factors: what the split becomes.
        turn: whether a square mean is transposed.
        dtype: of the mean.
    """
    results: list[State] = [{} for _ in states]
    for layer in layers(states[0]):
        deltas = [
            into(a, r) * s[layer + B].to(dtype) @ s[layer + A].to(dtype) for s, a, r in zip(states, alphas, ranks, strict=True)
        ]
        mean = total(weigh(weights), deltas).double()
        mean = mean.mT if turn and mean.shape[0] == mean.shape[1] else mean
        parts = torch.linalg.svd(mean, full_matrices=False)
        for result, a, r in zip(results, alphas, ranks, strict=True):
            left, right = factors(*parts, r)
            result[layer + B] = left / (out(a, r, ranks) if out else into(a, r))
            result[layer + A] = right
    return written(results, states)


# --- the mean of the factors (FedIT), padded with zeros at unequal ranks ----------------------------------------------------


def mean_of_factors(
    states: list[State], alphas: list[float], ranks: list[int], weights: list[float], *, ratio_on: str = B
) -> list[State]:
    """Averages B and A by themselves; unequal values of lora_alpha go to B on the way in, and to `ratio_on` on the way out."""
    p, largest = shares(weights), max(ranks)
    results: list[State] = [{} for _ in states]
    for layer in layers(states[0]):
        scaled = [standard(a, r) * s[layer + B] for s, a, r in zip(states, alphas, ranks, strict=True)]
        mean_b = total(p, [torch.nn.functional.pad(b, (0, largest - b.shape[1])) for b in scaled])
        mean_a = total(
            p, [torch.nn.functional.pad(s[layer + A], (0, 0, 0, largest - r)) for s, r in zip(states, ranks, strict=True)]
        )
        first = standard(alphas[0], ranks[0])
        for result, a, r in zip(results, alphas, ranks, strict=True):
            ratio = {B: 1.0, A: 1.0, ratio_on: first / standard(a, r)}
            result[layer + B] = mean_b[:, :r] / first * ratio[B]
            result[layer + A] = mean_a[:r] * ratio[A]
    return written(results, states)


# --- more rank instead of a split (FedEx-LoRA, FLoRA) -----------------------------------------------------------------------


def with_residual(
    states: list[State], alphas: list[float], ranks: list[int], weights: list[float], *, turn: bool = False
) -> list[State]:
    """Averages the factors, and adds what their product lacks of the mean of the deltas; `turn` transposes that."""
    results = mean_of_factors(states, alphas, ranks, weights)
    for layer in layers(states[0]):
        deltas = [standard(a, r) * s[layer + B] @ s[layer + A] for s, a, r in zip(states, alphas, ranks, strict=True)]
        exact = total(shares(weights), deltas)
        for result, a, r in zip(results, alphas, ranks, strict=True):
            b, a_factor = result[layer + B], result[layer + A]
            lacking = exact / standard(a, r) - b @ a_factor
            lacking = lacking.mT if turn and lacking.shape[0] == lacking.shape[1] else lacking
            whole = torch.eye(lacking.shape[1], dtype=lacking.dtype)
            grown = (r + len(whole)) / r  # PEFT divides lora_alpha by the new rank
            result[layer + B], result[layer + A] = torch.cat([b, lacking], dim=1) * grown, torch.cat([a_factor, whole])
    return written(results, states)


def stacked(
    states: list[State],
    alphas: list[float],
    ranks: list[int],
    weights: list[float],
    *,
    twice: bool = False,
    crossed: bool = False,
) -> list[State]:
    """Stacks all factors, weights on B; `twice` puts them on A, too, and `crossed` stacks B from the last client on."""
    p, results = shares(weights), [dict[str, Tensor]() for _ in states]
    for layer in layers(states[0]):
        blocks = [w * standard(a, r) * s[layer + B] for w, a, r, s in zip(p, alphas, ranks, states, strict=True)]
        rows = [(w if twice else 1.0) * s[layer + A] for w, s in zip(p, states, strict=True)]
        left, right = torch.cat(blocks[::-1] if crossed else blocks, dim=1), torch.cat(rows)
        for result, a in zip(results, alphas, strict=True):
            result[layer + B], result[layer + A] = left / standard(a, sum(ranks)), right.clone()
    return written(results, states)


# --- the faults -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        name: for the table.
        aggregate: the function with the fault.
        right: the same without it.
        seen: how to see it in one's own code.
        claims: the arguments of `check_aggregator` that say what the code means to do.
        start: whether it shows where nobody has trained yet, in A, and never in a delta.
    """

    name: str
    aggregate: Aggregator
    right: Aggregator
    seen: str
    claims: dict[str, Any]
    start: bool = False


EXACT: dict[str, Any] = {}
UNEQUAL: dict[str, Any] = {"hetero_ranks": True}
RSLORA: dict[str, Any] = {"hetero_ranks": True, "scale": stabilised}
OF_FACTORS: dict[str, Any] = {"exact": False}

rslora: Aggregator = partial(split_mean, into=stabilised)

FAULTS = (
    Fault(
        "the residual is transposed",
        partial(with_residual, turn=True),
        with_residual,
        "a square layer: the result is not the mean; other shapes raise, or are right",
        EXACT,
    ),
    Fault(
        "the mean is transposed",
        partial(split_mean, turn=True),
        split_mean,
        "a square layer with one client: it does not get its own delta back",
        EXACT,
    ),
    Fault(
        "lora_alpha / r is lost on the way in",
        partial(split_mean, into=lambda a, r: 1.0, out=lambda a, r, _: standard(a, r)),
        split_mean,
        "one client at lora_alpha other than r: its delta comes back r / lora_alpha times as large",
        UNEQUAL,
    ),
    Fault(
        "lora_alpha / r is applied twice",
        partial(split_mean, out=lambda a, r, _: 1.0),
        split_mean,
        "one client at lora_alpha other than r: its delta comes back lora_alpha / r times as large",
        UNEQUAL,
    ),
    Fault(
        "lora_alpha / r is left out on both sides",
        partial(split_mean, into=lambda a, r: 1.0),
        split_mean,
        "one client is right; two with unequal lora_alpha or ranks are not",
        UNEQUAL,
    ),
    Fault(
        "all get the scale of the largest rank",
        partial(split_mean, out=lambda a, r, ranks: standard(a, max(ranks))),
        split_mean,
        "unequal ranks: a client of rank r is off by the factor of the largest rank to r",
        UNEQUAL,
    ),
    Fault(
        "rsLoRA's square root of r is forgotten",
        split_mean,
        rslora,
        "unequal ranks with use_rslora; at equal ranks it cancels out",
        RSLORA,
    ),
    Fault(
        "V stands for V^T",
        partial(split_mean, factors=v_for_its_transpose),
        split_mean,
        "one client: the result is not its delta, though all shapes fit where the layer is square or tall",
        EXACT,
    ),
    Fault(
        "a square root of Sigma is lost",
        partial(split_mean, factors=one_root),
        split_mean,
        "one client: singular values come back as their square roots",
        EXACT,
    ),
    Fault(
        "the mean has no weights",
        partial(split_mean, weigh=equal),
        split_mean,
        "two clients at weights 3 and 1: swapping the weights changes nothing",
        EXACT,
    ),
    Fault(
        "the weights do not sum to one",
        partial(split_mean, weigh=as_they_are),
        split_mean,
        "counts of rows as weights: ten times the rows give ten times the delta",
        EXACT,
    ),
    Fault(
        "the weights are on both factors",
        partial(stacked, twice=True),
        stacked,
        "identical clients: the stack is smaller than what each sent, by the sum of the squared weights",
        EXACT,
    ),
    Fault(
        "B and A are stacked in other orders",
        partial(stacked, crossed=True),
        stacked,
        "two clients: B of the one meets A of the other; identical clients are right",
        EXACT,
    ),
    Fault(
        "the factors are averaged where the deltas should be",
        mean_of_factors,
        split_mean,
        "two clients: B_1 A_2 is in the result; identical clients are right",
        EXACT,
    ),
    Fault(
        "padding with zeros goes by another method's name",
        mean_of_factors,
        split_mean,
        "unequal ranks: the rows that only the largest client has shrink by its weight",
        UNEQUAL,
    ),
    Fault(
        "A is scaled in the first round",
        partial(mean_of_factors, ratio_on=A),
        mean_of_factors,
        "B is zero, so that no delta shows it: compare the norm of A before and after",
        OF_FACTORS,
        start=True,
    ),
    Fault(
        "the mean is taken in bfloat16",
        partial(split_mean, dtype=torch.bfloat16),
        split_mean,
        "float32 in, and an error far above 1e-6",
        EXACT,
    ),
)
