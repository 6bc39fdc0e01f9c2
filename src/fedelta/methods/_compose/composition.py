"""How methods combine: local rules at the clients, around a method at the server, under a server optimiser.

A `LocalRule` and a `ServerOptimizer` are methods by themselves, over `fedavg`; `compose` puts several over another one. The
plumbing is here, once: a part's messages and memories lie under the entry `PARTS` and its own name, and the method in the
middle never sees them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.merging import ClientUpdate, in_order
from fedelta.method import Client, ClientState, GradientHook, Method, State, TrainResult
from fedelta.methods.fedavg import FedAvg
from fedelta.peers import Peer, demand_equal_ranks
from fedelta.tree import Adapter, BaseDelta, Message, Tensors

PARTS = "parts"
"""The entry of a message or memory that holds those of the parts, by name."""

STABLE = "fedavg, zeropad, ffa_lora or rolora"
"""Methods to name where another one cannot serve."""


@dataclass(frozen=True)
class Parts:
    """What a method is made of: rules in the order in which they change a gradient, the method in the middle, an optimiser."""

    local: Sequence[LocalRule]
    server: Method
    optimizer: ServerOptimizer | None = None

    @property
    def at_server(self) -> list[LocalRule | ServerOptimizer]:
        """The parts that read or change what a round adds to the server's factors, the optimiser last."""
        rules = [rule for rule in self.local if rule.stable]
        return [*rules, self.optimizer] if self.optimizer is not None else [*rules]

    def demand_stable(self) -> None:
        """Raises ValueError if a part needs factors that keep their meaning, where the server's do not."""
        coordinates = self.server.coordinates
        if self.at_server and coordinates != "factors":
            why = {"product": "factorises the product anew in every round", "base": "moves the base"}[coordinates]
            raise ValueError(
                f"{self.at_server[0].name} needs factors that keep their meaning from round to round, but "
                f"{type(self.server).__name__} {why}: take a server that averages factors, such as {STABLE}"
            )

    def claims(self) -> dict[str, Any]:
        """The class attributes of `Method`, as they are of this combination."""
        extra = [rule.extra for rule in self.local if rule.extra]
        everyone = [self.server, *self.local, *([self.optimizer] if self.optimizer is not None else [])]
        return {
            "hetero_rank": self.server.hetero_rank and not any(rule.equal_ranks for rule in self.local),
            "decentralised": self.server.decentralised and not self.at_server,
            "coordinates": self.server.coordinates,
            "needs_validation": self.server.needs_validation,
            "personal": self.server.personal,
            "sums": None if any(rule.needs_updates for rule in self.local) else self.server.sums,
            "travels": "; ".join([self.server.travels, *extra]),
            "exempt": {law: reason for part in everyone for law, reason in part.exempt.items()},
        }


