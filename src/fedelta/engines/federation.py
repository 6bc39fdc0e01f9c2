"""What every engine does alike: who is there, what is remembered of each client, and the visit of one."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from fedelta import sampling, tree, wire
from fedelta.engines.guards import (
    ROUNDS,
    Size,
    check_population,
    check_templates,
    check_upload,
    find,
    oversized,
    reason_of,
    size_of,
)
from fedelta.engines.rounds import QuorumError, Snapshot
from fedelta.lowrank import LoRA
from fedelta.method import (
    Client,
    ClientState,
    ClientUpdate,
    Method,
    Peer,
    State,
    TrainResult,
    check_count,
    template_for,
)
from fedelta.seeding import SERVER
from fedelta.spool import Spool, Spooling
from fedelta.tree import Adapter, BaseDelta

logger = logging.getLogger("fedelta.engines")

Score: TypeAlias = Callable[[Adapter, BaseDelta | None], Mapping[str, float]]
"""Metrics of a model on the common validation split."""


@dataclass(frozen=True, eq=False)
class Visit:
    """What came of one client in one round; either `update` or `reason` is None.

    Attributes:
        peer: the client, with the base version that it held.
        down, up: bytes sent and received; `up` is None if nothing arrived.
        update: with weight 0, until the engine knows who else arrived.
        size: of the update.
        client_state, base_version: what the client holds after the round.
        reason: why it is left out.
    """

    peer: Peer
    down: int
    up: int | None = None
    update: ClientUpdate | None = None
    size: Size = field(default_factory=Size)
    client_state: ClientState = field(default_factory=dict[str, Any])
    base_version: int = 0
    reason: str | None = None


@dataclass(eq=False)
class Federation:
    """A method, its clients in the order of ids, and what is remembered of them between rounds.

    A client whose training raises, or whose message does not fit, is left out of the round with a warning. It counts as having
    lost what the round sent it: its state stays that of before, and its base version becomes 0, so that it next gets the
    whole base delta.
    """

    method: Method
    clients: Mapping[int, Client]
    template: Adapter
    seed: int
    score: Score | None = None
    debug: bool = False
    spool: Spool = field(default_factory=Spool)
    client_states: dict[int, ClientState] = field(default_factory=dict[int, ClientState])
    client_rounds: dict[int, int] = field(default_factory=dict[int, int])
    base_versions: dict[int, int] = field(default_factory=dict[int, int])
    sizes: dict[int, Sequence[Size]] = field(default_factory=dict[int, Sequence[Size]])

    @classmethod
    def prepare(
        cls,
        method: Method,
        clients: Sequence[Client],
        template: Adapter | None,
        seed: int,
        score: Score | None = None,
        debug: bool = False,
        spool: Spooling = "auto",
    ) -> Federation:
        """A federation that the method can serve, or ValueError that says why it cannot."""
        check_population([c.peer for c in clients])
        clients = method.population(sorted(clients, key=lambda c: c.peer.id))
        template = template or largest_template(clients)
        method.check(template, [c.peer for c in clients])
        check_templates(clients, template)
        if method.needs_validation and score is None:
            raise ValueError(f"{type(method).__name__} weighs updates by their validation scores: give `score`")
        return cls(method, {c.peer.id: c for c in clients}, template, seed, score, debug, Spool(spool))

    @property
    def peers(self) -> list[Peer]:
        """All peers in the order of ids, with the base versions that they hold."""
        return [self.peer(k) for k in self.clients]

    def peer(self, k: int) -> Peer:
        """One peer, with the base version that it holds."""
        peer, held = self.clients[k].peer, self.base_versions.get(k, 0)
        return peer if peer.base_version == held else replace(peer, base_version=held)  # a copy of all in every round is slow

    def cohort(self, t: int, rule: sampling.CohortRule) -> list[int]:
        """The ids that take part in round t, ascending. Raises ValueError for a rule that names nobody or a stranger."""
        ids = sorted(rule(t, self.peers, self.seed))
        if not ids or len(set(ids)) != len(ids) or not set(ids) <= self.clients.keys():
            raise ValueError(f"the cohort of round {t} is {ids}: it must name one or more of {list(self.clients)}, each once")
        return ids

    def visit(self, t: int, state: State, k: int, through: Client | None = None) -> Visit:
        """Sends a client its message and takes what it returns; a client's faults are caught here and nowhere else.

        `through` stands for the client, for an engine that answers its requests.
        """
        peer, client = self.peer(k), _Recorder(through or self.clients[k])
        down = self.method.broadcast(t, state, peer)
        visit, stage = Visit(peer, wire.size(down)), "local update"
        try:
            known = self.client_states.get(k, {})
            content, client_state = self.method.local_update(t, down, known, cast("Client", client))
            stage = "upload"
            content = tree.map_tensors(Tensor.detach, content)  # a graph would grow with every round
            visit = replace(visit, up=wire.size(content))
            update = ClientUpdate(peer, 0.0, content, client.metrics())
            start = self.method.deploy(down, {}, template_for(peer, self.template))["adapter"]
            meant = check_upload(self.method, t, state, update, self.template, start)
            size = Size() if meant is None else size_of(meant, start)
        except Exception as error:
            return self.refuse(t, visit, stage, error)
        version = max((b.version for b in find(down, BaseDelta)), default=0)  # without a base delta it trained the bare base
        update = self.spool.keep(self._rated(t, state, update))
        return replace(visit, update=update, size=size, client_state=client_state, base_version=version)

    def refuse(self, t: int, visit: Visit, stage: str, error: Exception) -> Visit:
        """The visit without its update, and with the reason. The client counts as having lost what the round sent it."""
        k = visit.peer.id
        if self.debug:
            error.add_note(f"client {k}, round {t}, stage: {stage}")
            raise error
        reason = f"{stage}: {reason_of(error)}"
        logger.warning("client %s is left out of round %s: %s", k, t, reason)
        logger.debug("client %s, round %s", k, t, exc_info=error)
        return Visit(visit.peer, visit.down, visit.up, reason=reason)

    def leave_out(self, t: int, visits: Sequence[Visit], reasons: Mapping[int, str]) -> list[Visit]:
        """The visits without the updates of those clients that there is a reason against."""
        return [
            self.refuse(t, v, "upload", ValueError(reasons[v.peer.id])) if v.update is not None and v.peer.id in reasons else v
            for v in visits
        ]

    def screened(self, t: int, visits: Sequence[Visit]) -> list[Visit]:
        """The visits as a server takes them in: without the updates that are far larger than the others."""
        return self.leave_out(t, visits, oversized(sizes_of(visits), self.sizes.get(SERVER, ())))

    def aggregated(
        self, t: int, state: State, updates: Sequence[ClientUpdate], sizes: Mapping[int, Size]
    ) -> tuple[State, Sequence[ClientUpdate]]:
        """The next state, every number of it finite, and the updates that it is made of.

        If it fails it is done once more without the largest update. With a server and at each node of a graph alike.

        Raises:
            QuorumError: if that fails too, or nothing else is there.
        """
        try:
            return self._finite(t, state, updates), updates
        except (OSError, MemoryError, torch.OutOfMemoryError):
            raise  # a fault of this machine, not of an update
        except Exception as error:
            if self.debug:
                raise
            failure = error
        largest = max(updates, key=lambda u: sizes[u.sender.id]).sender.id
        rest = reweighed([u for u in updates if u.sender.id != largest])
        logger.warning(
            "round %s is done again without client %s, whose update is the largest: %s", t, largest, reason_of(failure)
        )
        try:
            return self._finite(t, state, rest), rest
        except Exception as error:
            reasons = f"{reason_of(failure)}\n  without client {largest}, whose update is the largest: {reason_of(error)}"
            raise QuorumError(f"round {t}: the updates cannot be aggregated; the state before it stays\n  {reasons}") from error

    def _finite(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        after = self.method.aggregate(t, state, updates)
        tree.check_finite(after, "the state that these updates lead to")
        return after

    def _rated(self, t: int, state: State, update: ClientUpdate) -> ClientUpdate:
        if self.score is None or not self.method.needs_validation:
            return update
        scores = self.score(*self.method.position(t, state, update))
        # Prefixed, since a training loss and a validation loss would share the name.
        return replace(update, metrics={**update.metrics, **{f"validation_{name}": x for name, x in scores.items()}})

    def remember(self, t: int, visits: Sequence[Visit], largest: Mapping[int, Size]) -> None:
        """Commits a round. Only what is not empty is kept: memory grows with what clients remember, not with their number.

        `largest` has the largest size of an update that each aggregated, by id.
        """
        self.sizes |= {k: [*self.sizes.get(k, ()), size][-ROUNDS:] for k, size in largest.items()}
        for v in visits:
            k = v.peer.id
            _keep(self.base_versions, k, v.base_version, v.base_version > 0)
            if v.update is not None and v.client_state is not self.client_states.get(k):
                _keep(self.client_states, k, v.client_state, bool(v.client_state))
                _keep(self.client_rounds, k, t, bool(v.client_state))

    def snapshot(self, t: int, state: State) -> Snapshot:
        """What a run needs whose next round is t."""
        memory = (dict(self.client_states), dict(self.client_rounds), dict(self.base_versions))
        return Snapshot(t, self.seed, state, *memory, sizes=dict(self.sizes))

    def take_over(self, start: Snapshot) -> None:
        """Remembers what a snapshot does. Raises ValueError for the snapshot of another federation."""
        if start.seed != self.seed:
            raise ValueError(f"the snapshot is of a run with seed {start.seed}, this one has seed {self.seed}: give the same")
        unknown = sorted(({*start.client_states} | {*start.base_versions}) - self.clients.keys())
        if unknown:
            raise ValueError(f"the snapshot remembers clients {unknown}, which are not here: give the clients of that run")
        self.client_states, self.client_rounds = dict(start.client_states), dict(start.client_rounds)
        self.base_versions, self.sizes = dict(start.base_versions), dict(start.sizes)
        for k in list(self.base_versions):
            self._restore_base(k, start)

    def _restore_base(self, k: int, start: Snapshot) -> None:
        """Gives a client the base back that its process held; then it is sent what it would have been sent, and no more.

        What a client without `restore` still holds is unknown; the whole base, which version 0 gets, is right for any.
        """
        restore = getattr(self.clients[k], "restore", None)
        if restore is None:
            del self.base_versions[k]
            return
        down = self.method.broadcast(start.t, start.state, replace(self.peer(k), base_version=0))
        for base in find(down, BaseDelta):
            restore(base)


def largest_template(clients: Sequence[Client]) -> Adapter:
    """The common initial adapter at the largest ranks: of each layer, that of a client which holds most of it."""

    def most(layer: str) -> LoRA:
        return max((c.template.layers[layer] for c in clients), key=lambda x: x.rank)

    first = clients[0].template
    return replace(first, layers={n: most(n) for n in first.layers})


def sizes_of(visits: Sequence[Visit]) -> dict[int, Size]:
    """The sizes of the updates that arrived, by their senders' ids."""
    return {v.peer.id: v.size for v in visits if v.update is not None}


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


