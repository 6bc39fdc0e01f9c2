"""A client's part of `fedgalore`: adapters on a basis, and gradients seen through `Client.gradient`.

Second moments are those of the projected gradient, by layer, as (m, r) in the orientation of `galore.py`; those of dense
tensors are by their names, in their shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.lowrank import LoRA
from fedelta.method import Client
from fedelta.methods._fedgalore.galore import (
    Side,
    basis_of,
    coordinates,
    leading_basis,
    project_back,
    seeded_basis,
    trained_factor,
)
from fedelta.seeding import generator
from fedelta.tree import Adapter, BaseDelta, Factor, Message, Tensors


@dataclass(frozen=True)
class Projection:
    """Adapters whose layers are coordinates on a basis.

    Attributes:
        side: see `galore.trained_factor`.
        scale: of every layer.
    """

    side: Side
    scale: float

    def factor(self, x: LoRA) -> Factor:
        """Returns the name of the trained factor of a layer."""
        return trained_factor(x.shape, self.side)

    def factors(self, adapter: Adapter) -> dict[str, Factor]:
        """Returns the name of the trained factor of every layer."""
        return {n: self.factor(x) for n, x in adapter.layers.items()}

    def zero_coordinates(self, like: Adapter, bases: Tensors) -> Adapter:
        """Returns `like` with coordinates zero on the leading columns of the bases, one for each component that can be."""

        def zero(layer: str, x: LoRA) -> LoRA:
            which = self.factor(x)
            Q = bases[layer][:, : min(x.rank, *x.shape)].to(x.A)
            return project_back(Q.new_zeros(x.shape[0 if which == "B" else 1], Q.shape[1]), Q, which, self.scale)

        return tree.map_named(zero, like)

    def draw_bases(self, like: Adapter, seed: int, epoch: int, rank: int) -> dict[str, Tensor]:
        """Draws bases of `rank` columns, or as many as can be, from the seed.

        Everyone draws them whole and keeps the leading columns, since QR's bits depend on `rank`.
        """
        lengths = {n: x.shape[1 if self.factor(x) == "B" else 0] for n, x in like.layers.items()}
        return {n: seeded_basis(seed, epoch, n, lengths[n], min(rank, *x.shape)) for n, x in like.layers.items()}

    def bases(self, adapter: Adapter) -> dict[str, Tensor]:
        """Returns the frozen factors, (n, r)."""
        return {n: basis_of(x, self.factor(x)) for n, x in adapter.layers.items()}

    def coordinates(self, adapter: Adapter) -> dict[str, Tensor]:
        """Returns the trained factors, (m, r)."""
        return {n: coordinates(x, self.factor(x)) for n, x in adapter.layers.items()}

    def leading_bases(self, gradients: Mapping[str, LoRA], ranks: Mapping[str, int]) -> dict[str, Tensor]:
        """Returns the leading singular vectors of gradients, on the sides that are frozen."""
        return {n: leading_basis(x, self.factor(x), ranks[n]) for n, x in gradients.items()}

    def project_back(self, content: Message, server: Adapter, who: str) -> Adapter:
        """Returns the deltas of an upload's coordinates, which are on the leading columns of the server's bases."""
        sent = content["coordinates"]
        tree.check_names(sent, server.layers, who, "the server", "layers")

        def back(layer: str, old: LoRA) -> LoRA:
            which = self.factor(old)
            return project_back(sent[layer], basis_of(old, which)[:, : sent[layer].shape[1]], which, self.scale)

        return Adapter(tree.map_named(back, server).layers, content["dense"], server.base)

    def mean(self, weights: Sequence[float], xs: Sequence[LoRA], old: LoRA) -> LoRA:
        """Returns the mean of deltas on one basis, of which each has the leading columns: exact, at the rank of `old`."""
        which = self.factor(old)
        own = [coordinates(x, which) for x in xs]
        whole = [torch.nn.functional.pad(C, (0, old.rank - C.shape[1])) for C in own]
        return project_back(lr.mean(weights, whole), basis_of(old, which), which, self.scale)

    def to_parameters(self, moments: Tensors, start: Adapter) -> dict[str, Tensor]:
        """Returns second moments as the optimiser has them: by parameter name, of gradients that the scale has multiplied."""
        named = {n: v for n, v in moments.items() if n in start.dense}
        for n, which in self.factors(start).items():
            if n in moments:
                v = self.scale**2 * moments[n].expand(-1, start.layers[n].rank)
                named[f"{n}.lora_{which}"] = v if which == "B" else v.mT
        return named

    def from_parameters(self, named: Tensors, start: Adapter) -> dict[str, Tensor]:
        """Returns the optimiser's second moments by layer, on the CPU: the inverse of `to_parameters`."""
        moments = {n: named[n].cpu() for n in start.dense if n in named}
        for n, which in self.factors(start).items():
            v = named[f"{n}.lora_{which}"].cpu() / self.scale**2
            moments[n] = v if which == "B" else v.mT.contiguous()
        return moments


def sketch(client: Client, t: int, like: Adapter, base: BaseDelta, seed: int, power_iterations: int) -> dict[str, LoRA]:
    """Returns a rank-r approximation P Z^T of the gradient G of each weight, r the rank of `like`; P has orthonormal columns.

    G itself is never formed: at B = 0 the gradient of B is G A^T, for any A. This is the randomised range finder of Halko,
    Martinsson and Tropp (2011, arXiv 0909.4061, algorithm 4.4) without oversampling, on one minibatch, in 2 + 2 *
    `power_iterations` passes.
    """

    def seen_through(which: Factor, bases: Tensors) -> dict[str, Tensor]:
        """Returns G Q (for "B") or G^T Q (for "A"): the gradient of the one factor where the other is Q^T or Q."""

        def probe(layer: str, x: LoRA) -> LoRA:
            Q = bases[layer].to(x.A)
            return project_back(Q.new_zeros(x.shape[0 if which == "B" else 1], Q.shape[1]), Q, which, 1.0)

        gradient = client.gradient(tree.map_named(probe, like), 1, base=base, t=t)
        return {n: coordinates(x, which) for n, x in gradient.layers.items()}

    def draw(layer: str, x: LoRA) -> Tensor:
        source = generator(seed, t, client.peer.id, "fedgalore sketch", layer)
        return torch.randn(x.shape[1], min(x.rank, *x.shape), generator=source, dtype=torch.float64)

    Z = {n: draw(n, x) for n, x in like.layers.items()}
    P: dict[str, Tensor] = {}
    for _ in range(1 + power_iterations):
        P = _orthonormal(seen_through("B", _orthonormal(Z)))
        Z = seen_through("A", P)
    return {n: LoRA(P[n].to(Z[n]), Z[n].mT.contiguous()) for n in Z}


def check_sketch(sent: Mapping[str, LoRA], server: Adapter, who: str) -> None:
    """Raises ValueError unless `sent` is a sketch of the gradients at the server's layers."""
    tree.check_names(sent, server.layers, who, "the server", "layers")
    for name, x in sent.items():
        if x.shape != server.layers[name].shape or x.A.dtype != x.B.dtype:
            raise ValueError(
                f"layer {name!r}: {who} sent no sketch of a gradient of shape {server.layers[name].shape}; send what `sketch` "
                "returns"
            )


def _orthonormal(columns: Tensors) -> dict[str, Tensor]:
    return {n: torch.linalg.qr(x.to(torch.float64)).Q for n, x in columns.items()}
