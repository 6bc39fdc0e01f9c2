"""Reads a round's clients, server and nodes once, whatever the method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.diagnostics.layers import Layer, cumulative, increments, overlaps_with
from fedelta.engines.rounds import Round
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate
from fedelta.peers import template_for, with_distinct_ranks
from fedelta.tree import Adapter, Factor, Message


class Undefined(Exception):
    """Says that a quantity has no value in this round; the message gives the reason."""


@dataclass(frozen=True, eq=False)
class Facts:
    """The layers of a round, by name. An attribute that the round cannot know raises Undefined."""

    round: Round

    @cached_property
    def updates(self) -> Mapping[str, Layer]:
        """The deltas that the clients' uploads mean, without a base delta."""
        return {n: cumulative(self._weights, _deltas(n, self._uploads)) for n in self.names}

    @cached_property
    def changes(self) -> Mapping[str, Layer]:
        """The same, less the delta that each client started from."""
        xs = self._uploads
        if self.round.method.personal:
            raise Undefined("clients start from what they keep to themselves")
        starts = [_start(self.round, u) for u in self.round.updates if u.content]
        return {n: increments(self._weights, _deltas(n, xs), _deltas(n, starts)) for n in self.names}

    @cached_property
    def nodes(self) -> Mapping[str, Layer]:
        """The deltas that the nodes of a graph hold after the round, each with the same weight."""
        if not self.round.gossip:
            raise Undefined("with a server there is one model")
        models = [self.round.participant_model(p)["adapter"] for p in self.round.peers]
        weights = [1 / len(models)] * len(models)
        return {n: cumulative(weights, _deltas(n, models)) for n in self.names}

    @cached_property
    def server(self) -> Mapping[str, Tensor]:
        """The singular values of the server's delta after the round, its base delta included."""
        model = self._global_model
        base = tree.total(model["base"]) if "base" in model else {}
        return {n: _spectrum(model["adapter"].layers[n], base.get(n)) for n in self.names}

    @cached_property
    def overlaps(self) -> Mapping[str, Mapping[Factor, Tensor]]:
        """Squared overlaps of the clients' factors with those that the server sends next, to a client of the largest ranks."""
        new = self._global_model["adapter"].layers
        return {n: overlaps_with(x, new[n]) for n, x in self.updates.items()}

    @cached_property
    def ranks(self) -> Mapping[str, list[int]]:
        """The configured ranks of each layer that differ, ascending."""
        distinct = with_distinct_ranks(self.round.peers)
        return {n: sorted({p.rank_of(n) for p in distinct}) for n in self.names}

    @property
    def names(self) -> list[str]:
        """The names of the layers."""
        return list(self.round.template.layers)

    @cached_property
    def _global_model(self) -> Message:
        if self.round.gossip or self.round.method.personal:
            raise Undefined("no model is common to all")
        return self.round.global_model()

    @cached_property
    def _uploads(self) -> list[Adapter]:
        found = [self.round.position(u)[0] for u in self.round.updates if u.content]
        if not found:
            raise Undefined("nothing travels")
        return found

    @property
    def _weights(self) -> list[float]:
        return [u.weight for u in self.round.updates if u.content]


def _deltas(layer: str, adapters: Sequence[Adapter]) -> list[LoRA]:
    return [x.layers[layer] for x in adapters]


def _start(round: Round, update: ClientUpdate) -> Adapter:
    """Returns the adapter that a client started from; the base that goes with it is that of its `position`."""
    peer = update.sender
    before = round.before[str(peer.id)] if round.gossip else round.before
    down = round.method.broadcast(round.t, before, peer)
    return round.method.deploy(down, {}, template_for(peer, round.template))["adapter"]


def _spectrum(x: LoRA, base: LoRA | Tensor | None) -> Tensor:
    whole = x if base is None else tree.add(base, x)
    return lr.spectrum(whole) if isinstance(whole, LoRA) else torch.linalg.svdvals(whole.to(torch.float64))