def reweighed(updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
    """Some of a round's updates, with their weights brought to sum one."""
    total = math.fsum(u.weight for u in updates)
    return [replace(u, weight=u.weight / total) for u in updates] if total > 0 else []


def demand_quorum(t: int, visits: Sequence[Visit], needed: int) -> None:
    """Raises QuorumError, with everyone's reason, if fewer than `needed` updates can be used."""
    arrived = sum(v.update is not None for v in visits)
    if arrived < needed:
        reasons = "\n".join(f"  client {v.peer.id}: {v.reason}" for v in visits if v.reason is not None)
        raise QuorumError(f"round {t}: {arrived} of {len(visits)} updates can be used, the quorum is {needed}\n{reasons}")


class _Recorder:
    """A client that remembers how its training went, for the metrics of its update."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._results: list[tuple[int, float]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def train(self, t: int, start: Adapter, **request: Any) -> TrainResult:
        result = self._client.train(t, start, **request)
        check_count(result.num_steps, "steps", f"client {self._client.peer.id}")
        self._results.append((result.num_steps, result.loss))
        return result

    def metrics(self) -> dict[str, float]:
        """`num_steps`, and `loss`, the mean over the steps of all requests; empty if there was none."""
        steps = sum(n for n, _ in self._results)
        if not steps:
            return {}
        loss = math.fsum(n * x for n, x in self._results) / steps
        return {"num_steps": float(steps), **({"loss": loss} if math.isfinite(loss) else {})}


def _keep(table: dict[int, Any], k: int, value: Any, worth: bool) -> None:
    if worth:
        table[k] = value
    else:
        table.pop(k, None)