@dataclass(frozen=True)
class Composite(Method):
    """A method that is put together of parts.

    Claims hold for the instance, since they are those of its parts; the class has those of its defaults.
    """

    coordinates = "factors"
    sums = "exact"
    one_shot = False  # what a part adds takes rounds; for a single aggregation ask the method in the middle

    @property
    @abstractmethod
    def parts(self) -> Parts:
        """What it is made of."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parts.demand_stable()
        for claim, value in self.parts.claims().items():
            object.__setattr__(self, claim, value)

    def population(self, clients: Sequence[Client]) -> Sequence[Client]:
        return self.parts.server.population(clients)

    def check(self, template: Adapter, peers: Sequence[Peer]) -> None:
        super().check(template, peers)
        self.parts.server.check(template, peers)
        for rule in self.parts.local:
            rule.check_peers(template, peers)

    def init(self, template: Adapter, peers: Sequence[Peer], *, seed: int = 0) -> State:
        opened = {rule.name: rule.open(peers) for rule in self.parts.local}
        return _joined(self.parts.server.init(template, peers, seed=seed), opened)

    def broadcast(self, t: int, state: State, to: Peer) -> Message:
        sent = {rule.name: rule.send(_of(state, rule)) for rule in self.parts.local}
        return _joined(self.parts.server.broadcast(t, _bare(state), to), sent)

    def upload(self, adapter: Adapter) -> Message:
        return self.parts.server.upload(adapter)

    def local_update(self, t: int, down: Message, client_state: ClientState, client: Client) -> tuple[Message, ClientState]:
        ruled = _RuledClient(client, self.parts.local, down, client_state)
        up, kept = self.parts.server.local_update(t, _bare(down), _bare(client_state), cast("Client", ruled))
        left = ruled.leave()
        return _joined(up, {n: sent for n, (sent, _) in left.items()}), _joined(kept, {n: own for n, (_, own) in left.items()})

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        counted = [replace(u, content=_bare(u.content)) for u in updates]
        for rule in self.parts.local:
            counted = rule.reweigh(counted)
        after = self.parts.server.aggregate(t, _bare(state), counted)
        if not self.parts.at_server:
            return after
        adapter, memories = self._displaced(state, after["adapter"], in_order(updates))
        return _joined({**after, "adapter": adapter}, memories)

    def _displaced(self, state: State, after: Adapter, updates: Sequence[ClientUpdate]) -> tuple[Adapter, dict[str, State]]:
        """The server's adapter, moved by what the parts make of the round's displacement, and the parts' memories."""
        old, new = tree.parameters(state["adapter"]), tree.parameters(after)
        # What nobody trained, such as the frozen factor of a round, keeps its value, and its memories too.
        moved = displacement(old, new)
        step: Tensors = moved
        memories: dict[str, State] = {}
        for part in self.parts.at_server:
            sent = [replace(u, content=_of(u.content, part)) for u in updates]
            part.check_sent(sent, old)
            step, memories[part.name] = part.displace(_of(state, part), step, sent)
        # Corrected rather than built from `old`: a part that changes nothing does not change a bit.
        values = {n: (_wide(new[n]) + (step[n] - x)).to(new[n].dtype) for n, x in moved.items()}
        return tree.with_parameters(after, values), memories

    def summand(self, t: int, down: Message, up: Message, peer: Peer, ranks: Mapping[str, int] | None = None) -> Tensors:
        self._demand_sums()
        return self.parts.server.summand(t, _bare(down), _bare(up), peer, ranks)

    def from_mean(self, t: int, state: State, mean: Tensors) -> State:
        self._demand_sums()
        after = self.parts.server.from_mean(t, _bare(state), mean)
        if not self.parts.at_server:
            return after
        adapter, memories = self._displaced(state, after["adapter"], [])
        return _joined({**after, "adapter": adapter}, memories)

    def _demand_sums(self) -> None:
        for rule in self.parts.local:
            if rule.needs_updates:
                raise ValueError(f"{rule.name} needs single updates, no sum of them: leave it out")

    def check_upload(self, t: int, state: State, update: ClientUpdate) -> None:
        self.parts.server.check_upload(t, _bare(state), replace(update, content=_bare(update.content)))

    def traffic(self, t: int, template: Adapter, peer: Peer, peers: Sequence[Peer]) -> tuple[int, int]:
        down, up = self.parts.server.traffic(t, template, peer, peers)
        more = [rule.adds(t, up) for rule in self.parts.local]
        return down + sum(x for x, _ in more), up + sum(x for _, x in more)

    def deploy(self, down: Message, client_state: ClientState, template: Adapter | None = None) -> Message:
        return self.parts.server.deploy(_bare(down), _bare(client_state), template)

    def position(self, t: int, state: State, update: ClientUpdate) -> tuple[Adapter, BaseDelta | None]:
        for part in self.parts.at_server:  # engines ask for the position of what they let in
            part.check_sent([replace(update, content=_of(update.content, part))], tree.parameters(state["adapter"]))
        return self.parts.server.position(t, _bare(state), replace(update, content=_bare(update.content)))


