"""The verbs of a method that is put together of parts: local rules at the clients, around a method at the server, under an
optimiser.

A part's messages and memories lie under the entry `parts` and its own name, and the method in the middle never sees them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, cast

from torch import Tensor

from fedelta import tree
from fedelta.merging import ClientUpdate, in_order
from fedelta.method import Client, ClientState, Method, State
from fedelta.methods._compose.parts import Part, Parts, bare, displacement, joined, own_of, wide
from fedelta.methods._compose.ruled_client import RuledClient
from fedelta.peers import Peer, demand_equal_ranks
from fedelta.tree import Adapter, BaseDelta, Message, Tensors


class Composite(ABC):
    """The verbs of `Method`, carried out by parts; with it `LocalRule`, `ServerOptimizer` and `Compose` are methods."""

    hetero_rank: ClassVar[bool]
    one_shot: ClassVar[bool] = False  # what a part adds takes rounds; for a single aggregation ask the method in the middle

    @property
    @abstractmethod
    def parts(self) -> Parts:
        """Returns the parts that it is made of."""

    def population(self, clients: Sequence[Client], cohort: Callable[[], int] | None = None) -> Sequence[Client]:
        return self.parts.server.population(clients, cohort)

    def for_topology(self, rounds: int, rho_sq: Callable[[], float]) -> Method:
        for rule in self.parts.local:
            rule.look_ahead(rounds)
        return self._for_server(self.parts.server.for_topology(rounds, rho_sq))

    def _for_server(self, server: Method) -> Method:
        """Returns the method with another one in the middle; the one that it always has, but for `Compose`."""
        return cast("Method", self)

    def check(self, template: Adapter, peers: Sequence[Peer]) -> None:
        if not self.hetero_rank:
            demand_equal_ranks(type(self).__name__, template, peers)
        self.parts.server.check(template, peers)
        for rule in self.parts.local:
            rule.check_peers(template, peers)

    def init(self, template: Adapter, peers: Sequence[Peer], *, seed: int = 0) -> State:
        opened = {rule.name: rule.open(peers) for rule in self.parts.local}
        return joined(self.parts.server.init(template, peers, seed=seed), opened)

    def broadcast(self, t: int, state: State, to: Peer) -> Message:
        sent = {rule.name: rule.send(own_of(rule, state)) for rule in self.parts.local}
        return joined(self.parts.server.broadcast(t, bare(state), to), sent)

    def upload(self, adapter: Adapter) -> Message:
        return self.parts.server.upload(adapter)

    def local_update(self, t: int, down: Message, client_state: ClientState, client: Client) -> tuple[Message, ClientState]:
        ruled = RuledClient(client, self.parts.local, down, client_state)
        up, kept = self.parts.server.local_update(t, bare(down), bare(client_state), cast("Client", ruled))
        sent, own = ruled.leave()
        return joined(up, sent), joined(kept, own)

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        counted = [replace(u, content=bare(u.content)) for u in updates]
        for rule in self.parts.local:
            counted = rule.reweigh(counted)
        return self._displaced(t, state, self.parts.server.aggregate(t, bare(state), counted), in_order(updates))

    def _displaced(self, t: int, state: State, after: State, updates: Sequence[ClientUpdate]) -> State:
        """Returns the next state: the server's adapter moved by what the parts make of the displacement, and their memories."""
        if not self.parts.at_server:
            return after
        old, new = tree.parameters(state["adapter"]), tree.parameters(after["adapter"])
        # What nobody trained, such as the frozen factor of a round, keeps its value, and its memories too.
        moved = displacement(old, new)
        step: Tensors = moved
        memories: dict[str, State] = {}
        for part in self.parts.at_server:
            part.check_sent([replace(u, content=own_of(part, u.content)) for u in updates], old)
            step, memory = part.displace(own_of(part, state), step, [self._seen(part, t, state, u) for u in updates])
            memories[part.name] = part.keep(memory, {n: old[n] for n in moved})
        # Corrected rather than built from `old`: a part that changes nothing does not change a bit.
        values: dict[str, Tensor] = {n: (wide(new[n]) + (step[n] - x)).to(new[n].dtype) for n, x in moved.items()}
        return joined({**after, "adapter": tree.with_parameters(after["adapter"], values)}, memories)

    def _seen(self, part: Part, t: int, state: State, update: ClientUpdate) -> ClientUpdate:
        """Returns an update as a part sees it: with its own messages, and the client's displacement if it reads that."""
        content = own_of(part, update.content)
        if part.reads_moves:
            end, _ = self.parts.server.position(t, bare(state), replace(update, content=bare(update.content)))
            content = {**content, "moved": displacement(tree.parameters(state["adapter"]), tree.parameters(end))}
        return replace(update, content=content)

    def summand(self, t: int, down: Message, up: Message, peer: Peer, ranks: Mapping[str, int] | None = None) -> Tensors:
        self.parts.demand_sums()
        return self.parts.server.summand(t, bare(down), bare(up), peer, ranks)

    def from_mean(self, t: int, state: State, mean: Tensors) -> State:
        self.parts.demand_sums()
        return self._displaced(t, state, self.parts.server.from_mean(t, bare(state), mean), [])

    def check_upload(self, t: int, state: State, update: ClientUpdate) -> None:
        self.parts.server.check_upload(t, bare(state), replace(update, content=bare(update.content)))

    def traffic(self, t: int, template: Adapter, peer: Peer, peers: Sequence[Peer]) -> tuple[int, int]:
        down, up = self.parts.server.traffic(t, template, peer, peers)
        more = [rule.adds(t, up) for rule in self.parts.local]
        return down + sum(x for x, _ in more), up + sum(x for _, x in more)

    def deploy(self, down: Message, client_state: ClientState, template: Adapter | None = None) -> Message:
        return self.parts.server.deploy(bare(down), bare(client_state), template)

    def position(self, t: int, state: State, update: ClientUpdate) -> tuple[Adapter, BaseDelta | None]:
        for part in self.parts.at_server:  # engines ask for the position of what they let in
            part.check_sent([replace(update, content=own_of(part, update.content))], tree.parameters(state["adapter"]))
        return self.parts.server.position(t, bare(state), replace(update, content=bare(update.content)))
