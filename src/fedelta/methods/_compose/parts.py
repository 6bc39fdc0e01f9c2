"""The parts of a composition: local rules and server optimisers, and the entries under which each keeps its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor

from fedelta import lowrank as lr
from fedelta.merging import ClientUpdate
from fedelta.method import ClientState, GradientHook, Method, State, TrainResult
from fedelta.optim import Optimizer
from fedelta.peers import Peer
from fedelta.tree import Adapter, Message, Tensors

PARTS = "parts"
"""The entry of a message or memory that holds those of the parts, by name."""

STABLE = "fedavg, zeropad, ffa_lora or rolora"
"""Methods to name where another one cannot serve."""


@dataclass(frozen=True, eq=False)
class Trained:
    """Tells a rule about the last request to train; about none, if there was no request.

    Attributes:
        hook: the rule's own.
        result: what the client answered.
        moved: the displacement by flat name, at least float32, of the tensors that the request trained.
        moved_from_other: the displacement from the rule's `other_start`, if it has one.
    """

    hook: GradientHook | None = None
    result: TrainResult | None = None
    moved: Tensors = field(default_factory=dict[str, Tensor])
    moved_from_other: Tensors = field(default_factory=dict[str, Tensor])


class Part:
    """A local rule or a server optimiser as a composition sees it; what is not overridden changes nothing.

    All functions are pure. In their arguments `sent` is this part's message from the server, `own` its memory at a client,
    which may be lost, and `state` its memory at the server.

    Class attributes:
        stable: needs factors that keep their meaning from round to round, and has a say in how the server's factors move.
        needs_updates: its part at the server reads single updates, so that they cannot be summed before.
        equal_ranks: serves clients of one rank only.
        one_scale: and of one scale: it adds up vectors of several clients that change with their scales, such as gradients.
        reads_moves: its part at the server reads each client's own displacement, the entry `moved` of an update's content.
        order: of a rule among others: a gradient goes through the lower ones first.
        asks: the arguments of `Client.train` that it uses beside those of the method that it goes with.
        sole: something that it does and that only one rule can do, in words: "brings the clients' optimiser".
        extra: what it sends, in words.
        exempt: as in `Method`.
    """

    stable: ClassVar[bool] = False
    needs_updates: ClassVar[bool] = False
    equal_ranks: ClassVar[bool] = False
    one_scale: ClassVar[bool] = False
    reads_moves: ClassVar[bool] = False
    order: ClassVar[int] = 0
    asks: ClassVar[frozenset[str]] = frozenset()
    sole: ClassVar[str] = ""
    extra: ClassVar[str] = ""
    exempt: ClassVar[Mapping[str, str]] = {}

    @property
    def name(self) -> str:
        """Returns the name of its entries in messages and memories."""
        return type(self).__name__

    def check_peers(self, template: Adapter, peers: Sequence[Peer]) -> None:
        """Raises ValueError for peers that the part cannot serve."""

    def look_ahead(self, rounds: int) -> None:
        """Warns of what is wrong with a run of so many rounds."""

    def open(self, peers: Sequence[Peer]) -> State:
        """Returns its memory at the server before round 0."""
        return {}

    def send(self, state: State) -> Message:
        """Returns its message to every client."""
        return {}

    def hook(self, sent: Message, own: ClientState, start: Adapter) -> GradientHook | None:
        """Returns a hook on the gradients of one request to train from `start`; called anew for each request."""
        return None

    def hook_after(
        self, sent: Message, own: ClientState, start: Adapter, gradient: Callable[[int], Adapter]
    ) -> GradientHook | None:
        """Returns the hook of a rule that needs a gradient first: `gradient(n)` is the mean one at `start` over n batches."""
        return self.hook(sent, own, start)

    def optimizer(self, sent: Message) -> Optimizer | None:
        """Returns the optimiser of a request to train, in place of the run's own."""
        return None

    def other_start(self, sent: Message, start: Adapter) -> Adapter | None:
        """Returns where a request to train from `start` is to be answered from, too, on the same batches."""
        return None

    def leave(self, sent: Message, own: ClientState, trained: Trained) -> tuple[Message, ClientState]:
        """Returns its message to the server and its next memory at the client."""
        return {}, own

    def adds(self, t: int, up: int) -> tuple[int, int]:
        """Returns the numbers that it adds to messages down and up, where the method in the middle sends `up` of them up."""
        return 0, 0

    def reweigh(self, updates: Sequence[ClientUpdate]) -> Sequence[ClientUpdate]:
        """Returns the updates with the weights that they are to count with, again of sum one."""
        return updates

    def check_sent(self, updates: Sequence[ClientUpdate], like: Tensors) -> None:
        """Raises ValueError, naming the client, for messages of this part that do not fit tensors of the shapes of `like`."""

    def displace(self, state: State, step: Tensors, updates: Sequence[ClientUpdate]) -> tuple[Tensors, State]:
        """Returns the displacement of the server's factors that it makes of `step`, and its next memory at the server.

        Args:
            state: as above.
            step: the aggregated displacement by flat name, at least float32, of the tensors that the round moved.
            updates: of the round by id, with this part's own messages as content.
        """
        return step, state

    def keep(self, state: State, before: Tensors) -> State:
        """Returns its next memory with what it keeps of the values, by flat name, that the round moved away from."""
        return state