@dataclass(frozen=True)
class _Part(Composite):
    """What local rules and server optimisers have alike: a name, and a say in how the server's factors move."""

    @property
    def name(self) -> str:
        """Of its entries in messages and memories."""
        return type(self).__name__

    def check_sent(self, updates: Sequence[ClientUpdate], like: Tensors) -> None:
        """Raises ValueError, naming the client, for uploads of this part that do not fit tensors of the shapes of `like`."""

    @abstractmethod
    def displace(self, state: State, step: Tensors, updates: Sequence[ClientUpdate]) -> tuple[Tensors, State]:
        """What to add to the server's factors, and the part's next memory.

        Args:
            state: this part's memory.
            step: the aggregated displacement by flat name, at least float32, of the tensors that the round moved.
            updates: of the round by id, with this part's own messages as content.
        """


@dataclass(frozen=True)
class LocalRule(_Part):
    """Something that clients do differently. By itself it runs over `fedavg`.

    All functions are pure; `own` is this rule's memory at a client, which may be lost, `sent` its message from the server.

    Class attributes:
        stable: needs factors that keep their meaning from round to round, and has a part at the server.
        needs_updates: its part at the server reads single updates, so that they cannot be summed before.
        equal_ranks: serves clients of one rank only.
        order: of a rule among others: a gradient goes through the lower ones first.
        extra: what it sends, in words.
    """

    stable: ClassVar[bool] = False
    needs_updates: ClassVar[bool] = False
    equal_ranks: ClassVar[bool] = False
    order: ClassVar[int] = 0
    extra: ClassVar[str] = ""

    @property
    def parts(self) -> Parts:
        return Parts([self], FedAvg())

    def check_peers(self, template: Adapter, peers: Sequence[Peer]) -> None:
        """Raises ValueError for peers that the rule cannot serve."""
        if self.equal_ranks:
            demand_equal_ranks(self.name, template, peers)

    def open(self, peers: Sequence[Peer]) -> State:
        """The rule's memory at the server before round 0."""
        return {}

    def send(self, state: State) -> Message:
        """What goes down to every client."""
        return {}

    def hook(self, sent: Message, own: ClientState, start: Adapter) -> GradientHook | None:
        """What changes the gradients of one request to train from `start`; called anew for each request."""
        return None

    def leave(self, sent: Message, own: ClientState, hook: GradientHook | None, moved: Tensors) -> tuple[Message, ClientState]:
        """What goes up, and the next memory at the client.

        `hook` is that of the last request to train, None if there was none; `moved` the displacement by flat name, at least
        float32, of the tensors that it trained.
        """
        return {}, own

    def adds(self, t: int, up: int) -> tuple[int, int]:
        """The numbers that it adds to a round's messages down and up, where those of the method in the middle go up."""
        return 0, 0

    def reweigh(self, updates: Sequence[ClientUpdate]) -> Sequence[ClientUpdate]:
        """The updates with the weights that they are to count with, again of sum one."""
        return updates

    def displace(self, state: State, step: Tensors, updates: Sequence[ClientUpdate]) -> tuple[Tensors, State]:
        return step, state


@dataclass(frozen=True)
class ServerOptimizer(_Part):
    """A rule that takes the aggregated displacement of the server's factors for a gradient. By itself it runs over `fedavg`.

    It acts on the server's own copy, at the largest ranks and its scales, so unequal ranks are the business of the method in
    the middle.

    Args:
        learning_rate: of the server.
        lr_ratio: learning rate of the factors A over that of B and of the dense tensors.
    """

    learning_rate: float = 1.0
    lr_ratio: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.learning_rate > 0 and self.lr_ratio > 0):
            raise ValueError(
                f"{self.name} needs learning_rate and lr_ratio above 0, got {self.learning_rate} and {self.lr_ratio}"
            )

    @property
    def parts(self) -> Parts:
        return Parts([], FedAvg(), self)

    @abstractmethod
    def start(self, like: Tensor) -> State:
        """The memory of one tensor before its first step."""

    @abstractmethod
    def step(self, memory: State, displacement: Tensor) -> tuple[Tensor, State]:
        """The direction in which to move one tensor, and its next memory."""

    def displace(self, state: State, step: Tensors, updates: Sequence[ClientUpdate]) -> tuple[Tensors, State]:
        found = {n: self.step(state[n] if n in state else self.start(x), x) for n, x in step.items()}
        # A second moment that overflows would stop its tensor for ever, and in silence: m / sqrt(Inf) is no step at all.
        tree.check_finite({n: memory for n, (_, memory) in found.items()}, f"{self.name}'s memory")
        directions = {n: self._rate(n) * direction for n, (direction, _) in found.items()}
        return directions, {**state, **{n: memory for n, (_, memory) in found.items()}}

    def _rate(self, name: str) -> float:
        return self.learning_rate * (self.lr_ratio if name.endswith(".lora_A") else 1.0)


