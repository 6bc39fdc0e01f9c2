"""The server's side of every engine: who is there, what is known of each client, and how updates become the next state."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch

from fedelta import sampling, tree
from fedelta.engines.guards import NOT_FINITE, ROUNDS, Size, check_population, check_takes, check_templates, reason_of
from fedelta.engines.letters import Visit
from fedelta.engines.memories import Memories
from fedelta.engines.participants import Doors, Holding, by_id, holding, in_order, peers_of, samples
from fedelta.engines.rounds import DivergedError, QuorumError, Snapshot
from fedelta.engines.settings import RunSettings, Weights
from fedelta.engines.tables import Table
from fedelta.exchange.channel import Channel
from fedelta.exchange.spool import Spool
from fedelta.exchange.wire import Ledger
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate
from fedelta.method import Client, ClientState, Method, State
from fedelta.peers import FEW, Peer, Peers
from fedelta.tree import Adapter, BaseDelta, find

logger = logging.getLogger("fedelta.engines")

FAULTS_OF_THE_MACHINE = (OSError, MemoryError, torch.OutOfMemoryError)
"""What no update is to blame for."""


@dataclass(eq=False)
class Federation:
    """The server's side of a run: the method, who takes part, and what the server knows of each client between rounds.

    A client whose training raises, or whose message does not fit, is left out of the round with a warning. It counts as having
    lost what the round sent it: its memory stays that of before, and its base version becomes 0, so that it next gets the
    whole base delta.

    Attributes:
        method: as it was settled for this run.
        clients: the doors to them, in the order of ids.
        template: the common initial adapter, at the largest ranks.
        settings: the run's options.
        spool: where updates wait for their aggregation.
        remembered: by client id, the round of its last answer that counts.
        base_versions: by client id, the version of the base delta that it holds, those that are not 0.
        touched: by client id, the last round that it took part in, of clients of whom a snapshot knows anything.
        sizes: by node (`SERVER` with a server), the largest accepted sizes of the last rounds.
    """

    method: Method
    clients: Mapping[int, Client]
    template: Adapter
    settings: RunSettings
    spool: Spool
    remembered: Table[int] = field(default_factory=Table[int])
    base_versions: Table[int] = field(default_factory=Table[int])
    touched: Table[int] = field(default_factory=Table[int])
    sizes: dict[int, Sequence[Size]] = field(default_factory=dict[int, Sequence[Size]])

    @classmethod
    def prepare(cls, method: Method, clients: Sequence[Client], template: Adapter | None, settings: RunSettings) -> Federation:
        """Returns a federation that the method can serve, or raises ValueError that says why it cannot."""
        ordered = in_order(clients)
        given = peers_of(by_id(ordered))
        check_population(given.doubtful())
        served = method.population(ordered, lambda: settings.cohort_size(given))
        if served is not ordered:  # who stands for many has no cohort to be drawn from, and no quorum to miss
            settings = replace(settings, cohort=sampling.everyone, quorum=1.0)
        shown = samples(by_id(served))
        template = template or largest_template(shown)
        method.check(template, peers_of(by_id(served)))
        check_takes(method, shown)
        check_templates(shown, template)
        if method.needs_validation and settings.score is None:
            raise ValueError(f"{type(method).__name__} weighs updates by their validation scores: give `score`")
        return cls(method, by_id(served, template), template, settings, Spool(settings.spool))

    def __post_init__(self) -> None:
        self._as_begun = peers_of(self.clients)

    @property
    def channel(self) -> Channel:
        """The stages between the method and the wire."""
        return self.settings.channel

    @property
    def peers(self) -> Peers:
        """All peers in the order of ids, with the base versions that they hold now."""
        return Holding(self._as_begun, self.base_versions)

    def peer(self, k: int) -> Peer:
        """Returns one peer, with the base version that it holds."""
        return holding(self._as_begun.peer(k), self.base_versions.get(k, 0))

    def cohort(self, t: int) -> list[int]:
        """The ids that take part in round t, ascending. Raises ValueError for a rule that names nobody or a stranger."""
        ids = sorted(self.settings.cohort(t, self.peers, self.settings.seed))
        if not ids or len(set(ids)) != len(ids) or not set(ids) <= self.clients.keys():
            known = self._as_begun.ids if len(self.clients) <= FEW else f"the {len(self.clients)} clients"
            raise ValueError(f"the cohort of round {t} is {ids}: it must name one or more of {known}, each once")
        return ids

    def aggregated(
        self, t: int, state: State, updates: Sequence[ClientUpdate], sizes: Mapping[int, Size]
    ) -> tuple[State, Sequence[ClientUpdate]]:
        """The next state, every number of it finite, and the updates that it is made of.

        If it fails it is done once more without the largest update. With a server and at each node of a graph alike.

        Raises:
            QuorumError: if that fails too, or nothing else is there.
        """
        updates = self.channel.taken(t, updates)
        try:
            after, used = self._finite(t, state, updates), updates
        except FAULTS_OF_THE_MACHINE:
            raise
        except Exception as error:
            if self.settings.debug:
                raise
            after, used = self._without_largest(t, state, updates, sizes, error)
        return self.channel.after(t, state, after), used

    def _without_largest(
        self, t: int, state: State, updates: Sequence[ClientUpdate], sizes: Mapping[int, Size], failure: Exception
    ) -> tuple[State, Sequence[ClientUpdate]]:
        largest = max(updates, key=lambda u: sizes[u.sender.id]).sender.id
        rest = reweighed([u for u in updates if u.sender.id != largest], self.settings.max_share)
        logger.warning(
            "round %s is done again without client %s, whose update is the largest: %s", t, largest, reason_of(failure)
        )
        try:
            return self._finite(t, state, rest), rest
        except FAULTS_OF_THE_MACHINE:
            raise
        except Exception as error:
            reasons = f"{reason_of(failure)}\n  without client {largest}, whose update is the largest: {reason_of(error)}"
            text = f"round {t}: the updates cannot be aggregated; the state before it stays\n  {reasons}"
            if isinstance(failure, NOT_FINITE) and isinstance(error, NOT_FINITE):
                raise DivergedError(text, t, cohort=[u.sender.id for u in updates]) from error
            raise QuorumError(text) from error

    def _finite(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        after = self.method.aggregate(t, state, updates)
        if not _is_mapping(after):
            name = f"{type(self.method).__name__}.aggregate"
            raise TypeError(f"{name} must return the next state, such as {{'adapter': ...}}, but returned {after!r:.60}")
        tree.check_finite(after, "the state that these updates lead to")
        return after

    def remember(self, t: int, visits: Sequence[Visit], largest: Mapping[int, Size]) -> list[int]:
        """Commits a round at the server; returns the ids of the clients whose answers count.

        Args:
            t: the round.
            visits: of its cohort.
            largest: by node, the largest size of an update that it aggregated.
        """
        self.sizes |= {k: [*self.sizes.get(k, ()), size][-ROUNDS:] for k, size in largest.items()}
        held = {visit.peer.id: visit.base_version for visit in visits}
        self.base_versions = self.base_versions.followed({k: v for k, v in held.items() if v > 0}, held)
        counted = [visit.peer.id for visit in visits if visit.update is not None]
        self.remembered = self.remembered.followed(dict.fromkeys(counted, t))
        return counted

    def snapshot(self, t: int, state: State, memories: Memories | None, cohort: Collection[int]) -> Snapshot:
        """Returns what a run needs whose next round is t.

        Args:
            t: the next round.
            state: the method's.
            memories: of the clients in this process; sites that keep their own go on from `remembered`.
            cohort: the ids that took part in the round before t.
        """
        states = Table[ClientState]() if memories is None else memories.states()
        rounds = self.remembered if memories is None else memories.rounds()
        known = {k for k in cohort if k in rounds or k in self.base_versions}
        before = {k: self.touched.get(k) for k in cohort if k in known or k in self.touched}
        self.touched = self.touched.followed(dict.fromkeys(known, t - 1), cohort)
        return Snapshot(
            t,
            self.settings.seed,
            state,
            states,
            rounds,
            self.base_versions,
            touched=self.touched,
            before=before,
            sizes=dict(self.sizes),
        )

    def take_over(self, start: Snapshot) -> None:
        """Remembers what a snapshot does. Raises ValueError for the snapshot of another federation."""
        seed = self.settings.seed
        if start.seed != seed:
            raise ValueError(
                f"the snapshot is of a run with seed {start.seed}, this one has seed {self.settings.seed}: give the same"
            )
        unknown = sorted(({*start.client_rounds} | {*start.client_states} | {*start.base_versions}) - self.clients.keys())
        if unknown:
            raise ValueError(f"the snapshot remembers clients {unknown}, which are not here: give the clients of that run")
        self.remembered, self.touched = Table(start.client_rounds), Table(start.known())
        self.base_versions, self.sizes = Table(start.base_versions), dict(start.sizes)
        self.base_versions = self.base_versions.followed({}, self._unsure(start))

    def _unsure(self, start: Snapshot) -> list[int]:
        """Gives the clients that held a base theirs back; returns the ids of those of whom it is unknown what they hold.

        Clients on demand hold nothing themselves: where one of each kind could restore the base, it is there for all.
        """
        held = list(self.base_versions)
        if held and isinstance(self.clients, Doors):
            restored = [self._restored_base(client.peer.id, client, start) for client in samples(self.clients)]
            return [] if all(restored) else held
        return [k for k in held if not self._restored_base(k, self.clients[k], start)]

    def _restored_base(self, k: int, client: Client, start: Snapshot) -> bool:
        """Gives a client the base back that its process held; then it is sent what it would have been sent, and no more.

        Returns False for a client without `restore`: what it still holds is unknown, and the whole base, which version 0 gets,
        is right for any.
        """
        restore = getattr(client, "restore", None)
        if restore is None:
            return False
        down = self.method.broadcast(start.t, start.state, replace(self.peer(k), base_version=0))
        for base in find(down, BaseDelta):
            restore(base)
        return True


def largest_template(clients: Sequence[Client]) -> Adapter:
    """The common initial adapter at the largest ranks: of each layer, that of a client which holds most of it."""

    def most(layer: str) -> LoRA:
        return max((c.template.layers[layer] for c in clients), key=lambda x: x.rank)

    first = clients[0].template
    for client in clients:
        who, other = f"client {client.peer.id}", f"client {clients[0].peer.id}"
        tree.check_names(client.template.layers, first.layers, who, other, "layers")
    return replace(first, layers={n: most(n) for n in first.layers})


def shares_of(peers: Iterable[Peer], weights: Weights) -> dict[int, float]:
    """Returns what each peer's update counts in proportion to, by id."""
    return {p.id: float(p.num_examples) if weights == "examples" else 1.0 for p in peers}


