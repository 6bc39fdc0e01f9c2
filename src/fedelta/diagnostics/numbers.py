"""Computes the numbers, of one layer or of several together, from the small matrices of `layers`.

Norms and inner products are taken over all given layers together; ranks, overlaps and angles are means over the layers that
have them. A quantity without a value raises Undefined.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fedelta import lowrank as lr
from fedelta.diagnostics.facts import Undefined
from fedelta.diagnostics.layers import SIDES, Layer, increments
from fedelta.lowrank import LoRA
from fedelta.tree import Factor

Number: TypeAlias = Callable[[Sequence[Layer]], float]
Form: TypeAlias = Literal["root", "squared"]

ALONE = "fewer than two clients have a delta"
NO_MEAN = "the mean delta is zero"

# --- of the clients' deltas, or of what they added ---------------------------------------------------------------------


def effective_rank(layers: Sequence[Layer]) -> float:
    """Returns exp(entropy of the normalised singular values) of the mean delta."""
    return _mean(lr.effective_rank(x.mean_svd[1]) for x in layers)


def stable_rank(layers: Sequence[Layer]) -> float:
    """Returns ||.||_F^2 / ||.||_2^2 of the mean delta."""
    return _mean(lr.stable_rank(x.mean_svd[1]) for x in layers)


def update_norm(layers: Sequence[Layer]) -> float:
    """Returns sum p_k ||dW_k||."""
    return math.fsum(w * n for w, n in zip(layers[0].weights, _lengths(layers).tolist(), strict=True))


def cancellation_ratio(layers: Sequence[Layer]) -> float:
    """Returns ||sum p_k dW_k|| / sum p_k ||dW_k||: 1 if all clients agree up to size, 0 if they cancel."""
    total = update_norm(layers)
    if total == 0:
        raise Undefined("no client has a delta")
    return min(1.0, _mean_norm(layers) / total)


def client_cosine(layers: Sequence[Layer]) -> float:
    """Returns the mean cosine over pairs of clients whose deltas are not zero; weights do not matter."""
    gram, length = _gram(layers), _lengths(layers)
    alive = length > 0
    if alive.sum() < 2:
        raise Undefined(ALONE)
    cosines = (gram / length[:, None] / length)[alive][:, alive]
    pairs = torch.ones_like(cosines).triu(1).bool()
    return float(cosines[pairs].clamp(-1, 1).mean())


def cosine_with_mean(layers: Sequence[Layer]) -> float:
    """Returns the mean cosine between a client's delta and the mean, over clients whose delta is not zero, all alike."""
    size, length = _mean_norm(layers), _lengths(layers)
    if size == 0:
        raise Undefined(NO_MEAN)
    weights = torch.tensor(layers[0].weights, dtype=torch.float64)
    alive = length > 0
    cosines = (_gram(layers) @ weights)[alive] / length[alive] / size
    return float(cosines.clamp(-1, 1).mean())


def overlap(side: Factor, form: Form, layers: Sequence[Layer]) -> float:
    """Returns the overlap of two clients' subspaces, the mean over pairs: the mean cos^2 of their angles, or its root."""
    return _mean((_formed(form, x.pairs[side]) for x in layers if len(x.pairs[side])), ALONE)


def overlap_with_mean(side: Factor, form: Form, layers: Sequence[Layer]) -> float:
    """Returns the overlap of a client's subspace with the leading singular vectors of the mean delta, the mean over clients."""
    angles = [x.angles[side] for x in layers if x.angles[side]]
    squared = [torch.stack([a.cos().square().mean() for a in of_layer]) for of_layer in angles]
    return _mean((_formed(form, x) for x in squared), NO_MEAN)


def energy_within_mean(side: Factor, layers: Sequence[Layer]) -> float:
    """Returns the share of a client's energy that lies in the mean's subspace, the mean over clients."""
    return _mean((float(x.inside[side].mean()) for x in layers if len(x.inside[side])), NO_MEAN)


def average_angle(side: Factor, layers: Sequence[Layer]) -> float:
    """Returns the mean principal angle between a client's subspace and the mean's, radians."""
    return _mean((float(torch.cat(x.angles[side]).mean()) for x in layers if x.angles[side]), NO_MEAN)


