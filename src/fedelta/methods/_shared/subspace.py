"""The penalty of `subspace_reg`, for all layers of one shape at once.

A penalty is computed at every step, so layers of equal shape are stacked: a model of 12 or of 48 adapted layers costs a dozen
small tensor operations, and nothing of size o x i is formed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from fedelta.method import Penalty
from fedelta.tree import Adapter


@dataclass(frozen=True, eq=False)
class Anchor:
    """The reference of a group of layers with one shape, rank and scale.

    Attributes:
        names: of the layers, G of them.
        B, A: shapes (G, o, r) and (G, r, i).
        scale: of all.
    """

    names: Sequence[str]
    B: Tensor
    A: Tensor
    scale: float

    def to(self, like: Tensor) -> Anchor:
        """Returns the reference on the device and in the dtype of a tensor."""
        return replace(self, B=self.B.to(like), A=self.A.to(like))

    def live(self, adapter: Adapter) -> tuple[Tensor, Tensor]:
        """Returns B and A of these layers in another adapter, stacked likewise."""
        xs = [adapter.layers[n] for n in self.names]
        return torch.stack([x.B for x in xs]), torch.stack([x.A for x in xs])


def anchors(reference: Adapter) -> Iterator[Anchor]:
    """Yields the layers of an adapter in groups of one shape, rank and scale."""
    keys = {n: (x.shape, x.rank, x.scale) for n, x in reference.layers.items()}
    for key in dict.fromkeys(keys.values()):
        names = [n for n, k in keys.items() if k == key]
        xs = [reference.layers[n] for n in names]
        yield Anchor(names, torch.stack([x.B for x in xs]), torch.stack([x.A for x in xs]), xs[0].scale)


def product_distance(B: Tensor, A: Tensor, to: Anchor) -> Tensor:
    """Returns sum over the group of ||B A - B_g A_g||_F^2, without scales: `lowrank.dist2` for stacked layers."""
    left = torch.cat([B - to.B, to.B], dim=2)
    right = torch.cat([A, A - to.A], dim=1)
    return ((left.mT @ left) * (right @ right.mT)).sum()


@dataclass(frozen=True, kw_only=True)
class Regulariser:
    """mu/2 ||s B A - s B_g A_g||^2 + alpha/2 ||B - B_g||^2 + lam/2 (||A||^2 + ||B||^2), over the layers.

    Attributes:
        mu, alpha, lam: strengths.
        scaled: False leaves s out.
        mean: over the layers; False is their sum.
    """

    mu: float
    alpha: float
    lam: float
    scaled: bool = True
    mean: bool = True

    def towards(self, reference: Adapter) -> Penalty | None:
        """Returns the penalty that ties an adapter to `reference`; None if all strengths are zero."""
        if not (self.mu or self.alpha or self.lam):
            return None
        groups = list(anchors(reference))

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
            terms.append(self.alpha * (B - to.B).square().sum())
        if self.lam:
            terms.append(self.lam * (B.square().sum() + A.square().sum()))
        return 0.5 * torch.stack(terms).sum()