def weigh(visits: Sequence[Visit], sizes: Mapping[int, float], max_share: float | None = None) -> list[ClientUpdate]:
    """The updates that arrived and count, with weights of sum one in the proportion of `sizes`, by client id.

    None weighs more than `max_share`, as far as there are enough of them.
    """
    arrived = [v.update for v in visits if v.update is not None and sizes[v.peer.id] > 0]
    total = math.fsum(sizes[u.sender.id] for u in arrived)
    weights = [sizes[u.sender.id] / total for u in arrived]
    if max_share is not None:
        weights = capped(weights, max_share)
    return [replace(u, weight=w) for u, w in zip(arrived, weights, strict=True)]


def capped(weights: Sequence[float], share: float) -> list[float]:
    """Weights of sum one, none above `share`: what is cut off goes to the others, in proportion; all alike for too few."""
    if not weights or max(weights) <= share:
        return list(weights)
    if share * len(weights) <= 1:
        return [1 / len(weights)] * len(weights)
    order = sorted(range(len(weights)), key=lambda k: weights[k])
    below = list(accumulate(weights[k] for k in order))  # from the smallest: a huge one would drown the rest
    result, room, at = list(weights), 1.0, len(order) - 1
    while weights[order[at]] / below[at] * room > share:  # ends, since `share` of all together is more than one
        result[order[at]] = share
        room, at = room - share, at - 1
    for k in order[: at + 1]:
        result[k] = weights[k] / below[at] * room
    return result


