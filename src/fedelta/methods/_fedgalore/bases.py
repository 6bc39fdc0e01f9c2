"""Sources of the basis of `fedgalore`: the seed, or the clients' mean gradient.

A rule takes part in three steps of a round: the broadcast, a client's start, and the refresh at its end. It keeps nothing; its
memory is in the method's state: "adapter", whose frozen factors are the basis Q; "second_moment" nu, on that basis; "epoch",
"began" and "refresh_rounds", which say since when; "seed" and "rank", from which bases are drawn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fedelta import tree
from fedelta.lowrank import stack
from fedelta.merging import ClientUpdate
from fedelta.method import Client, State
from fedelta.methods._fedgalore.moments import shares, transport_all
from fedelta.methods._fedgalore.projection import Projection, sketch
from fedelta.peers import Peer
from fedelta.tree import Adapter, Message, Tensors

BasisName: TypeAlias = Literal["shared_seed", "server_basis"]

AUTO_STEPS = 200
"""Local steps on one basis, as GaLore has it."""


@dataclass(frozen=True, eq=False)
class LocalStart:
    """A client's start of a round.

    Attributes:
        adapter: C_k = 0, on this client's columns of Q.
        moments: nu, on that basis; none if there are none yet.
        extra: entries of the upload that are known before training.
    """

    adapter: Adapter
    moments: Tensors
    extra: Message


@dataclass(frozen=True)
class BasisRule(ABC):
    """A source of bases.

    Attributes:
        projection: of the method.
        power_iterations: of the SVD of a gradient.
    """

    projection: Projection
    power_iterations: int

    @abstractmethod
    def broadcast(self, t: int, state: State, to: Peer) -> Message:
        """Returns the entries of a broadcast that `local_start` reads."""

    @abstractmethod
    def local_start(self, t: int, down: Message, like: Adapter, client: Client) -> LocalStart:
        """Returns a client's start; `like` has its ranks and the server's dense tensors."""

    @abstractmethod
    def refresh(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        """Returns the state after round t, on another Q if it is time, and nu transported to it."""

    @abstractmethod
    def traffic(self, t: int, own: Adapter, refresh_rounds: int | None) -> tuple[int, int]:
        """Returns the numbers of bases and sketches that go down to a peer and up from it in round t.

        Coordinates and moments are not among them. `own` has the ranks of the peer.
        """


@dataclass(frozen=True)
class SharedSeed(BasisRule):
    """Bases that everybody draws from the seed."""

    def broadcast(self, t: int, state: State, to: Peer) -> Message:
        moments = _leading(state["second_moment"], to, state["adapter"].layers)
        return {"second_moment": moments, "epoch": state["epoch"], "rank": state["rank"]}

    def local_start(self, t: int, down: Message, like: Adapter, client: Client) -> LocalStart:
        bases = self.projection.draw_bases(like, down["seed"], down["epoch"], down["rank"])
        return LocalStart(self.projection.zero_coordinates(like, bases), down["second_moment"], {})

    def refresh(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        state = _with_refresh_rounds(state, updates)
        if not _refresh_due(t, state):
            return state
        bases = self.projection.draw_bases(state["adapter"], state["seed"], state["epoch"] + 1, state["rank"])
        return _on_another_basis(t, state, bases, self.projection)

    def traffic(self, t: int, own: Adapter, refresh_rounds: int | None) -> tuple[int, int]:
        return 0, 0


@dataclass(frozen=True)
class ServerBasis(BasisRule):
    """The leading singular vectors of the mean gradient; clients sketch theirs before each refresh. The first Q is drawn.

    The mean delta would be no substitute: it lies in the old basis, which would so be kept for ever.
    """

    def broadcast(self, t: int, state: State, to: Peer) -> Message:
        layers = state["adapter"].layers
        bases = self.projection.bases(state["adapter"]) if state["epoch"] else {}
        down = {"second_moment": _leading(state["second_moment"], to, layers), "basis": _leading(bases, to, layers)}
        return {**down, "rank": state["rank"], "sketch": self._sketch_due(t, state)}

    def local_start(self, t: int, down: Message, like: Adapter, client: Client) -> LocalStart:
        bases = down["basis"] or self.projection.draw_bases(like, down["seed"], 0, down["rank"])
        extra: Message = {}
        if down["sketch"]:
            extra = {"sketch": sketch(client, t, like, down["base"], down["seed"], self.power_iterations)}
        return LocalStart(self.projection.zero_coordinates(like, bases), down["second_moment"], extra)

    def refresh(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        state = _with_refresh_rounds(state, updates)
        sketches = [u for u in updates if "sketch" in u.content]
        if not sketches or not self._sketch_due(t, state):
            return state
        weights, layers = shares([u.weight for u in sketches]), state["adapter"].layers
        sent = [u.content["sketch"] for u in sketches]
        mean = {n: stack(weights, [G[n] for G in sent]) for n in layers}
        bases = self.projection.leading_bases(mean, {n: x.rank for n, x in layers.items()})
        return _on_another_basis(t, state, bases, self.projection)

    def traffic(self, t: int, own: Adapter, refresh_rounds: int | None) -> tuple[int, int]:
        due = t == 0 or (refresh_rounds is not None and t % refresh_rounds == 0)
        return tree.count(self.projection.bases(own)) if t else 0, tree.count(own.layers) if due else 0

    def _sketch_due(self, t: int, state: State) -> bool:
        return state["epoch"] == 0 or _refresh_due(t, state)


RULES: dict[BasisName, type[BasisRule]] = {"shared_seed": SharedSeed, "server_basis": ServerBasis}


def _leading(values: Tensors, to: Peer, layers: Iterable[str]) -> Tensors:
    """Returns the columns of each layer's tensor that a peer has; a dense tensor's values whole."""
    named = set(layers)
    return {n: v[:, : to.rank_of(n)] if n in named else v for n, v in values.items()}


def _with_refresh_rounds(state: State, updates: Sequence[ClientUpdate]) -> State:
    """Returns the state with the rounds on one basis, which the first round's steps settle if they were not given."""
    taken = [u.content["num_steps"] for u in updates if "num_steps" in u.content]
    if state["refresh_rounds"] is not None or not taken:
        return state
    return {**state, "refresh_rounds": max(1, round(AUTO_STEPS * len(taken) / sum(taken)))}


def _refresh_due(t: int, state: State) -> bool:
    """Returns True if round t is the last on its basis."""
    rounds = state["refresh_rounds"]
    return rounds is not None and t + 1 - state["began"] >= rounds


def _on_another_basis(t: int, state: State, bases: Tensors, projection: Projection) -> State:
    """Returns the state on another basis, from the round after t on."""
    old, server = state["adapter"], projection.zero_coordinates(state["adapter"], bases)
    moments = transport_all(state["second_moment"], projection.bases(old), projection.bases(server))
    return {**state, "adapter": server, "second_moment": moments, "epoch": state["epoch"] + 1, "began": t + 1}
