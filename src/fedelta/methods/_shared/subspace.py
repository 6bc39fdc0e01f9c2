"""Penalties that hold factors near a reference, for all layers of one shape at once.

A penalty is computed at every step, so layers of equal shape are stacked: a model of 12 or of 48 adapted layers costs a dozen
small tensor operations, and nothing of size o x i is formed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fedelta import lowrank as lr
from fedelta.method import Penalty
from fedelta.tree import Adapter, Factor

logger = logging.getLogger("fedelta.methods")

Kind: TypeAlias = Literal["prox", "projector", "chordal"]
"""How a factor is tied to its reference; see `tie`."""


@dataclass(frozen=True, eq=False)
class Anchor:
    """The reference of a group of layers with one shape, rank and scale.

    Attributes:
        names: of the layers, G of them.
        B, A: shapes (G, o, r) and (G, r, i).
        scale: of all.
        bases: by factor, orthonormal columns that span those of B, (G, o, r), or those of A^T, (G, i, r); a factor without
            full rank at one of the layers has no entry.
    """

    names: Sequence[str]
    B: Tensor
    A: Tensor
    scale: float
    bases: dict[Factor, Tensor]

    def to(self, like: Tensor) -> Anchor:
        """On the device and in the dtype of a tensor."""
        bases = {which: Q.to(like) for which, Q in self.bases.items()}
        return replace(self, B=self.B.to(like), A=self.A.to(like), bases=bases)

    def live(self, adapter: Adapter) -> tuple[Tensor, Tensor]:
        """B and A of these layers in another adapter, stacked likewise."""
        xs = [adapter.layers[n] for n in self.names]
        return torch.stack([x.B for x in xs]), torch.stack([x.A for x in xs])


def anchors(reference: Adapter) -> Iterator[Anchor]:
    """The layers of an adapter by shape, rank, scale, and which of their factors span a subspace of full dimension."""
    bases = {n: _bases(x.B, x.A) for n, x in reference.layers.items()}
    keys = {n: (x.shape, x.rank, x.scale, tuple(bases[n])) for n, x in reference.layers.items()}
    for key in dict.fromkeys(keys.values()):
        names = [n for n, k in keys.items() if k == key]
        xs = [reference.layers[n] for n in names]
        stacked: dict[Factor, Tensor] = {which: torch.stack([bases[n][which] for n in names]) for which in key[-1]}
        yield Anchor(names, torch.stack([x.B for x in xs]), torch.stack([x.A for x in xs]), xs[0].scale, stacked)


def _bases(B: Tensor, A: Tensor) -> dict[Factor, Tensor]:
    found: dict[Factor, Tensor] = {"B": lr.basis(B), "A": lr.basis(A.mT)}
    return {which: Q for which, Q in found.items() if Q.shape[1] == A.shape[0]}


def product_distance(B: Tensor, A: Tensor, to: Anchor) -> Tensor:
    """sum over the group of ||B A - B_g A_g||_F^2, without scales: `lowrank.dist2` for stacked layers."""
    left = torch.cat([B - to.B, to.B], dim=2)
    right = torch.cat([A, A - to.A], dim=1)
    return ((left.mT @ left) * (right @ right.mT)).sum()


def tie(kind: Kind, which: Factor, B: Tensor, A: Tensor, to: Anchor) -> Tensor | None:
    """How far one factor is from its reference, summed over the group; with X for B or A^T, and Q a basis of X_g:

        prox        ||X - X_g||^2: a rotation within the span counts too
        projector   ||(I - Q Q^T) X||^2: what leaves the span, with the size of X
        chordal     r - ||Q^T orth(X)||^2: the sum of sin^2 of the principal angles, whatever the size of X

    None where the reference spans no subspace of full dimension, such as B = 0 in the first round; "prox" always has a value.
    """
    X, anchor = (B, to.B) if which == "B" else (A.mT, to.A.mT)
    if kind == "prox":
        return (X - anchor).square().sum()
    if which not in to.bases:
        return None
    Q = to.bases[which]
    # ||(I - Q Q^T) orth(X)||^2 is r - ||Q^T orth(X)||^2 without the loss of digits near zero.
    X = torch.linalg.qr(X).Q if kind == "chordal" else X
    return (X - Q @ (Q.mT @ X)).square().sum()


@dataclass(frozen=True, kw_only=True)
class Regulariser:
    """mu/2 ||s B A - s B_g A_g||^2 + alpha/2 tie + lam/2 (||A||^2 + ||B||^2), over the layers.

    Attributes:
        mu, alpha, lam: strengths.
        kind: of the tie, see `tie`.
        sides: the factors that are tied.
        scaled: False leaves s out.
        mean: over the layers; False is their sum.
    """

    mu: float
    alpha: float
    lam: float
    kind: Kind = "prox"
    sides: Sequence[Factor] = ("B",)
    scaled: bool = True
    mean: bool = True

    def towards(self, reference: Adapter) -> Penalty | None:
        """The penalty that ties an adapter to `reference`; None if all strengths are zero."""
        if not (self.mu or self.alpha or self.lam):
            return None
        groups = list(anchors(reference))
        self._tell_of_idle_ties(groups)

        @cache
        def on(device: torch.device, dtype: torch.dtype) -> list[Anchor]:
            return [g.to(torch.empty(0, device=device, dtype=dtype)) for g in groups]

        def value(live: Adapter) -> Tensor:
            like = next(iter(live.layers.values())).B
            total = torch.stack([self._of_group(live, g) for g in on(like.device, like.dtype)]).sum()
            return total / len(reference.layers) if self.mean else total

        return value

    def _of_group(self, live: Adapter, to: Anchor) -> Tensor:
        B, A = to.live(live)
        terms = [B.new_zeros(())]
        if self.mu:
            terms.append(self.mu * (to.scale**2 if self.scaled else 1.0) * product_distance(B, A, to))
        if self.alpha:
            ties = [tie(self.kind, which, B, A, to) for which in self.sides]
            terms += [self.alpha * x for x in ties if x is not None]
        if self.lam:
            terms.append(self.lam * (B.square().sum() + A.square().sum()))
        return 0.5 * torch.stack(terms).sum()

    def _tell_of_idle_ties(self, groups: Sequence[Anchor]) -> None:
        idle = [n for g in groups for n in g.names if not set(self.sides) <= g.bases.keys()]
        if idle and self.alpha and self.kind != "prox":
            logger.info("the %s term is off at %d layers without a full subspace, such as %s", self.kind, len(idle), idle[0])
