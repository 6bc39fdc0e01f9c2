"""Where the basis of `fedgalore` comes from: the seed, the server, or each client's own gradient.

A rule is asked five times in a round: what a client must be told, how that client begins, what of its adapter travels, on what
basis the server puts second moments together, and what changes after the round. It keeps nothing; its memory is in the
method's state: "adapter", whose frozen factors are the common basis; "second_moment", on that basis; "epoch", "began" and
"refresh_rounds", which say since when; "seed" and "rank", from which bases are drawn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fedelta import tree
from fedelta.lowrank import LoRA, stack
from fedelta.merging import ClientUpdate
from fedelta.method import Client, State
from fedelta.methods._fedgalore.moments import common_bases, shares, transported
from fedelta.methods._fedgalore.projection import Projection, sketch
from fedelta.peers import Peer
from fedelta.tree import Adapter, Message, Tensors

BasisName: TypeAlias = Literal["shared_seed", "server_basis", "client_svd"]

AUTO_STEPS = 200
"""Local steps on one basis, as GaLore has it."""


@dataclass(frozen=True, eq=False)
class Beginning:
    """What a client starts a round from.

    Attributes:
        start: coordinates zero, on this client's basis.
        moments: the second moments, on that basis; none if there are none yet.
        extra: entries of the upload that are known before training.
    """

    start: Adapter
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
    def told(self, t: int, state: State, to: Peer) -> Message:
        """The entries of a broadcast that `begin` reads."""

    @abstractmethod
    def begin(self, t: int, down: Message, like: Adapter, client: Client) -> Beginning:
        """A client's beginning; `like` has its ranks and the server's dense tensors."""

    def learned(self, adapter: Adapter) -> Message:
        """What of a trained adapter travels; by default coordinates, since the server has the basis."""
        return {"coordinates": self.projection.coordinates(adapter), "dense": adapter.dense}

    def aligned(
        self, state: State, weights: Sequence[float], adapters: Sequence[Adapter], sent: Sequence[Tensors]
    ) -> tuple[State, Sequence[Tensors]]:
        """The state with the basis on which moments are to be merged, and the clients' moments on that basis."""
        return state, sent

    def refreshed(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        """The state after round t, on another basis if it is time."""
        return state

    @abstractmethod
    def entries(self, t: int, own: Adapter, largest: Adapter, *, refresh_rounds: int | None, synced: bool) -> tuple[int, int]:
        """The numbers of bases and sketches that go down and up in round t, beside coordinates and moments.

        `own` has the ranks of the peer, `largest` those of the server; `synced` says whether moments travel.
        """

    def held(self, own: Adapter, largest: Adapter) -> Adapter:
        """Whose columns of the moments a client is sent."""
        return own

    def step_ranks(self, ranks: Mapping[str, Sequence[int]]) -> dict[str, int]:
        """By layer the rank of what a round adds to the base, from those of the clients."""
        return {n: max(own) for n, own in ranks.items()}

    def _seen(self, t: int, down: Message, like: Adapter, client: Client) -> dict[str, LoRA]:
        return sketch(client, t, like, down["base"], down["seed"], self.power_iterations)


@dataclass(frozen=True)
class SharedSeed(BasisRule):
    """Drawn from the seed, by everyone."""

    def told(self, t: int, state: State, to: Peer) -> Message:
        moments = _leading(state["second_moment"], to, state["adapter"].layers)
        return {"second_moment": moments, "epoch": state["epoch"], "rank": state["rank"]}

    def begin(self, t: int, down: Message, like: Adapter, client: Client) -> Beginning:
        bases = self.projection.drawn(like, down["seed"], down["epoch"], down["rank"])
        return Beginning(self.projection.start(like, bases), down["second_moment"], {})

    def refreshed(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        state = _timed(state, updates)
        if not _ends(t, state):
            return state
        bases = self.projection.drawn(state["adapter"], state["seed"], state["epoch"] + 1, state["rank"])
        return _moved(t, state, bases, self.projection)

    def entries(self, t: int, own: Adapter, largest: Adapter, *, refresh_rounds: int | None, synced: bool) -> tuple[int, int]:
        return 0, 0


@dataclass(frozen=True)
class ServerBasis(BasisRule):
    """The leading singular vectors of the mean gradient; clients sketch theirs before each refresh. At first drawn.

    The mean delta would be no substitute: it lies in the old basis, which would so be kept for ever.
    """

    def told(self, t: int, state: State, to: Peer) -> Message:
        layers = state["adapter"].layers
        bases = self.projection.bases(state["adapter"]) if state["epoch"] else {}
        down = {"second_moment": _leading(state["second_moment"], to, layers), "basis": _leading(bases, to, layers)}
        return {**down, "rank": state["rank"], "sketch": self._due(t, state)}

    def begin(self, t: int, down: Message, like: Adapter, client: Client) -> Beginning:
        bases = down["basis"] or self.projection.drawn(like, down["seed"], 0, down["rank"])
        extra = {"sketch": self._seen(t, down, like, client)} if down["sketch"] else {}
        return Beginning(self.projection.start(like, bases), down["second_moment"], extra)

    def refreshed(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        state, heard = _timed(state, updates), [u for u in updates if "sketch" in u.content]
        if not heard or not self._due(t, state):
            return state
        weights, layers = shares([u.weight for u in heard]), state["adapter"].layers
        mean = {n: stack(weights, [u.content["sketch"][n] for u in heard]) for n in layers}
        return _moved(t, state, self.projection.leading(mean, {n: x.rank for n, x in layers.items()}), self.projection)

    def entries(self, t: int, own: Adapter, largest: Adapter, *, refresh_rounds: int | None, synced: bool) -> tuple[int, int]:
        due = t == 0 or (refresh_rounds is not None and t % refresh_rounds == 0)
        return tree.count(self.projection.bases(own)) if t else 0, tree.count(own.layers) if due else 0

    def _due(self, t: int, state: State) -> bool:
        return state["epoch"] == 0 or _ends(t, state)


@dataclass(frozen=True)
class ClientSVD(BasisRule):
    """The leading singular vectors of this client's gradient in this round.

    Moments live on the directions that most of the clients share, and are transported from and to a client's own.
    """

    def told(self, t: int, state: State, to: Peer) -> Message:
        moments = state["second_moment"]
        return {"second_moment": moments, "basis": self.projection.bases(state["adapter"]) if moments else {}}

    def begin(self, t: int, down: Message, like: Adapter, client: Client) -> Beginning:
        seen = self._seen(t, down, like, client)
        start = self.projection.start(like, self.projection.leading(seen, {n: x.rank for n, x in seen.items()}))
        return Beginning(start, transported(down["second_moment"], down["basis"], self.projection.bases(start)), {})

    def learned(self, adapter: Adapter) -> Message:
        return {"adapter": adapter}

    def aligned(
        self, state: State, weights: Sequence[float], adapters: Sequence[Adapter], sent: Sequence[Tensors]
    ) -> tuple[State, Sequence[Tensors]]:
        own, server = [self.projection.bases(a) for a in adapters], state["adapter"]
        common = self.projection.start(server, common_bases(weights, own, server))
        bases = self.projection.bases(common)
        moved = [transported(v, Q, bases) for v, Q in zip(sent, own, strict=True)]
        return {**state, "adapter": common, "second_moment": {}}, moved

    def entries(self, t: int, own: Adapter, largest: Adapter, *, refresh_rounds: int | None, synced: bool) -> tuple[int, int]:
        return tree.count(self.projection.bases(largest)) if t and synced else 0, tree.count(self.projection.bases(own))

    def held(self, own: Adapter, largest: Adapter) -> Adapter:
        return largest

    def step_ranks(self, ranks: Mapping[str, Sequence[int]]) -> dict[str, int]:
        return {n: sum(own) for n, own in ranks.items()}


RULES: dict[BasisName, type[BasisRule]] = {"shared_seed": SharedSeed, "server_basis": ServerBasis, "client_svd": ClientSVD}


def _leading(values: Tensors, to: Peer, layers: Iterable[str]) -> Tensors:
    """The columns of each layer's tensor that a peer has; what is not a layer's is whole."""
    named = set(layers)
    return {n: v[:, : to.rank_of(n)] if n in named else v for n, v in values.items()}


def _timed(state: State, updates: Sequence[ClientUpdate]) -> State:
    """The state with the rounds on one basis, which are found out in the first round if they were not given."""
    taken = [u.content["num_steps"] for u in updates if "num_steps" in u.content]
    if state["refresh_rounds"] is not None or not taken:
        return state
    return {**state, "refresh_rounds": max(1, round(AUTO_STEPS * len(taken) / sum(taken)))}


def _ends(t: int, state: State) -> bool:
    """Whether round t is the last on its basis."""
    rounds = state["refresh_rounds"]
    return rounds is not None and t + 1 - state["began"] >= rounds


def _moved(t: int, state: State, bases: Tensors, projection: Projection) -> State:
    """The state on another basis, from the round after t on."""
    old, server = state["adapter"], projection.start(state["adapter"], bases)
    moments = transported(state["second_moment"], projection.bases(old), projection.bases(server))
    return {**state, "adapter": server, "second_moment": moments, "epoch": state["epoch"] + 1, "began": t + 1}
