"""Participants: `Peer`, and the part of the server's adapter that a peer may hold."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, cast, overload

import numpy.typing as npt

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.lowrank import LoRA
from fedelta.numerics import threads
from fedelta.sampling import Numbered
from fedelta.seeding import SERVER
from fedelta.tree import Adapter


@dataclass(frozen=True)
class Peer:
    """A participant as the federation knows it: plain data.

    Attributes:
        id: unique, not negative.
        rank: capacity of a layer that `rank_pattern` does not mention. The current rank is the shape of the factors in hand.
        num_examples: n_k, its training examples.
        base_version: of the base delta that it holds; 0 after a loss.
        lora_alpha: numerator of the scale; None means a constant scale, `scale`.
        rslora: scale lora_alpha / sqrt(r) in place of lora_alpha / r.
        rank_pattern: ranks of single layers, by their exact names. A file's or a user's regular expressions are resolved into
            names where they come in, by `fedelta.models.patterns`.
        alpha_pattern: the same for `lora_alpha`.
        scale: of every layer at every rank where there is no `lora_alpha`: ranks can then be compared at one learning rate.
    """

    id: int
    rank: int
    num_examples: int = 1
    base_version: int = 0
    lora_alpha: float | None = None
    rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict[str, int], hash=False)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict[str, float], hash=False)
    scale: float = 1.0

    def __repr__(self) -> str:
        """Returns what is not the default; of patterns, how many layers they name."""
        said = [f"id={self.id}", f"rank={self.rank}", f"num_examples={self.num_examples}"]
        for entry in fields(self)[3:]:
            value = getattr(self, entry.name)
            if isinstance(value, Mapping):
                said += [f"{entry.name}=<{len(cast('Mapping[str, Any]', value))} layers>"] if value else []
            elif value != entry.default:
                said.append(f"{entry.name}={value}")
        return f"Peer({', '.join(said)})"

    def rank_of(self, layer: str) -> int:
        """The rank that this peer can hold at a layer."""
        return self.rank_pattern.get(layer, self.rank)

    def scale_of(self, layer: str, rank: int) -> float:
        """The scale with which this peer applies a rank-`rank` delta at a layer; without components, that of rank 1."""
        lora_alpha = self.alpha_pattern.get(layer, self.lora_alpha)
        if lora_alpha is None:
            return self.scale
        rank = max(rank, 1)
        return lora_alpha / (math.sqrt(rank) if self.rslora else rank)


class Peers(Sequence[Peer], Numbered):
    """The peers of a federation in the order of ids, each made when it is asked for.

    What all of them have in common, or in all, can be read from `ids`, `kinds` and `examples` without going through them: a
    federation may have millions, of whom a round needs a hundred.
    """

    @property
    @abstractmethod
    def kinds(self) -> Sequence[Peer]:
        """Returns the first peer of each kind: two of a kind differ in id, number of examples and base version only."""

    @property
    @abstractmethod
    def examples(self) -> npt.NDArray[Any]:
        """Returns the numbers of examples, shape (peers,), in the order of ids."""

    @abstractmethod
    def peer(self, k: int) -> Peer:
        """Returns the peer with an id. Raises KeyError for an id that nobody has."""

    def doubtful(self) -> Sequence[Peer]:
        """Returns the peers among which one stands, if there is any, that no federation can serve; by default all."""
        return self

    @overload
    def __getitem__(self, at: int) -> Peer: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Peer]: ...
    def __getitem__(self, at: int | slice) -> Peer | Sequence[Peer]:
        return self.peer(self.ids[at]) if isinstance(at, int) else [self.peer(k) for k in self.ids[at]]

    def __len__(self) -> int:
        return len(self.ids)


FEW = 20
"""Peers up to which an error names each."""


def kinds_of(peers: Sequence[Peer]) -> Sequence[Peer]:
    """Returns the first peer of each kind, as in `Peers.kinds`: few, however many peers there are."""
    if isinstance(peers, Peers):
        return peers.kinds
    found: dict[Hashable, Peer] = {}
    for p in peers:
        found.setdefault(_kind(p), p)
    return list(found.values())


def _kind(p: Peer) -> Hashable:
    patterns = (tuple(sorted(pattern.items())) for pattern in (p.rank_pattern, p.alpha_pattern))
    return p.rank, p.lora_alpha, p.rslora, p.scale, *patterns


def named(peers: Sequence[Peer]) -> Sequence[Peer]:
    """Returns the peers that an error names: all, or one of each kind where they are many."""
    return peers if len(peers) <= FEW else kinds_of(peers)


def demand_different_ids(ids: Sequence[int]) -> None:
    """Raises ValueError if two of some ids, ascending, are the same."""
    twice = sorted({a for a, b in pairwise(ids) if a == b})
    if twice:
        raise ValueError(f"peer ids must differ, got {twice} more than once")


def demand_equal_ranks(name: str, template: Adapter, peers: Sequence[Peer]) -> None:
    """Raises ValueError, naming methods that can, if two peers hold different ranks or scales at a layer."""
    if len(with_distinct_ranks(peers)) == 1:
        return
    for layer in template.layers:
        ranks = {p.id: p.rank_of(layer) for p in named(peers)}
        if len(set(ranks.values())) > 1:
            raise ValueError(
                f"{name} needs equal ranks, but layer {layer!r} has ranks {ranks} by client; give all clients one rank, or "
                "use a method for unequal ranks: zeropad (pads factors) or flexlora (averages deltas)"
            )


def with_ranks(peer: Peer, ranks: Mapping[str, int]) -> Peer:
    """The peer with these ranks by layer, such as those that are left to it after pruning."""
    return replace(peer, rank_pattern=dict(ranks))


def template_for(peer: Peer, template: Adapter) -> Adapter:
    """The common initial adapter as a peer holds it: its leading components, under the peer's scales.

    A change of scale goes to B, so that every peer has the same rows of A.

    Raises:
        ValueError: for a peer whose rank is above the template's.
    """

    def fit(layer: str, x: LoRA) -> LoRA:
        rank = peer.rank_of(layer)
        if rank > x.rank:
            raise ValueError(f"layer {layer!r}: client {peer.id} has rank {rank}, the template only {x.rank}")
        return lr.rescale(lr.components(x, 0, rank), peer.scale_of(layer, rank))

    return tree.map_named(fit, template)


def slice_for(adapter: Adapter, to: Peer, *, on: lr.SigmaOn = "B", fill: Adapter | None = None) -> Adapter:
    """The leading components that a peer can hold, written with the peer's scales.

    A layer with fewer components than the peer's rank is padded: live rows of A (those of `fill` where given), B zero.
    `on` says which factor takes the change of scale (`lowrank.rescale`). By default A is the server's to the bit, as methods
    that average factors need it: a client that trains nothing gives back the A that it got.
    """

    def fit(layer: str, x: LoRA) -> LoRA:
        rank = to.rank_of(layer)
        rows = fill.layers[layer].A if fill is not None and fill.layers[layer].rank >= rank else None
        x = lr.pad(lr.components(x, 0, min(rank, x.rank)), rank, fill=rows)
        return lr.rescale(x, to.scale_of(layer, rank), on=on)

    return tree.map_named(fit, adapter)


def truncate_for(adapter: Adapter, to: Peer, *, sigma_on: lr.SigmaOn = "B") -> Adapter:
    """The best approximation (truncated SVD) that a peer can hold, written with the peer's scales."""

    def fit(layer: str, x: LoRA) -> LoRA:
        rank = to.rank_of(layer)
        return lr.truncate(x, rank, scale=to.scale_of(layer, rank), sigma_on=sigma_on)

    with threads.one_thread():
        return tree.map_named(fit, adapter)


def largest(template: Adapter, peers: Sequence[Peer]) -> Peer:
    """A peer of id -1 that can hold what any of the peers can: whose ranks the server's own copy has."""
    top, distinct = max(kinds_of(peers), key=lambda p: p.rank), with_distinct_ranks(peers)
    ranks = {n: max(p.rank_of(n) for p in distinct) for n in template.layers}
    return replace(with_ranks(top, ranks), id=SERVER, base_version=0)


def with_distinct_ranks(peers: Sequence[Peer]) -> list[Peer]:
    """One peer of each kind of ranks: few, however many peers there are."""
    return list({(p.rank, *sorted(p.rank_pattern.items())): p for p in kinds_of(peers)}.values())


def at_largest(template: Adapter, peers: Sequence[Peer]) -> Adapter:
    """The template at the ranks and scales of `largest`: dW and the rows of A are the template's, B takes a change of scale."""
    return slice_for(template, largest(template, peers))
