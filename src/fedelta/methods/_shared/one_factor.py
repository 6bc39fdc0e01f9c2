"""Messages and means of one factor, for methods whose clients train it while the other is common to all and does not go up."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate, in_order, merge, unzip
from fedelta.methods._shared.owners import owner_mean
from fedelta.tree import Adapter, Factor, Message


def only(which: Factor, adapter: Adapter) -> Message:
    """Returns the message with one factor of every layer, and the head."""
    return {which: tree.factors(adapter, which), "dense": adapter.dense}


def completed(which: Factor, update: ClientUpdate, server: Adapter) -> Adapter:
    """Returns the adapter that an upload of one factor stands for; the other one is as `slice_for` sent it."""
    sent, who = update.content[which], f"client {update.sender.id}"
    tree.check_names(sent, server.layers, who, "the server", "layers")

    def complete(layer: str, old: LoRA) -> LoRA:
        rank = sent[layer].shape[1 if which == "B" else 0]
        held = lr.rescale(lr.components(old, 0, rank), update.sender.scale_of(layer, rank))
        return lr.with_factor(held, which, sent[layer])

    return Adapter(tree.map_named(complete, server).layers, update.content["dense"], server.base)


def averaged(which: Factor, updates: Sequence[ClientUpdate], server: Adapter, *, equal_ranks: bool = False) -> Adapter:
    """Returns the server's adapter with the mean of the factor that was sent, each component's over the clients that have it.

    A change of scale goes to B, which leaves A as it was sent. Exact at equal ranks: the mean of the factor is then the mean of
    the deltas; `equal_ranks` refuses others.
    """
    unzip(updates, which)  # names a sender whose content lacks the factor
    adapters = [completed(which, u, server) for u in in_order(updates)]
    return merge(partial(_mean_of, which, equal_ranks), updates, server, adapters=adapters)


def _mean_of(which: Factor, equal_ranks: bool, weights: Sequence[float], xs: Sequence[LoRA], old: LoRA) -> LoRA:
    if equal_ranks and any(x.rank != old.rank for x in xs):
        raise ValueError(
            f"needs rank {old.rank} of all, got {[x.rank for x in xs]}; use a method for unequal ranks: zeropad or flexlora"
        )
    return of_owners(which, weights, [lr.rescale(x, old.scale) for x in xs], old)


def of_owners(which: Factor, weights: Sequence[float], xs: Sequence[LoRA], old: LoRA) -> LoRA:
    """Returns `old` with the mean of each component of one factor over the deltas that have it, whatever their scales."""
    if which == "B":
        return lr.with_factor(old, "B", owner_mean(weights, [x.B for x in xs], old.B))
    rows = owner_mean(weights, [x.A.mT for x in xs], old.A.mT).mT
    return lr.with_factor(old, "A", rows.contiguous())
