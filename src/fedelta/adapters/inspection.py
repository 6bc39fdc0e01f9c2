"""Measures an adapter, and the likeness of two, layer by layer from their factors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.lowrank import LoRA
from fedelta.tree import Adapter


@dataclass(frozen=True)
class LayerFacts:
    """The measures of one layer of an adapter.

    Attributes:
        layer: its name.
        shape: (o, i), of dW.
        rank, scale: as stored.
        norm: ||dW||_F.
        effective_rank: exp of the entropy of sigma / sum sigma; 0 for a zero dW.
        stable_rank: ||dW||_F^2 / ||dW||_2^2; 0 for a zero dW.
        spectrum: the singular values of dW, descending.
    """

    layer: str
    shape: tuple[int, int]
    rank: int
    scale: float
    norm: float
    effective_rank: float
    stable_rank: float
    spectrum: list[float]


@dataclass(frozen=True)
class SpanOverlap:
    """The angles between two subspaces; all None where one of them is empty.

    Attributes:
        overlap: mean squared cosine of the principal angles: 1 if the smaller span lies in the other, 0 if they are orthogonal.
        smallest, largest: of the principal angles, in degrees.
    """

    overlap: float | None
    smallest: float | None
    largest: float | None


@dataclass(frozen=True)
class LayerOverlap:
    """The likeness of one layer of two adapters.

    Attributes:
        layer: its name.
        cosine: <dW, dW'> / (||dW|| ||dW'||); None where one of them is zero.
        A: the row spans of the two A.
        B: the column spans of the two B.
    """

    layer: str
    cosine: float | None
    A: SpanOverlap
    B: SpanOverlap


def describe(adapter: Adapter) -> list[LayerFacts]:
    """Returns the spectrum, norm and ranks of every layer.

    Raises:
        ValueError: for an adapter with NaN or Inf, naming the tensor.
    """
    tree.check_finite(adapter, "the adapter")
    return [_facts(name, x) for name, x in adapter.layers.items()]


def compare(x: Adapter, y: Adapter, names: tuple[str, str] = ("adapter 0", "adapter 1")) -> list[LayerOverlap]:
    """Returns the cosine and principal angles at every layer.

    Args:
        x: an adapter.
        y: another one of the same base; their ranks may differ.
        names: what an error message calls them.

    Raises:
        ValueError: naming both and the layer, if they adapt different layers, shapes or bases, or hold NaN or Inf.
    """
    tree.check_fits(y, x, names[1], names[0])
    pairs = [(name, a, y.layers[name]) for name, a in x.layers.items()]
    return [LayerOverlap(name, _cosine(a, b), _spans(a, b, "A"), _spans(a, b, "B")) for name, a, b in pairs]


def _facts(name: str, x: LoRA) -> LayerFacts:
    S = lr.spectrum(x)
    return LayerFacts(
        layer=name,
        shape=x.shape,
        rank=x.rank,
        scale=x.scale,
        norm=float(S.square().sum().sqrt()),
        effective_rank=lr.effective_rank(S),
        stable_rank=lr.stable_rank(S),
        spectrum=S.tolist(),
    )


def _cosine(x: LoRA, y: LoRA) -> float | None:
    x, y = x.to(torch.float64), y.to(torch.float64)
    size = float(lr.norm(x) * lr.norm(y))
    return float(lr.inner(x, y)) / size if size > 0 else None


def _spans(x: LoRA, y: LoRA, which: Literal["A", "B"]) -> SpanOverlap:
    angles = lr.principal_angles(_columns(x, which), _columns(y, which))
    if not len(angles):
        return SpanOverlap(None, None, None)
    return SpanOverlap(
        overlap=float(angles.cos().square().mean()),
        smallest=math.degrees(float(angles.min())),
        largest=math.degrees(float(angles.max())),
    )


def _columns(x: LoRA, which: Literal["A", "B"]) -> Tensor:
    # Half precision is too coarse for the test that tells a numerical rank.
    columns = x.B if which == "B" else x.A.mT
    return columns.to(lr.wide(columns.dtype))