def largest_angle(side: Factor, layers: Sequence[Layer]) -> float:
    """Returns the largest of these angles, over all clients and layers."""
    found = [float(a.max()) for x in layers for a in x.angles[side]]
    if not found:
        raise Undefined(NO_MEAN)
    return max(found)


OF_CLIENTS: dict[str, Number] = {
    "effective_rank": effective_rank,
    "stable_rank": stable_rank,
    "update_norm": update_norm,
    "cancellation_ratio": cancellation_ratio,
    "client_cosine": client_cosine,
    "cosine_with_mean": cosine_with_mean,
    **{f"overlap_{s}_{f}": partial(overlap, s, f) for s in SIDES for f in ("root", "squared")},
    **{f"overlap_with_mean_{s}_{f}": partial(overlap_with_mean, s, f) for s in SIDES for f in ("root", "squared")},
    **{f"energy_within_mean_{s}": partial(energy_within_mean, s) for s in SIDES},
    **{f"angle_with_mean_{s}_average": partial(average_angle, s) for s in SIDES},
    **{f"angle_with_mean_{s}_largest": partial(largest_angle, s) for s in SIDES},
}

# --- of the clients' deltas and the factors that the server sends next -------------------------------------------------


def overlap_with_server(side: Factor, form: Form, squared: Sequence[Mapping[Factor, Tensor]]) -> float:
    """Returns the mean over clients of the overlap with the span of the factor that the server sends next."""
    return _mean((_formed(form, x[side]) for x in squared if len(x[side])), f"the {side} that the server sends next is zero")


OF_CLIENTS_AND_SERVER: dict[str, Callable[[Sequence[Mapping[Factor, Tensor]]], float]] = {
    f"overlap_with_server_{s}_{f}": partial(overlap_with_server, s, f) for s in SIDES for f in ("root", "squared")
}

# --- of factors averaged one by one ------------------------------------------------------------------------------------


def cross_term_norm(layers: Sequence[Layer]) -> float:
    """Returns ||sum p_k dW_k - s (sum p_k B_k) (sum p_k A_k)||, at one scale for all."""
    # mean(B A) - mean(B) mean(A) = mean((B - mean B) (A - mean A)), which loses no digits and is 0 for equal clients
    return math.sqrt(sum(_square(lr.stack(x.weights, _centred(x))) for x in layers))


def aggregation_error(layers: Sequence[Layer]) -> float:
    """Returns the cross terms relative to the mean delta."""
    wrong, right = cross_term_norm(layers), _mean_norm(layers)
    if right == 0:
        raise Undefined(NO_MEAN)
    return wrong / right


def consensus_factor(side: Factor, relative: bool, layers: Sequence[Layer]) -> float:
    """Returns sqrt(sum_k ||X_k - mean X||^2) for X = B or A, at one scale for all; relative to sqrt(sum_k ||X_k||^2)."""
    apart = sum(float(getattr(y, side).square().sum()) for x in layers for y in _centred(x))
    size = sum(float(getattr(y, side).square().sum()) for x in layers for y in _at_one_scale(x))
    return _distance(apart, size, relative)


def consensus_product(relative: bool, layers: Sequence[Layer]) -> float:
    """Returns sqrt(sum_k ||dW_k - mean dW||^2); relative to sqrt(sum_k ||dW_k||^2)."""
    size = sum(float(x.gram.diagonal().sum()) for x in layers)
    return _distance(sum(_spread(x) for x in layers), size, relative)


def _spread(x: Layer) -> float:
    """Returns sum_k ||dW_k - mean dW||^2, written on the differences from the first, so that it is 0 for equal deltas."""
    gram = increments(x.weights, x.deltas, [x.deltas[0]] * len(x.deltas)).gram
    return max(0.0, float(gram.diagonal().sum() - gram.mean(0).sum()))


def _distance(apart: float, size: float, relative: bool) -> float:
    if relative and size == 0:
        raise Undefined("all are zero")
    return math.sqrt(apart / size if relative else apart)


OF_NODES: dict[str, Number] = {
    **{f"consensus_{s}": partial(consensus_factor, s, False) for s in SIDES},
    "consensus_product": partial(consensus_product, False),
    **{f"consensus_{s}_relative": partial(consensus_factor, s, True) for s in SIDES},
    "consensus_product_relative": partial(consensus_product, True),
    "cross_term_norm": cross_term_norm,
}

# --- of the server's spectrum ------------------------------------------------------------------------------------------


