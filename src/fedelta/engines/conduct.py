"""The loop of rounds that every engine with or without a server goes through."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

from fedelta.activity import board
from fedelta.demands import optional, whole
from fedelta.engines.federation import Federation
from fedelta.engines.guards import Size, largest_of
from fedelta.engines.letters import Visit
from fedelta.engines.memories import Memories
from fedelta.engines.rounds import Round
from fedelta.engines.visits import VisitAll
from fedelta.exchange.wire import Ledger
from fedelta.merging import ClientUpdate
from fedelta.method import State

MEMORIES = ("get", "offer", "restore", "rounds", "settle", "states")
"""The methods of `Memories`."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of a round, before it is committed.

    Attributes:
        visits: of the cohort.
        updates: those that were used, with their weights.
        state: the next one.
        ledger: what travelled.
        largest: by node, the largest size of an update that it aggregated.
        lost: in gossip, the pairs of ids whose link did not count because a message on it got lost.
        training: seconds from the first visit to the last.
    """

    visits: Sequence[Visit]
    updates: Sequence[ClientUpdate]
    state: State
    ledger: Ledger
    largest: Mapping[int, Size]
    lost: Sequence[tuple[int, int]] = ()
    training: float = 0.0


def conduct(
    federation: Federation,
    visit_all: VisitAll,
    outcome: Callable[[int, State], Outcome],
    init: Callable[[], State],
    *,
    gossip: bool = False,
) -> Iterator[Round]:
    """Yields the rounds that are left. A round is committed only once it is whole, so that an error in it changes nothing.

    Args:
        federation: prepared for the run.
        visit_all: the engine; its `memories`, where it has any, begin with those of the snapshot.
        outcome: (t, state) -> what the round comes to.
        init: makes the state before round 0.
        gossip: each node has a state of its own.
    """
    start = federation.settings.start
    memories = _memories_of(visit_all)
    if start is not None:
        federation.take_over(start)
    # Without a snapshot the memories are emptied, too: the engine may have served another run before.
    if memories is not None:
        memories.restore(*((start.client_states, start.client_rounds) if start is not None else ({}, {})))
    state = start.state if start is not None else init()

    # A generator inside, so that all checks above are made by the call itself and not by the first `next`.
    def rounds(state: State) -> Iterator[Round]:
        for t in range(start.t if start is not None else 0, federation.settings.rounds):
            began = time.perf_counter()
            federation.spool.begin()
            done = _commit(federation, memories, t, state, outcome(t, state), began, gossip)
            state = done.state
            yield done
            # Else this round's updates would be held in memory while the next ones arrive.
            del done

    return rounds(state)


def visited(federation: Federation, visit_all: VisitAll, t: int, states: Mapping[int, State]) -> list[Visit]:
    """Returns the visits of a cohort.

    Raises:
        TypeError: for an engine that returned something else than a list of visits.
        ValueError: for one that did not visit each client of the cohort, in order, or gave a visit what is not its own.
    """
    board().begin(t, len(states))
    visits: object = visit_all(federation, t, states)
    board().say("aggregating")
    if not _are_visits(visits):
        raise TypeError(f"round {t}: the engine returned {visits!r:.60}, where a list of a Visit for each client belongs")
    found = [visit.peer.id for visit in visits]
    if found != list(states):
        raise ValueError(f"round {t}: the engine visited clients {found}, where the cohort is {list(states)}")
    for visit in visits:
        _check_visit(visit, f"round {t}: the engine returned for client {visit.peer.id}")
    return list(visits)


def _are_visits(found: object) -> TypeGuard[Sequence[Visit]]:
    return isinstance(found, list | tuple) and all(isinstance(visit, Visit) for visit in cast("Sequence[object]", found))


def _check_visit(visit: Visit, who: str) -> None:
    """Raises ValueError for another client's update, or numbers of bytes that are none."""
    if visit.update is not None and visit.update.sender.id != visit.peer.id:
        raise ValueError(f"{who} an update of client {visit.update.sender.id}")
    whole(least=0)(f"{who} a visit whose down", visit.down)
    optional(whole(least=0))(f"{who} a visit whose up", visit.up)


def _memories_of(visit_all: VisitAll) -> Memories | None:
    """Returns an engine's memories, if it has any; raises TypeError, naming what they lack, for what are none."""
    found: Any = getattr(visit_all, "memories", None)
    if found is None:
        return None
    lacking = [name for name in MEMORIES if not callable(getattr(found, name, None))]
    if lacking:
        raise TypeError(
            f"`memories` of the engine {type(visit_all).__name__} lacks {', '.join(lacking)}: take "
            "fedelta.engines.memories.InMemory, or give the attribute another name"
        )
    return found


def largest_used(updates: Sequence[ClientUpdate], sizes: Mapping[int, Size]) -> Size:
    """Returns the largest size of the updates that an aggregation used."""
    return largest_of([sizes[u.sender.id] for u in updates])


def _commit(
    federation: Federation, memories: Memories | None, t: int, before: State, found: Outcome, began: float, gossip: bool
) -> Round:
    counted = federation.remember(t, found.visits, found.largest)
    if memories is not None:
        memories.settle(t, counted)
    return Round(
        t=t,
        before=before,
        updates=found.updates,
        state=found.state,
        dropped={v.peer.id: v.reason for v in found.visits if v.reason is not None},
        bytes=found.ledger,
        seconds=time.perf_counter() - began,
        method=federation.method,
        template=federation.template,
        peers=federation.peers,
        snapshot=federation.snapshot(t + 1, found.state, memories, [v.peer.id for v in found.visits]),
        gossip=gossip,
        lost_links=found.lost,
        training=found.training,
    )
