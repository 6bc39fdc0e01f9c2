"""Measures how well a merged adapter holds the exact mean of what was merged, from factors alone.

The exact mean is of the deltas, sum_k w_k dW_k, layer by layer. Its rank is up to the sum of the ranks, so that an adapter of
a smaller rank can only be near it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedelta import lowrank as lr
from fedelta.lowrank import LoRA
from fedelta.tree import Adapter


@dataclass(frozen=True)
class LayerFidelity:
    """The measures of one layer of a merged adapter; None where the exact mean is zero.

    Attributes:
        layer: its name.
        rank: of the merged delta.
        norm: ||M||_F of the exact mean M.
        energy: ||dW||_F^2 / ||M||_F^2.
        distance: ||dW - M||_F / ||M||_F.
        least: the smallest distance that a delta of this rank can have (Eckart-Young).
    """

    layer: str
    rank: int
    norm: float
    energy: float | None
    distance: float | None
    least: float | None


@dataclass(frozen=True)
class Fidelity:
    """The measures of a merged adapter.

    Attributes:
        layers: one by one.
        energy, distance, least: of all layers together, as of one long vector.
    """

    layers: Sequence[LayerFidelity]
    energy: float | None
    distance: float | None
    least: float | None


@dataclass(frozen=True)
class _Squares:
    """The squared norms of a layer: of the exact mean, the merged delta, their difference, and what the rank cuts off."""

    mean: float
    merged: float
    difference: float
    cut: float

    def shares(self) -> tuple[float | None, float | None, float | None]:
        """Returns energy, distance and least distance; None of a mean that is zero."""
        if not self.mean > 0:
            return None, None, None
        return self.merged / self.mean, math.sqrt(self.difference / self.mean), math.sqrt(self.cut / self.mean)


def fidelity(merged: Adapter, adapters: Sequence[Adapter], weights: Sequence[float]) -> Fidelity:
    """Compares a merged adapter with the exact mean of the deltas.

    Args:
        merged: any rank.
        adapters: those that were merged; they have its layers.
        weights: one for each of them, with sum one.
    """
    found = {n: _squares(x, [a.layers[n] for a in adapters], weights) for n, x in merged.layers.items()}
    layers = [LayerFidelity(n, merged.layers[n].rank, math.sqrt(s.mean), *s.shares()) for n, s in found.items()]
    sums = [math.fsum(getattr(s, name) for s in found.values()) for name in ("mean", "merged", "difference", "cut")]
    return Fidelity(layers, *_Squares(*sums).shares())


def _squares(merged: LoRA, deltas: Sequence[LoRA], weights: Sequence[float]) -> _Squares:
    mean = lr.stack(weights, deltas, dtype=torch.float64)
    spectrum = lr.spectrum(mean)
    # By the spectrum of the stacked difference, which keeps its digits where the two are nearly one: inner products do not.
    difference = lr.spectrum(lr.stack([1.0, -1.0], [merged, mean], dtype=torch.float64))
    own = lr.spectrum(merged)
    return _Squares(_sum(spectrum), _sum(own), _sum(difference), _sum(spectrum[merged.rank :]))


def _sum(spectrum: Tensor) -> float:
    return float(spectrum.square().sum())