def server_effective_rank(spectra: Mapping[str, Tensor], _ranks: Mapping[str, Sequence[int]]) -> float:
    """Returns the effective rank of the server's delta, the mean over layers."""
    return _mean(lr.effective_rank(S) for S in spectra.values())


def server_stable_rank(spectra: Mapping[str, Tensor], _ranks: Mapping[str, Sequence[int]]) -> float:
    """Returns the stable rank of the server's delta, the mean over layers."""
    return _mean(lr.stable_rank(S) for S in spectra.values())


LEADING = 32
"""Components of a spectrum that are told."""


def spectrum(spectra: Sequence[Tensor]) -> list[float]:
    """Returns the shares of energy of the leading components, the mean over layers whose delta is not zero.

    Those after the last one above 1e-12, such as the components that no layer has, are left out.
    """
    relative = [S / S.max() for S in spectra if bool(S.any())]  # whose squares do not underflow
    live = [S.square() / S.square().sum() for S in relative]
    if not live:
        raise Undefined("the delta is zero")
    shares = torch.zeros(len(live), LEADING, dtype=torch.float64)
    for row, found in zip(shares, live, strict=True):
        row[: len(found)] = found[:LEADING]
    mean = shares.mean(0)
    return mean[: int((mean > 1e-12).nonzero().max()) + 1].tolist()


def higher_rank_energy_ratio(spectra: Mapping[str, Tensor], ranks: Mapping[str, Sequence[int]]) -> float:
    """Returns the share of energy beyond the smallest configured rank, the mean over the layers of unequal ranks."""
    unequal = _unequal(spectra, ranks)
    return _mean(lr.higher_rank_energy(spectra[n], min(ranks[n])) for n in unequal)


def energy_by_band(spectra: Mapping[str, Tensor], ranks: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Returns the shares of energy between successive configured ranks, by band of components such as "3-8".

    Each is the mean over the layers of unequal ranks, without those that are zero. The last band lies beyond the largest rank,
    as "9-": only a base delta has it.
    """
    live = [spectra[n].square() for n in _unequal(spectra, ranks) if bool(spectra[n].any())]  # a zero delta has no shares
    if not live:
        raise Undefined("the server's delta is zero")
    edges = sorted({r for found in ranks.values() for r in found})
    bands = {_band(low + 1, high): slice(low, high) for low, high in pairwise([0, *edges])}
    bands[f"{edges[-1] + 1}-"] = slice(edges[-1], None)

    def share(band: slice) -> float:
        return _mean(float(x[band].sum() / x.sum()) for x in live)

    return {name: share(band) for name, band in bands.items()}


def _band(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _unequal(spectra: Mapping[str, Tensor], ranks: Mapping[str, Sequence[int]]) -> list[str]:
    unequal = [n for n in spectra if len(ranks[n]) > 1]
    if not unequal:
        raise Undefined("equal ranks: every client holds all components")
    return unequal


# --- what they share ---------------------------------------------------------------------------------------------------


def _gram(layers: Sequence[Layer]) -> Tensor:
    return torch.stack([x.gram for x in layers]).sum(0)


def _lengths(layers: Sequence[Layer]) -> Tensor:
    return _gram(layers).diagonal().clamp(min=0).sqrt()


def _mean_norm(layers: Sequence[Layer]) -> float:
    return math.sqrt(math.fsum(float(x.mean_svd[1].square().sum()) for x in layers))


def _at_one_scale(layer: Layer) -> list[LoRA]:
    xs = [lr.rescale(x, layer.deltas[0].scale) for x in layer.deltas]
    if len({x.rank for x in xs}) > 1:
        raise Undefined("unequal ranks: factors cannot be averaged")
    return xs


def _centred(layer: Layer) -> list[LoRA]:
    xs = _at_one_scale(layer)
    mean = lr.mean_factors(layer.weights, xs)
    return [LoRA(x.B - mean.B, x.A - mean.A, x.scale) for x in xs]


def _formed(form: Form, squared: Tensor) -> float:
    return float((squared if form == "squared" else squared.sqrt()).mean())


def _mean(values: Iterable[float], reason: str = "no layer") -> float:
    values = list(values)
    if not values:
        raise Undefined(reason)
    return math.fsum(values) / len(values)


def _square(x: LoRA) -> float:
    return max(0.0, float(lr.inner(x, x)))
