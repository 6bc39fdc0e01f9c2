"""Runners whose clients answer in the process that asks them: one way to write to them, and to take in what they answer.

A runner says how letters become answers. It needs no `Federation` for that, so that a process which holds a shard of the
clients, and knows no server, answers with the same runner.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from fedelta.activity import board
from fedelta.engines.federation import Federation
from fedelta.engines.letters import Letter, Reply, Visit
from fedelta.engines.memories import InMemory
from fedelta.engines.visits import answer, receive, refuse, send
from fedelta.exchange.channel import Channel
from fedelta.method import Client, ClientState, Method, State

Asked: TypeAlias = tuple[Letter, ClientState]
"""A letter, and what its client remembers."""

Answered: TypeAlias = tuple[Reply, ClientState] | Exception
"""A client's reply and memory, or what its local update raised."""


class ClientSide(Protocol):
    """The clients' side of a run: all that it takes to answer. A `Federation` has it, and so has a shard of one."""

    @property
    def method(self) -> Method: ...
    @property
    def clients(self) -> Mapping[int, Client]: ...
    @property
    def channel(self) -> Channel: ...


@dataclass(eq=False)
class InProcess(ABC):
    """An engine whose clients are in this process.

    Attributes:
        memories: of the clients.
    """

    memories: InMemory = field(default_factory=InMemory, kw_only=True)

    @abstractmethod
    def answers(self, side: ClientSide, asked: Iterable[Asked]) -> Iterator[tuple[Letter, Answered]]:
        """Yields each letter with what its client answers, in order.

        Args:
            side: the clients, with method and channel.
            asked: taken as they are needed, for a letter may be large.
        """

    def __call__(self, federation: Federation, t: int, states: Mapping[int, State]) -> list[Visit]:
        """Returns the visits of a cohort, in order."""
        visits: list[Visit] = []
        for letter, answered in self.answers(federation, self.asked(federation, t, states)):
            visits.append(self.received(federation, states, letter, answered))
            board().count(len(visits))
            del letter, answered  # or they would stay while the next answer is made
        return visits

    def asked(self, federation: Federation, t: int, states: Mapping[int, State]) -> Iterator[Asked]:
        """Yields the letter to each client, and its memory."""
        return ((send(federation, t, state, k), self.memories.get(k)) for k, state in states.items())

    def received(self, federation: Federation, states: Mapping[int, State], letter: Letter, answered: Answered) -> Visit:
        """Returns the visit that an answer amounts to; what the client remembers counts only if the visit does."""
        k = letter.peer.id
        if isinstance(answered, Exception):
            return refuse(federation, letter.t, letter, "local update", answered)
        reply, memory = answered
        self.memories.offer(k, memory)
        return receive(federation, letter.t, states[k], letter, reply)


def answered_by(client: Client, side: ClientSide, letter: Letter, memory: ClientState) -> Answered:
    """Returns what a client answers to a letter; an error of its local update is an answer, too, which the server refuses."""
    try:
        return answer(side.method, client, side.channel, letter, memory)
    except Exception as error:
        return error