def reweighed(updates: Sequence[ClientUpdate], max_share: float | None = None) -> list[ClientUpdate]:
    """Returns some of a round's updates, with their weights brought to sum one, none above `max_share` as in `weigh`."""
    total = math.fsum(u.weight for u in updates)
    weights = [u.weight / total for u in updates] if total > 0 else []
    if max_share is not None:
        weights = capped(weights, max_share)
    return [replace(u, weight=w) for u, w in zip(updates, weights, strict=False)]


def demand_quorum(t: int, visits: Sequence[Visit], needed: int) -> None:
    """Raises QuorumError, with everyone's reason, if fewer than `needed` updates can be used.

    Raises:
        DivergedError: where all that are left out are so for numbers that are not finite.
    """
    arrived = sum(v.update is not None for v in visits)
    if arrived >= needed:
        return
    reasons = {v.peer.id: v.reason for v in visits if v.reason is not None}
    said = "\n".join(f"  client {k}: {reason}" for k, reason in reasons.items())
    text = f"round {t}: {arrived} of {len(visits)} updates can be used, the quorum is {needed}\n{said}"
    if all(v.not_finite for v in visits if v.reason is not None):
        raise DivergedError(text, t, reasons, [v.peer.id for v in visits], ledger_of(visits))
    raise QuorumError(text)


def ledger_of(visits: Sequence[Visit]) -> Ledger:
    """Returns the bytes that these visits sent, used or not."""
    return Ledger({v.peer.id: v.down for v in visits}, {v.peer.id: v.up for v in visits if v.up is not None})


@contextmanager
def counted(sent: Ledger) -> Generator[None]:
    """Tells a DivergedError that passes what was sent before."""
    try:
        yield
    except DivergedError as error:
        error.sent = sent
        raise


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)  # what a user's own method returns may be anything
