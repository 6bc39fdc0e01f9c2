"""Runs one node of a graph without a server, in a process of its own: the rounds of `gossip` as they look from there.

A round: train, send the update to the neighbours, wait for theirs, check them, say which ones are held, wait for the same word
from the neighbours, aggregate with the own row of W. A link counts where both ends hold the other's update and know that the
other does; what any other link weighed goes back to both of its ends, as in `topology.links`. The two ends can still disagree
when the last word gets lost, or one of them dies at that moment; this end then counts the link as one-sided.

A node never waits for one that is gone, and after each round goes on with the newest round that it has heard of. So one that
comes back goes on from its own checkpoint and joins the others.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from fedelta import topology
from fedelta.engines.correspondence import Correspondence
from fedelta.engines.federation import Federation, shares_of
from fedelta.engines.gossip import AtNode, aggregated_at, settled
from fedelta.engines.letters import Reply, Visit, sizes_of
from fedelta.engines.mailbox import Mailbox
from fedelta.engines.memories import InMemory
from fedelta.engines.neighbours import Patience
from fedelta.engines.rounds import Round
from fedelta.engines.settings import RunSettings
from fedelta.engines.site import digest_of
from fedelta.engines.visits import answer, receive, refuse, send
from fedelta.exchange.wire import Ledger
from fedelta.method import Client, ClientState, Method, State
from fedelta.peers import Peer, template_for
from fedelta.topology import Mixing
from fedelta.topology.links import hear
from fedelta.tree import Adapter


@dataclass(frozen=True, eq=False)
class NodeRound:
    """Describes one round at one node.

    Attributes:
        done: the round as any other; its states hold this node alone.
        linked: the ids of the neighbours whose link counted.
        one_sided: the ids of those whose update is held, but who did not say that they hold this node's.
        next: the round that comes next, later than the one after this if others are.
    """

    done: Round
    linked: Sequence[int]
    one_sided: Sequence[int]
    next: int


def take_part(
    method: Method,
    client: Client,
    peers: Sequence[Peer],
    template: Adapter,
    mailbox: Mailbox,
    *,
    mixing: Mixing,
    settings: RunSettings,
    names: Mapping[int, str] | None = None,
    terms: Mapping[str, str] | None = None,
    patience: Patience = Patience(),  # noqa: B008 - frozen
) -> Iterator[NodeRound]:
    """Runs one node among its neighbours; yields its rounds. Without faults its states are those of `gossip`, bit for bit.

    A round counts for the others when the next one is asked for: what must survive a death is written before that.

    Args:
        method: the same for all nodes.
        client: the door to this node's data and model.
        peers: all nodes, this one among them.
        template: the common initial adapter, at the largest ranks of all.
        mailbox: this node's post.
        mixing: the symmetric matrix W, or t -> W, in the order of ids.
        settings: as for `gossip`; `start` is a snapshot that this function yielded.
        names: of the nodes by id, for messages; "0", "1", ... by default.
        terms: what must be the same at all nodes, by name; one with others is not listened to.
        patience: how long others are waited for.

    Raises:
        ValueError: before the first round, for what cannot run so.
        TimeoutError: if no neighbour is heard at the start.
        QuorumError: in a round whose updates lead to no finite state.
    """
    _check(settings, mixing, len(peers))
    method = settled(method, settings.rounds, mixing)
    federation = _federation(method, client, peers, template, settings)
    agreed = {**(terms or {}), "template": digest_of(template)}
    node = _Node(federation, client, mixing, mailbox, agreed, names or {p.id: str(p.id) for p in peers}, patience)
    return node.rounds()


def neighbours_of(mixing: Mixing, me: int, ids: Sequence[int], rounds: int) -> list[int]:
    """Returns the ids of all nodes that share a link with node `me` in any round of a run, ascending."""
    at = ids.index(me)
    found = {j for t in range(1 if isinstance(mixing, Tensor) else rounds) for j in _linked_to(topology.at(mixing, t), at)}
    return [ids[j] for j in sorted(found)]


@dataclass
class _Participant:
    """Stands for another node, of which no more is here than who it is."""

    peer: Peer
    template: Adapter

    @property
    def num_steps(self) -> int:
        raise NotImplementedError

    def train(self, t: int, start: Adapter, **request: Any) -> Any:
        raise NotImplementedError

    def gradient(self, start: Adapter, num_batches: int, **request: Any) -> Adapter:
        raise NotImplementedError

    def base_weight(self, layer: str) -> Tensor:
        raise NotImplementedError


def _federation(method: Method, client: Client, peers: Sequence[Peer], template: Adapter, settings: RunSettings) -> Federation:
    if client.peer not in peers:
        raise ValueError(f"{client.peer} is not one of the peers {list(peers)}: all nodes need the same list of peers")
    others: list[Client] = [_Participant(p, template_for(p, template)) for p in peers if p.id != client.peer.id]
    try:
        method.population(others)
    except TypeError as error:
        raise ValueError(f"{error}; a node has no data but its own: choose another method") from None
    return Federation.prepare(method, [client, *others], template, settings)


def _check(settings: RunSettings, mixing: Mixing, count: int) -> None:
    settings.channel.demand_no_server()
    if settings.link_drop:
        raise ValueError("link_drop loses messages of a simulation: leave it out where messages travel")
    topology.check_mixing(topology.at(mixing, 0), count)
    if not topology.is_symmetric(topology.at(mixing, 0)):
        raise ValueError("nodes need a symmetric mixing matrix: on a directed graph a lost message moves the mean")


@dataclass
class _Node:
    """Goes through the rounds of one node.

    Attributes:
        federation: with all peers; only this node's client can train.
        client: this node's.
        mixing: the graph.
        mailbox: its post.
        terms: what must be the same at all nodes.
        names: of all nodes.
        patience: how long others are waited for.
        memories: of the client.
    """

    federation: Federation
    client: Client
    mixing: Mixing
    mailbox: Mailbox
    terms: Mapping[str, str]
    names: Mapping[int, str]
    patience: Patience
    memories: InMemory = field(default_factory=InMemory)

    def __post_init__(self) -> None:
        self.me, self.ids = self.client.peer.id, list(self.federation.clients)
        self.shares = [*shares_of(self.federation.peers, self.federation.settings.weights or "uniform").values()]
        linked = neighbours_of(self.mixing, self.me, self.ids, self.federation.settings.rounds)
        called = {k: self.names[k] for k in linked}
        self.words = Correspondence(self.federation, self.me, called, self.mailbox, self.terms, self.patience)

    def rounds(self) -> Iterator[NodeRound]:
        start, federation = self.federation.settings.start, self.federation
        if start is None:
            t, state = 0, federation.method.init(federation.template, federation.peers, seed=federation.settings.seed)
        else:
            federation.take_over(start)
            self.memories.restore(start.client_states, start.client_rounds)
            t, state = start.t, start.state[str(self.me)]
        if t < federation.settings.rounds:
            self.words.announce(t)
            self.words.heard.gather(t)
            t = self.words.heard.next_round(t)
        while t < federation.settings.rounds:
            self.words.announce(t)
            federation.spool.begin()
            node_round = self._round(t, state)
            state, t = node_round.done.state[str(self.me)], node_round.next
            yield node_round
            del node_round  # or its updates would stay until the next ones are there
        self.words.announce(t)

    # --- one round ---------------------------------------------------------------------------------------------------

    def _round(self, t: int, state: State) -> NodeRound:
        began = time.perf_counter()
        links = [self.ids[j] for j in _linked_to(topology.at(self.mixing, t), self.ids.index(self.me))]
        own, reply, memory = self._train(t, state)
        training = time.perf_counter() - began
        visits, arrived = [own], dict[int, int]()
        if own.update is not None and reply is not None:
            self.words.post(t, links, reply)
            visits, arrived = self.words.received(t, state, links, own)
        linked, one_sided = self.words.confirmed(t, links, visits)
        if own.update is None:  # it has nothing to wait for, but running ahead it would make its neighbours skip rounds
            self.words.keep_pace(t, links)
        own = next(visit for visit in visits if visit.peer.id == self.me)
        counting = [visit for visit in visits if visit.peer.id in {self.me, *linked}]
        at_node = aggregated_at(self.federation, t, state, counting, self._row(t, own, linked), sizes_of(counting))
        self.words.heard.settle(t, links, linked)
        bytes_ = Ledger(arrived, {} if own.up is None else {self.me: own.up * len(self.words.reached(t, links))})
        done = self._commit(t, state, at_node, visits, [k for k in links if k not in linked], bytes_, memory, began)
        done = replace(done, training=training)
        return NodeRound(done, linked, one_sided, done.snapshot.t)

    def _train(self, t: int, state: State) -> tuple[Visit, Reply | None, ClientState]:
        """Returns the own visit, the reply that goes to the neighbours, and what the client remembers if it counts."""
        federation = self.federation
        letter, memory = send(federation, t, state, self.me), self.memories.get(self.me)
        try:
            reply, memory = answer(federation.method, self.client, federation.channel, letter, memory)
        except Exception as error:
            return refuse(federation, t, letter, "local update", error), None, memory
        return receive(federation, t, state, letter, reply), reply, memory

    def _row(self, t: int, own: Visit, linked: Sequence[int]) -> Mapping[int, float]:
        """Returns the own row of W on the links that count, as `topology.links` has it."""

        def is_lost(sender: int, receiver: int) -> bool:
            other = receiver if sender == self.me else sender
            return self.me in (sender, receiver) and other not in linked

        silent = {self.me} if own.update is None else set[int]()
        return hear(topology.at(self.mixing, t), self.ids, silent, is_lost, self.shares).rows[self.me]

    def _commit(
        self,
        t: int,
        before: State,
        at_node: AtNode,
        visits: Sequence[Visit],
        lost: Sequence[int],
        ledger: Ledger,
        memory: ClientState,
        began: float,
    ) -> Round:
        federation, me = self.federation, str(self.me)
        counted = federation.remember(t, visits, {self.me: at_node.largest})
        self.memories.offer(self.me, memory)
        self.memories.settle(t, [self.me] if self.me in counted else [])
        state = {me: at_node.state}
        return Round(
            t=t,
            before={me: before},
            updates=at_node.used,
            state=state,
            dropped={v.peer.id: v.reason for v in visits if v.reason is not None},
            bytes=ledger,
            seconds=time.perf_counter() - began,
            method=federation.method,
            template=federation.template,
            peers=federation.peers,
            snapshot=federation.snapshot(self.words.heard.next_round(t + 1), state, self.memories, [self.me]),
            gossip=True,
            lost_links=[(self.me, k) for k in [*lost, *at_node.without]],
        )


def _linked_to(W: Tensor, at: int) -> list[int]:
    """Returns the positions of the nodes that share a link with the one at a position, ascending."""
    return [j for j in ((W[at] != 0) | (W[:, at] != 0)).nonzero().flatten().tolist() if j != at]
