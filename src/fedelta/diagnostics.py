"""Diagnostics: functions of a round that return numbers.

They see what the updates mean through `Round.position`, and the server's model through `Round.global_model`, so they work for
every method. Norms and inner products are taken over all layers together, in float64, from products of factors of size R x R
with R = sum_k r_k; no dW is formed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.engines.rounds import Round
from fedelta.lowrank import LoRA
from fedelta.tree import Adapter

Value: TypeAlias = float | str | None


class Undefined(Exception):
    """A quantity has no value in this round; the message says why."""


def diagnose(round: Round) -> dict[str, Value]:
    """The numbers of a round; where one is undefined it is None, and `<name>_reason` says why.

    With dW_k the deltas of the round's updates (without a base delta) and p_k their weights:

        aggregation_error  ||sum p_k dW_k - s (sum p_k B_k) (sum p_k A_k)|| / ||sum p_k dW_k||: what averaging factors would get
                           wrong (Sun et al. 2024, arXiv 2403.12313); ranks must be equal
        effective_rank     of sum p_k dW_k, the mean over layers (Roy and Vetterli 2007)
        stable_rank        of sum p_k dW_k, the mean over layers
        update_norm        sum p_k ||dW_k||
        client_cosine      the mean cosine of the angle between two clients' deltas

    and, of the server's delta after the round (with its base delta):

        higher_rank_energy_ratio  the share of its energy beyond the smallest configured rank (Wu et al. 2026, arXiv
                                  2602.13486), the mean over the layers that have unequal ranks. It falls towards 0 when the
                                  higher ranks fade; that it stays high does not say that the model is good

    In gossip p_k is 1 / n, and there is no server's delta.
    """
    weights = [u.weight for u in round.updates]
    adapters = [round.position(u)[0] for u in round.updates if u.content]
    result: dict[str, Value] = {}
    numbers = {name: partial(number, weights, adapters) for name, number in _NUMBERS.items()}
    for name, number in (numbers | {"higher_rank_energy_ratio": partial(higher_rank_energy_ratio, round)}).items():
        try:
            if not adapters:
                raise Undefined("nothing travels")
            result[name] = number()
        except Undefined as reason:
            result |= {name: None, f"{name}_reason": str(reason)}
    return result


def aggregation_error(weights: Sequence[float], adapters: Sequence[Adapter]) -> float:
    """The relative error of averaging factors in place of deltas, at one scale for all."""
    wrong = right = 0.0
    for xs in _by_layer(adapters):
        xs = [lr.rescale(x, xs[0].scale) for x in xs]
        if len({x.rank for x in xs}) > 1:
            raise Undefined(f"unequal ranks {[x.rank for x in xs]}: factors cannot be averaged")
        mean = lr.mean_factors(weights, xs)
        # mean(B A) - mean(B) mean(A) = mean((B - mean B) (A - mean A)), which loses no digits and is 0 for equal clients
        centred = [LoRA(x.B - mean.B, x.A - mean.A, x.scale) for x in xs]
        wrong += _square(lr.stack(weights, centred))
        right += _square(lr.stack(weights, xs))
    if right == 0:
        raise Undefined("the mean delta is zero")
    return math.sqrt(wrong / right)


def effective_rank(weights: Sequence[float], adapters: Sequence[Adapter]) -> float:
    """exp(entropy of the normalised singular values) of the mean delta, the mean over layers."""
    return _mean_over_layers(lr.effective_rank, weights, adapters)


def stable_rank(weights: Sequence[float], adapters: Sequence[Adapter]) -> float:
    """||.||_F^2 / ||.||_2^2 of the mean delta, the mean over layers."""
    return _mean_over_layers(lr.stable_rank, weights, adapters)


def update_norm(weights: Sequence[float], adapters: Sequence[Adapter]) -> float:
    """The weighted mean of the norms of the clients' deltas."""
    return math.fsum(w * n for w, n in zip(weights, _gram(adapters).diagonal().sqrt().tolist(), strict=True))


def client_cosine(weights: Sequence[float], adapters: Sequence[Adapter]) -> float:
    """The mean cosine over pairs of clients whose deltas are not zero; weights do not matter."""
    gram = _gram(adapters)
    alive = gram.diagonal() > 0
    gram = gram[alive][:, alive]
    if len(gram) < 2:
        raise Undefined("fewer than two clients have a delta")
    length = gram.diagonal().sqrt()
    cosines = gram / length[:, None] / length
    pairs = torch.ones_like(cosines).triu(1).bool()
    return float(cosines[pairs].clamp(-1, 1).mean())


def higher_rank_energy_ratio(round: Round) -> float:
    """The share of the server's energy beyond the smallest configured rank, the mean over layers of unequal ranks."""
    if round.gossip or round.method.personal:
        raise Undefined("no model is common to all")
    ranks = {n: {p.rank_of(n) for p in round.peers} for n in round.template.layers}
    unequal = [n for n in ranks if len(ranks[n]) > 1]
    if not unequal:
        raise Undefined("equal ranks: every client holds all components")
    model = round.global_model()
    base = tree.total(model["base"]) if "base" in model else {}
    values = [lr.higher_rank_energy(_spectrum(model["adapter"].layers[n], base.get(n)), min(ranks[n])) for n in unequal]
    return math.fsum(values) / len(values)


_NUMBERS: dict[str, Callable[[Sequence[float], Sequence[Adapter]], float]] = {
    "aggregation_error": aggregation_error,
    "effective_rank": effective_rank,
    "stable_rank": stable_rank,
    "update_norm": update_norm,
    "client_cosine": client_cosine,
}


def _gram(adapters: Sequence[Adapter]) -> Tensor:
    """<dW_j, dW_k> summed over layers, (K, K): one R x R product per layer, summed over the blocks of its clients."""
    total = torch.zeros(len(adapters), len(adapters), dtype=torch.float64)
    for xs in _by_layer(adapters):
        x = lr.stack([1.0] * len(xs), xs)
        owner = torch.repeat_interleave(torch.eye(len(xs), dtype=torch.float64), torch.tensor([y.rank for y in xs]), dim=0)
        total += owner.mT @ ((x.B.mT @ x.B) * (x.A @ x.A.mT)) @ owner
    return total


def _mean_over_layers(rank: Callable[[Tensor], float], weights: Sequence[float], adapters: Sequence[Adapter]) -> float:
    values = [rank(lr.spectrum(lr.stack(weights, xs))) for xs in _by_layer(adapters)]
    return math.fsum(values) / len(values)


def _spectrum(x: LoRA, base: LoRA | Tensor | None) -> Tensor:
    whole = x if base is None else tree.add(base, x)
    return lr.spectrum(whole) if isinstance(whole, LoRA) else torch.linalg.svdvals(whole.to(torch.float64))


def _by_layer(adapters: Sequence[Adapter]) -> list[list[LoRA]]:
    """The clients' deltas of each layer, on the CPU in float64."""
    return [[a.layers[n].to("cpu", torch.float64) for a in adapters] for n in adapters[0].layers]


def _square(x: LoRA) -> float:
    return max(0.0, float(lr.inner(x, x)))