class _RuledClient:
    """A client whose gradients go through the rules' hooks, and then through that of the method in the middle."""

    def __init__(self, client: Client, rules: Sequence[LocalRule], down: Message, memory: ClientState) -> None:
        self._client = client
        self._known = {rule.name: (rule, _of(down, rule), _of(memory, rule)) for rule in rules}
        self._hooks: dict[str, GradientHook | None] = dict.fromkeys(self._known)
        self._moved: Tensors = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def train(self, t: int, start: Adapter, *, gradient: GradientHook | None = None, **request: Any) -> TrainResult:
        self._hooks = {n: rule.hook(sent, own, start) for n, (rule, sent, own) in self._known.items()}
        hooks = [hook for hook in (*self._hooks.values(), gradient) if hook is not None]
        result = self._client.train(t, start, gradient=_one_after_the_other(hooks), **request)
        self._moved = displacement(tree.parameters(start), tree.parameters(result.adapter))
        return result

    def leave(self) -> dict[str, tuple[Message, ClientState]]:
        """By rule, what goes up and what the client remembers."""
        return {n: rule.leave(sent, own, self._hooks[n], self._moved) for n, (rule, sent, own) in self._known.items()}


def _one_after_the_other(hooks: Sequence[GradientHook]) -> GradientHook | None:
    if len(hooks) < 2:
        return hooks[0] if hooks else None

    def run(gradients: Tensors, parameters: Tensors, step: int) -> Tensors:
        for hook in hooks:
            gradients = hook(gradients, parameters, step)
        return gradients

    return run


def _joined(content: Mapping[str, Any], parts: Mapping[str, Any]) -> Mapping[str, Any]:
    """`content` with the entries of the parts that have any; itself if none has."""
    filled = {n: x for n, x in parts.items() if x}
    return {**content, PARTS: filled} if filled else content


def _bare(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the method in the middle knows of a message or memory."""
    return {n: x for n, x in content.items() if n != PARTS} if PARTS in content else content


def _of(content: Mapping[str, Any], part: _Part) -> Mapping[str, Any]:
    """What one part knows of a message or memory."""
    return content.get(PARTS, {}).get(part.name, {})


def displacement(old: Tensors, new: Tensors) -> dict[str, Tensor]:
    """new - old, at least float32, of the tensors that differ."""
    return {n: _wide(new[n]) - _wide(x).to(new[n].device) for n, x in old.items() if not torch.equal(new[n], x.to(new[n]))}


def demand_one_scale(name: str, template: Adapter, peers: Sequence[Peer]) -> None:
    """Raises ValueError if two peers apply a layer with different scales."""
    for layer, x in template.layers.items():
        scales = {p.id: p.scale_of(layer, p.rank_of(layer)) for p in peers}
        if len(set(scales.values())) > 1:
            raise ValueError(
                f"{name} needs one scale, but layer {layer!r} of rank {x.rank} has scales {scales} by client, and a "
                "gradient of factors changes with theirs: give all clients one lora_alpha"
            )


class Pull:
    """A hook that adds strength (x - anchor) to the gradients."""

    def __init__(self, strength: float, anchor: Tensors) -> None:
        self.strength, self.anchor = strength, anchor

    def __call__(self, gradients: Tensors, parameters: Tensors, step: int) -> Tensors:
        if step == 0:  # once for all steps: the anchor comes from the server, the parameters may live on a GPU
            self.anchor = {n: self.anchor[n].to(x) for n, x in parameters.items()}
        return {n: g + self.strength * (parameters[n].detach() - self.anchor[n]) for n, g in gradients.items()}


def _wide(x: Tensor) -> Tensor:
    return x.to(lr.wide(x.dtype))
