"""Flower as an engine: `FlowerSites` visits a cohort over a grid. The rounds themselves are those of `engines.server`."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import cast

from fedelta.engines.census import RemoteClient
from fedelta.engines.federation import Federation
from fedelta.engines.letters import Letter, Visit
from fedelta.engines.remote import Terms, opened, train_parcel
from fedelta.engines.runners.flower.mailbox import IN_HAND, Mailbox
from fedelta.engines.visits import VisitAll, receive, refuse, send
from fedelta.exchange import wire
from fedelta.exchange.parcels import Parcel
from fedelta.method import State
from fedelta.tree import Message

logger = logging.getLogger("fedelta.sites")


class FlowerCarrier(Mailbox):
    """The way to the sites of a run over a grid; see `fedelta.runs.remote`."""

    def visits(self, run: str, terms: Terms, deadline: float, over_selection: float) -> VisitAll:
        """Returns the engine that visits a cohort."""
        return FlowerSites(self, run, terms, deadline, over_selection)


@dataclass(eq=False)
class FlowerSites:
    """A `VisitAll` whose clients are `RemoteClient`s with a node of the grid as their address.

    Each answer is decoded, checked and spooled as it arrives: a cohort's answers are never in memory together.

    Args:
        mailbox: over the grid.
        run: the name under which sites keep what they remember; a run that is taken up again has the name that it had.
        terms: of the run.
        deadline: seconds that a round waits for its answers.
        over_selection: share of extra clients in a cohort, such as 0.2. A round then ends with the first answers that can be
            used, 1 / 1.2 of the cohort; the others' are dropped. Who is first is not drawn from the seed, so that such a run
            does not come out the same twice.
    """

    mailbox: Mailbox
    run: str
    terms: Terms = field(default_factory=dict)
    deadline: float = 600.0
    over_selection: float = 0.0

    def __call__(self, federation: Federation, t: int, states: Mapping[int, State]) -> list[Visit]:
        """Returns the visits of a cohort, in order."""
        post = _Post(self.run, self.terms, federation, t, states)
        needed = enough(len(states), self.over_selection)
        visits: dict[int, Visit] = {}
        by_node = {post.node(k): k for k in states}
        with closing(self.mailbox.exchange(post.parcels(), self.deadline)) as answers:
            for node, answer in answers:
                k = by_node[node]
                found = opened(federation, t, post.letters[k], self.run, answer)
                del answer  # its tensors are there now; and else it would stay until the next one is
                visits[k] = found if isinstance(found, Visit) else receive(federation, t, states[k], post.letters[k], found)
                del found
                if sum(v.update is not None for v in visits.values()) >= needed:
                    break
        for k in states:
            if k not in visits:
                late = TimeoutError(f"{needed} others answered first, which is all that the round needs")
                visits[k] = refuse(federation, t, post.letters[k], "over-selection", late)
        return [visits[k] for k in states]


def enough(asked: int, over_selection: float) -> int:
    """Returns the usable answers that a round waits for, of so many that were asked."""
    return max(1, math.ceil(asked / (1 + Fraction(str(over_selection)))))


class _Post:
    """The letters of one round, made in turn. Equal messages are held once: as tensors, and as bytes while these are few."""

    def __init__(self, run: str, terms: Terms, federation: Federation, t: int, states: Mapping[int, State]) -> None:
        self.run, self.terms, self.federation, self.t, self.states = run, terms, federation, t, states
        self.letters: dict[int, Letter] = {}
        self._messages: dict[bytes, Message] = {}
        self._bodies: dict[bytes, bytes] = {}

    def node(self, k: int) -> int:
        return cast(int, cast(RemoteClient, self.federation.clients[k]).address)

    def parcels(self) -> Iterator[tuple[int, Parcel]]:
        for k, state in self.states.items():
            letter = send(self.federation, self.t, state, k)
            key = wire.digest(letter.message)
            letter = replace(letter, message=self._messages.setdefault(key, letter.message))
            self.letters[k] = letter
            yield self.node(k), train_parcel(letter, self.run, self.terms, self._body(key, letter))
        self._messages.clear()
        self._bodies.clear()

    def _body(self, key: bytes, letter: Letter) -> bytes:
        """Returns a letter's bytes: those of an equal message if they are still here, for Flower stores one object once."""
        if key not in self._bodies:
            while self._bodies and sum(map(len, self._bodies.values())) + letter.size > IN_HAND:
                del self._bodies[next(iter(self._bodies))]  # the oldest; in another order of clients it is made anew
            self._bodies[key] = wire.encode(letter.message)
        return self._bodies[key]