class Claims(TypedDict):
    """The class attributes of `Method` that depend on the parts."""

    hetero_rank: bool
    decentralised: bool
    coordinates: str
    needs_validation: bool
    personal: bool
    asks: frozenset[str]
    sums: str | None
    travels: str
    exempt: Mapping[str, str]


def claims(
    server: Method | type[Method], local: Sequence[Part | type[Part]], optimizer: Part | type[Part] | None = None
) -> Claims:
    """Returns the claims of a method that is put together of these parts."""
    everyone = [server, *local, *([optimizer] if optimizer is not None else [])]
    at_server = optimizer is not None or any(rule.stable for rule in local)
    exempt: dict[str, str] = {}
    for part in everyone:
        exempt |= part.exempt
    return {
        "hetero_rank": server.hetero_rank and not any(rule.equal_ranks for rule in local),
        "decentralised": server.decentralised and not at_server,
        "coordinates": server.coordinates,
        "needs_validation": server.needs_validation,
        "personal": server.personal,
        "asks": server.asks.union(*(rule.asks for rule in local)),
        "sums": None if any(rule.needs_updates for rule in local) else server.sums,
        "travels": "; ".join([server.travels, *(rule.extra for rule in local if rule.extra)]),
        "exempt": exempt,
    }


@dataclass(frozen=True)
class Parts:
    """A method taken apart: rules in the order in which they change a gradient, the method in the middle, an optimiser."""

    local: Sequence[Part]
    server: Method
    optimizer: Part | None = None

    @property
    def at_server(self) -> list[Part]:
        """Returns the parts that read or change what a round adds to the server's factors, the optimiser last."""
        rules = [rule for rule in self.local if rule.stable]
        return [*rules, self.optimizer] if self.optimizer is not None else rules

    def demand_stable(self) -> None:
        """Raises ValueError if a part needs factors that keep their meaning, where the server's do not."""
        coordinates = self.server.coordinates
        if self.at_server and coordinates != "factors":
            why = {"product": "factorises the product anew in every round", "base": "moves the base"}[coordinates]
            raise ValueError(
                f"{self.at_server[0].name} needs factors that keep their meaning from round to round, but "
                f"{type(self.server).__name__} {why}: take a server that averages factors, such as {STABLE}"
            )

    def demand_alone(self) -> None:
        """Raises ValueError if two rules do what one alone can do."""
        holders: dict[str, str] = {}
        for rule in self.local:
            if rule.sole and rule.sole in holders:
                raise ValueError(f"{holders[rule.sole]} {rule.sole}, and so does {rule.name}: leave one of them out")
            holders[rule.sole] = rule.name

    def demand_public(self) -> None:
        """Raises ValueError if a rule sends something of each trained tensor, where the method keeps some of them private."""
        for rule in self.local:
            if rule.extra and self.server.personal:
                raise ValueError(
                    f"{rule.name} sends up something of every tensor that a client trains, but {type(self.server).__name__} "
                    f"keeps some of them at the client: take a server that shares them all, such as {STABLE}"
                )

    def demand_sums(self) -> None:
        """Raises ValueError if a part reads single updates, where there is only their sum."""
        for rule in self.local:
            if rule.needs_updates:
                raise ValueError(f"{rule.name} needs single updates, no sum of them: leave it out")

    def claims(self) -> Claims:
        """Returns the claims of this combination."""
        return claims(self.server, self.local, self.optimizer)


def joined(content: Mapping[str, Any], parts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns `content` with the entries of the parts that have any; itself if none has."""
    filled = {n: x for n, x in parts.items() if x}
    return {**content, PARTS: filled} if filled else content


def bare(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the share of the method in the middle in a message or memory."""
    return {n: x for n, x in content.items() if n != PARTS} if PARTS in content else content


def own_of(part: Part, content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the share of one part in a message or memory."""
    return content.get(PARTS, {}).get(part.name, {})


def displacement(old: Tensors, new: Tensors) -> dict[str, Tensor]:
    """Returns new - old, at least float32, of the tensors that differ."""
    return {n: wide(new[n]) - wide(x).to(new[n].device) for n, x in old.items() if not torch.equal(new[n], x.to(new[n]))}


def wide(x: Tensor) -> Tensor:
    """Returns a tensor in at least float32."""
    return x.to(lr.wide(x.dtype))
