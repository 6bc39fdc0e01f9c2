"""The way from updates to one adapter: their order, their checks, and a rule applied layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from torch import Tensor

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.lowrank import LoRA
from fedelta.numerics import threads
from fedelta.peers import Peer
from fedelta.tree import Adapter, Message


@dataclass(frozen=True, eq=False)
class ClientUpdate:
    """One client's update, as `aggregate` gets it. The weights of a round sum to one.

    Attributes:
        sender: who sent it.
        weight: how much it counts.
        content: the message, as `local_update` returned it.
        metrics: what the engine measured on it: "loss" and "num_steps" of the training and, for a method that needs
            validation, the scores of the upload, each as "validation_<name>".
    """

    sender: Peer
    weight: float
    content: Message
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])

    def __repr__(self) -> str:
        loss = f", loss {self.metrics['loss']:.4g}" if "loss" in self.metrics else ""
        return f"ClientUpdate(client {self.sender.id}, weight {self.weight:.4g}{loss}, content {sorted(self.content)})"


def unzip(updates: Sequence[ClientUpdate], key: str) -> tuple[list[float], list[Any]]:
    """The weights of the updates, and the entry `key` of each content, in the order of the senders' ids.

    Raises:
        ValueError: for no updates, or weights that do not sum to one.
        KeyError: naming the sender whose content lacks the entry.
    """
    updates = in_order(updates)
    weights = [u.weight for u in updates]
    tree.check_weights(weights, len(updates))
    for u in updates:
        if key not in u.content:
            raise KeyError(f"the update of client {u.sender.id} has no {key!r}, only {sorted(u.content)}")
    return weights, [u.content[key] for u in updates]


def in_order(updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
    """The updates by the senders' ids, so that the order of arrival does not change a bit of the result."""
    return sorted(updates, key=lambda u: u.sender.id)


Rule: TypeAlias = Callable[[Sequence[float], Sequence[LoRA], LoRA], LoRA]
"""(weights, the clients' deltas of one layer, the server's delta of that layer) -> the next delta of that layer."""


MANY = 64
"""Clients above which the layers of a merge take turns, so that there is never more than one large stack."""


FEW = 10**6
"""Numbers below which a merge is not worth a thread."""


def merge(rule: Rule, updates: Sequence[ClientUpdate], into: Adapter, *, adapters: Sequence[Adapter] | None = None) -> Adapter:
    """`rule` at every layer, and the weighted mean at every dense tensor.

    Args:
        rule: makes the next delta of a layer; a pure function, since several threads may call it.
        updates: of the round; their "adapter" entries are merged.
        into: the server's adapter, which says what layers, shapes and largest ranks an update may have.
        adapters: what is merged in place of the "adapter" entries, in the order of the senders' ids.

    Raises:
        ValueError: naming the client, the layer and the remedy, for an update that does not fit or is not finite.
    """
    if adapters is None:
        weights, adapters = unzip(updates, "adapter")
    else:
        weights = [u.weight for u in in_order(updates)]
        tree.check_weights(weights, len(adapters))
    base = next((a.base for a in (into, *adapters) if a.base is not None), None)
    into = replace(into, base=base)  # an unknown base would match two that differ
    with threads.one_thread():  # thousands of passes over small tensors, each of which would end at a barrier
        for u, adapter in zip(in_order(updates), adapters, strict=True):
            check_update(adapter, into, f"client {u.sender.id}")

    # In the server's dtypes: else whoever comes first would choose the dtype of the next state, and so everybody's.
    def at(layer: str) -> LoRA:
        old = into.layers[layer]
        return _at(layer, rule, weights, [a.layers[layer].to(old.dtype) for a in adapters], old)

    def head(name: str) -> Tensor:
        return lr.mean(weights, (a.dense[name].to(into.dense[name].dtype) for a in adapters))

    layers = threads.ordered(at, list(into.layers), 1 if _in_turn(into, len(adapters)) else None)
    return Adapter(layers, {name: head(name) for name in adapters[0].dense}, base)


def _in_turn(into: Adapter, count: int) -> bool:
    """Says that a merge goes layer by layer: threads would be idle, their stacks too large together, or the work elsewhere."""
    entries = sum(x.rank * sum(x.shape) for x in into.layers.values())
    return count > MANY or count * entries < FEW or any(x.B.device.type != "cpu" for x in into.layers.values())


def _at(layer: str, rule: Rule, weights: Sequence[float], xs: Sequence[LoRA], old: LoRA) -> LoRA:
    try:
        return rule(weights, xs, old)
    except ValueError as error:
        raise ValueError(f"layer {layer!r}: {error}") from error


def check_update(adapter: Adapter, into: Adapter, who: str) -> None:
    """Raises ValueError unless `adapter` is finite, fits the server's adapter and has no more components than it."""
    tree.check_fits(adapter, into, who, "the server")
    for name, x in adapter.layers.items():
        if x.rank > into.layers[name].rank:
            raise ValueError(
                f"layer {name!r}: {who} sends rank {x.rank}, above the largest configured rank "
                f"{into.layers[name].rank}; send no more components than the peer's rank"
            )
