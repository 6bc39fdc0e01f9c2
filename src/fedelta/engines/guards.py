"""What a server accepts: nothing that a client sends may reach `aggregate` unseen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from fedelta import tree
from fedelta.merging import ClientUpdate
from fedelta.method import Client, Method, State
from fedelta.peers import Peer
from fedelta.tree import Adapter

T = TypeVar("T")


def check_upload(method: Method, t: int, state: State, update: ClientUpdate, template: Adapter) -> None:
    """Raises ValueError (TypeError for what is no mapping) unless an update is finite and fits the model that is trained.

    The model that the update stands for must have the template's layers, outer shapes, dense tensors and base. So must every
    adapter in the message, with ranks within the sender's capacity; where the message holds no adapter, but bare factors,
    that is asked of the model. A message with nothing in it stands for none.
    """
    who = f"client {update.sender.id}"
    content: Any = update.content
    if not isinstance(content, Mapping):
        raise TypeError(f"{who} sent a {type(content).__name__}: a message is a mapping of named entries")
    tree.check_finite(update.content, who)
    if content:
        sent = [*find(content, Adapter)]
        meant = _meant(method, t, state, update)
        for adapter in sent or [meant]:
            _check_adapter(adapter, template, update.sender, who)
            if not method.hetero_rank:
                _check_full(adapter, template, update.sender, who)
        if all(adapter is not meant for adapter in sent):
            tree.check_fits(meant, template, who, "the template")


def _meant(method: Method, t: int, state: State, update: ClientUpdate) -> Adapter:
    meant: Any = method.position(t, state, update)[0]
    if not isinstance(meant, Adapter):
        raise TypeError(f"client {update.sender.id} sent a {type(meant).__name__} where an Adapter was expected")
    return meant


def find(message: Any, kind: type[T]) -> Iterator[T]:
    """Everything of one kind in a message, at any depth outside adapters and base deltas."""
    if isinstance(message, kind):
        yield message
    elif isinstance(message, Mapping):
        for value in message.values():
            yield from find(value, kind)
    elif isinstance(message, list | tuple):
        for value in message:
            yield from find(value, kind)


def check_population(peers: Sequence[Peer]) -> None:
    """Raises ValueError before the first round for no clients, or for some that cannot be one or have nothing to train on."""
    if not peers:
        raise ValueError("a federation needs at least one client, got none")
    if bad := [p for p in peers if p.id < 0 or p.rank < 1]:
        raise ValueError(f"client {bad[0].id} has rank {bad[0].rank}: ids start at 0, ranks at 1")
    empty = [p.id for p in peers if p.num_examples < 1]
    if empty:
        raise ValueError(f"clients {empty} have no training examples: leave them out, or give them a share of the data")


def check_templates(clients: Sequence[Client], template: Adapter) -> None:
    """Raises ValueError, naming client and layer, unless every client begins from the leading rows of the template's A.

    Bit by bit: a method that freezes A, or never sends it, takes the A of a client for that of all others. Independent draws
    would moreover average to one that is smaller by the root of their number.
    """
    known: Adapter | None = None  # a template that clients share is looked at once
    for client in clients:
        if (own := client.template) is not known:
            _check_begins(own, template, client.peer.id)
        known = own


def _check_begins(own: Adapter, template: Adapter, k: int) -> None:
    tree.check_names(own.layers, template.layers, f"client {k}", "the template", "layers")
    for layer, x in own.layers.items():
        common = template.layers[layer].A
        if not _leads(x.A, common):
            raise ValueError(
                f"layer {layer!r}: client {k} begins from another A {tuple(x.A.shape)} than the leading rows of the common "
                f"{tuple(common.shape)}; give it `template_for(peer, template)`, with the same template for all"
            )


def _leads(rows: Tensor, common: Tensor) -> bool:
    """Whether `rows` (r, i) are the first of `common`; at once where they are the same memory."""
    if rows.data_ptr() == common.data_ptr() and rows.stride() == common.stride():
        return len(rows) <= len(common)
    return torch.equal(rows, common[: len(rows)].to(rows))


def _check_adapter(adapter: Adapter, template: Adapter, sender: Peer, who: str) -> None:
    tree.check_fits(adapter, template, who, "the template")
    for name, tensor in tree.parameters(adapter).items():
        if not tensor.is_floating_point():
            raise ValueError(f"{who}: {name} holds {tensor.dtype}, where floating-point numbers are trained")
    for layer, x in adapter.layers.items():
        if not x.scale * sender.scale_of(layer, x.rank) > 0:
            raise ValueError(
                f"layer {layer!r}: {who} sent scale {x.scale}, where its own is {sender.scale_of(layer, x.rank)}; return the "
                "scale that training started with"
            )
        if x.rank > sender.rank_of(layer):
            raise ValueError(
                f"layer {layer!r}: {who} sent rank {x.rank}, above its capacity of {sender.rank_of(layer)}; raise its rank in "
                "the configuration, or let it train what it was sent"
            )


def _check_full(adapter: Adapter, template: Adapter, sender: Peer, who: str) -> None:
    """Raises ValueError for fewer components than the sender began with, which a method for equal ranks cannot average."""
    for layer, x in adapter.layers.items():
        if x.rank < min(sender.rank_of(layer), template.layers[layer].rank):
            raise ValueError(
                f"layer {layer!r}: {who} sent rank {x.rank} of its {sender.rank_of(layer)}, but this method needs equal ranks; "
                "use one for unequal ranks, or let it send all components"
            )
