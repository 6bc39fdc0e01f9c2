"""The synchronisation of `fedgalore`'s second moments: one estimate from those of the clients.

A layer's moments are (m, r_k), on a basis that all share, of which client k has the first r_k columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fedelta import tree
from fedelta.merging import ClientUpdate
from fedelta.methods._fedgalore.galore import transport
from fedelta.methods._shared.owners import owner_mean
from fedelta.numerics.ajive import Ajive, decompose
from fedelta.seeding import SERVER, derive
from fedelta.tree import Adapter, Message, Tensors

StateSync: TypeAlias = Literal["ajive", "mean", "block_mean", "none"]
"""The server's rule for the clients' second moments."""


@dataclass(frozen=True)
class Synchroniser:
    """The synchronisation of second moments: the part of them that travels, and one estimate from those of the clients.

    Attributes:
        kind: "ajive" keeps the shared signal, "mean" is the mean, "block_mean" the mean of each row's mean over the basis,
            "none" sends nothing.
        settings: of AJIVE.
    """

    kind: StateSync
    settings: Ajive

    def upload(self, moments: Tensors, layers: Iterable[str]) -> Message:
        """Returns the entry of a message; none for "none"."""
        if self.kind == "none":
            return {}
        if self.kind != "block_mean":
            return {"second_moment": moments}
        named = set(layers)
        return {"second_moment": {n: v.mean(1, keepdim=True) if n in named else v for n, v in moments.items()}}

    def read(self, update: ClientUpdate, coordinates: Tensors, dense: Tensors) -> Tensors:
        """Returns the moments in an update that has these coordinates and dense tensors.

        Raises:
            ValueError: for moments that cannot be theirs.
        """
        shapes = {n: [len(C), 1 if self.kind == "block_mean" else C.shape[1]] for n, C in coordinates.items()}
        shapes |= {n: list(x.shape) for n, x in dense.items()}
        check_moments(update.content["second_moment"], shapes, f"client {update.sender.id}")
        return update.content["second_moment"]

    def synchronise(
        self, weights: Sequence[float], sent: Sequence[Tensors], old: Tensors, server: Adapter, *, seed: int, t: int
    ) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Returns nu, at the server's ranks, and for "ajive" by layer the joint rank; dense tensors get the mean.

        `old` are those of before, for columns that nobody has who sent any. AJIVE's draws depend on the run's seed, the round t
        and the layer's name.
        """
        heads = [{n: v[n] for n in server.dense} for v in sent]
        values = tree.mean(weights, heads)
        joint: dict[str, int] = {}
        for n, x in server.layers.items():
            blocks, rank = [v[n] for v in sent], 1 if self.kind == "block_mean" else x.rank
            if self.kind == "ajive":
                draws = derive(seed, t, SERVER, "ajive", n)
                values[n], joint[n] = shared_moments(weights, blocks, rank, old.get(n), settings=self.settings, seed=draws)
            else:
                values[n] = mean_moments(weights, blocks, rank, old.get(n))
        return values, joint


def mean_moments(weights: Sequence[float], blocks: Sequence[Tensor], rank: int, old: Tensor | None) -> Tensor:
    """Returns moments whose column j is the mean over the clients that have it; else that of `old`, else the widest's mean."""
    fallback = widened(max(blocks, key=lambda x: x.shape[1]), rank) if old is None else old
    return owner_mean(weights, blocks, fallback)


def shared_moments(
    weights: Sequence[float],
    blocks: Sequence[Tensor],
    rank: int,
    old: Tensor | None,
    *,
    settings: Ajive,
    seed: int,
) -> tuple[Tensor, int]:
    """Returns the mean of the joint parts of the blocks, by AJIVE, or of the blocks where they have no part in common.

    AJIVE sees the roots, and the mean is squared: the range of the moments themselves is so wide that it then often finds
    nothing. Arguments that are not listed are those of `mean_moments`.

    Args:
        settings: of AJIVE.
        seed: of AJIVE's draws.

    Returns:
        The moments, none negative, and the joint rank; 0 says that they are the mean.
    """
    xs = [x.sqrt() for x in blocks]
    ajive = decompose(xs, settings, seed=seed) if len(xs) > 1 else None
    if ajive is None or not ajive.joint_rank:
        return mean_moments(weights, blocks, rank, old), 0
    joint = [ajive.joint(x).clamp(min=0).to(x.dtype) for x in xs]  # a projection may fall below zero
    mean = mean_moments(weights, joint, rank, None if old is None else old.sqrt())
    return mean.square(), ajive.joint_rank


def widened(v: Tensor, rank: int) -> Tensor:
    """Returns moments (m, r) with further columns, up to `rank`, that are the mean of those they have."""
    return torch.cat([v, v.mean(dim=1, keepdim=True).expand(-1, rank - v.shape[1])], dim=1)


def shares(weights: Sequence[float]) -> list[float]:
    """Returns the weights of some of the updates, brought to sum one."""
    total = math.fsum(weights)
    return [w / total for w in weights]


def transport_all(moments: Tensors, old: Tensors, new: Tensors) -> dict[str, Tensor]:
    """Transports moments to other bases, layer by layer.

    Those of dense tensors, and means over a whole basis, do not depend on one and stay.
    """
    return {n: transport(v, old[n], new[n]) if n in old and v.shape[1] > 1 else v for n, v in moments.items()}


def check_moments(moments: Tensors, shapes: Mapping[str, Sequence[int]], who: str) -> None:
    """Raises ValueError unless there are finite moments, none negative, of these shapes."""
    tree.check_names(moments, shapes, who, "the server", "second moments")
    tree.check_finite(moments, who)
    for name, v in moments.items():
        if list(v.shape) != list(shapes[name]):
            raise ValueError(
                f"second moments of {name!r}: {who} sent shape {tuple(v.shape)}, where its update has {tuple(shapes[name])}; "
                "send those of the tensors that were trained"
            )
        if bool((v < 0).any()):
            raise ValueError(f"second moments of {name!r}: {who} sent values below 0, which squares cannot have")
