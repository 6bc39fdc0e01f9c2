"""Rounds, which an engine yields, and snapshots, from which it goes on; the same for every engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from fedelta.engines.guards import Size
from fedelta.exchange.wire import Ledger
from fedelta.merging import ClientUpdate
from fedelta.method import ClientState, Method, State
from fedelta.peers import Peer, largest, template_for
from fedelta.tree import Adapter, BaseDelta, Message

AT_ONCE = "it diverged in the first round: look at the method, if it is your own, or lower training.learning_rate"
"""The remedy where nothing was ever finite."""


class QuorumError(RuntimeError):
    """Too few updates of a round could be used; the message names every client that was left out, and why."""


class DivergedError(QuorumError):
    """Nothing of a round can be used, and for one reason alone: updates, losses or the state they lead to are not finite.

    Attributes:
        t: the round.
        left_out: by client id, why it was left out; empty where it is the state that is not finite.
        cohort: the ids of the clients that took part.
        sent: the bytes of the round.
    """

    def __init__(
        self,
        message: str,
        t: int,
        left_out: Mapping[int, str] = MappingProxyType({}),
        cohort: Sequence[int] = (),
        sent: Ledger | None = None,
    ) -> None:
        super().__init__(f"{message}\n  {AT_ONCE}" if t == 0 else message)
        self.t, self.left_out, self.cohort, self.sent = t, left_out, cohort, sent or Ledger()


@dataclass(frozen=True, eq=False)
class Snapshot:
    """All that a run needs to go on after a round as if it had never stopped.

    Attributes:
        t: the round that comes next.
        seed: of the run.
        state: the method's; in gossip, by node id as a string, the nodes'.
        client_states: by client id, those that are not empty.
        client_rounds: by client id, the round in which each of `client_states` was last replaced.
        base_versions: by client id, the version of the base delta that it holds, those that are not 0.
        touched: by client id, the last round that it took part in, for every client of the tables above. A snapshot that is
            made by hand may leave out this and `before`.
        before: by client id, for those whom the last round touched, what `touched` said of them before it; None for a client
            that it did not have yet. A checkpoint that follows the one of the round before writes these clients' files only.
            None in place of the whole mapping where it is unknown.
        notes: whatever the caller wants to find again, such as the best round so far; plain values and tensors.
        sizes: by the id of who aggregates, `seeding.SERVER` or a node, the largest accepted size of an upload in each of the
            last rounds, the latest last.
    """

    t: int
    seed: int
    state: State
    client_states: Mapping[int, ClientState] = field(default_factory=dict[int, ClientState])
    client_rounds: Mapping[int, int] = field(default_factory=dict[int, int])
    base_versions: Mapping[int, int] = field(default_factory=dict[int, int])
    touched: Mapping[int, int] = field(default_factory=dict[int, int], kw_only=True)
    before: Mapping[int, int | None] | None = field(default=None, kw_only=True)
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    sizes: Mapping[int, Sequence[Size]] = field(default_factory=dict[int, Sequence[Size]])

    def __repr__(self) -> str:
        return f"Snapshot(before round {self.t}, seed {self.seed}, state {sorted(self.state)})"

    def known(self) -> dict[int, int]:
        """Returns `touched`, completed for a snapshot that was made by hand."""
        missing = {*self.client_states, *self.client_rounds, *self.base_versions} - self.touched.keys()
        return {**self.touched, **{k: self.client_rounds.get(k, self.t - 1) for k in missing}}


@dataclass(frozen=True, eq=False)
class Round:
    """One round, after it: what a diagnostic, an evaluation or a checkpoint reads.

    Attributes:
        t: its number, from 0.
        before: the method's state that the cohort started from; in gossip, the nodes' states by id as a string.
        updates: those that were used, in the order of their senders' ids, with weights of sum one. Valid until the next
            round is asked for.
        state: the method's state after it, in gossip as in `before`.
        dropped: by id, why a client of the cohort was left out.
        bytes: what travelled.
        seconds: of wall-clock time.
        training: those of them in which the cohort trained, with the travel and the check of what it answered.
        method: of the run.
        template: of the run.
        peers: every peer of the run, in the order of ids.
        snapshot: what a run that continues after this round needs.
        gossip: whether each node has a state of its own.
        lost_links: in gossip, the pairs of ids whose link did not count because a message on it got lost.
    """

    t: int
    before: State
    updates: Sequence[ClientUpdate]
    state: State
    dropped: Mapping[int, str]
    bytes: Ledger
    seconds: float
    method: Method
    template: Adapter
    peers: Sequence[Peer]
    snapshot: Snapshot
    gossip: bool = False
    lost_links: Sequence[tuple[int, int]] = ()
    training: float = 0.0

    def __repr__(self) -> str:
        # Nothing of the updates, which are gone once the next round is asked for.
        dropped = f", {len(self.dropped)} left out" if self.dropped else ""
        return f"Round({self.t}, {len(self.updates)} updates{dropped}, {self.bytes.total:,} bytes, {self.seconds:.3g} s)"

    @property
    def client_states(self) -> Mapping[int, ClientState]:
        """Returns by client id the memory of each client that has any."""
        return self.snapshot.client_states

    @property
    def loss(self) -> float | None:
        """Returns the weighted mean of the cohort's training losses; None if a method did not train at some client."""
        if any("loss" not in u.metrics for u in self.updates):
            return None
        return sum(u.weight * u.metrics["loss"] for u in self.updates)

    @property
    def personal(self) -> bool:
        """Returns whether participants run models of their own: by the method, or without a server."""
        return self.gossip or self.method.personal

    def position(self, update: ClientUpdate) -> tuple[Adapter, BaseDelta | None]:
        """Returns the model that one of this round's updates stands for."""
        before = self.before[str(update.sender.id)] if self.gossip else self.before
        return self.method.position(self.t, before, update)

    def node_state(self, peer: Peer) -> State:
        """Returns the state after this round from which a peer is served: the server's, or in gossip its own."""
        return self.state[str(peer.id)] if self.gossip else self.state

    def global_model(self) -> Message:
        """Returns the server's model at the largest ranks, as a participant that takes part for the first time would run it.

        Returns:
            "adapter", and the whole "base" where the method moves it.

        Raises:
            ValueError: in gossip, where there is no server.
        """
        if self.gossip:
            raise ValueError("without a server there is no global model: ask for the participant_model of a node")
        return self._deployed(self.state, largest(self.template, self.peers), {})

    def participant_model(self, peer: Peer) -> Message:
        """Returns the model that a peer runs after this round: "adapter", and the whole "base" where the method moves it."""
        return self._deployed(self.node_state(peer), peer, self.client_states.get(peer.id, {}))

    def _deployed(self, state: State, peer: Peer, client_state: ClientState) -> Message:
        # As if the peer held nothing of the base yet, so that the message has the whole of it.
        down = self.method.broadcast(self.t + 1, state, replace(peer, base_version=0))
        return self.method.deploy(down, client_state, template_for(peer, self.template))
