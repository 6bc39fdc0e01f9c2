"""Keeps the memories of clients between rounds, where the clients are.

In one process they lie in a dictionary; a real site keeps its own on its disk, and no reply holds a byte of it. The server only
knows in which round it last took in an answer of a client. So the memory that goes with an answer which came too late, or was
refused, never counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from fedelta.engines.tables import Table
from fedelta.method import ClientState

NOTHING: ClientState = {}
"""The memory of a client that has none, or lost it; every method has a default for it."""


class Memories(Protocol):
    """The memories of the clients whose answers an engine runs in this process."""

    def get(self, k: int) -> ClientState:
        """Returns what client k remembers; nothing at first."""
        ...

    def offer(self, k: int, memory: ClientState) -> None:
        """Takes what client k remembers once the round is whole and its answer counts."""
        ...

    def settle(self, t: int, counted: Iterable[int]) -> None:
        """Ends round t: what the clients in `counted` offered replaces what they remembered.

        What others offered is dropped; what they remembered before stays.
        """
        ...

    def restore(self, states: Mapping[int, ClientState], rounds: Mapping[int, int]) -> None:
        """Begins with the memories of a snapshot."""
        ...

    def states(self) -> Mapping[int, ClientState]:
        """Returns the memories that are not empty, by client id, as they are now; they never change afterwards."""
        ...

    def rounds(self) -> Mapping[int, int]:
        """Returns by client id the round in which each of `states` was last replaced."""
        ...


class InMemory:
    """Keeps memories in this process, and only those that are not empty: a client that remembers nothing takes no room.

    What `states` and `rounds` hand out never changes: each round makes new versions, at the cost of its cohort.
    """

    def __init__(self) -> None:
        self._states: Table[ClientState] = Table()
        self._rounds: Table[int] = Table()
        self._offered: dict[int, ClientState] = {}

    def get(self, k: int) -> ClientState:
        return self._states.get(k, NOTHING)

    def offer(self, k: int, memory: ClientState) -> None:
        self._offered[k] = memory

    def settle(self, t: int, counted: Iterable[int]) -> None:
        offered, self._offered = self._offered, {}
        # A client that hands back the very memory that it got has changed nothing, so its round stays, too.
        new = {k: offered[k] for k in counted if k in offered and offered[k] is not self.get(k)}
        kept = {k: memory for k, memory in new.items() if memory}
        gone = new.keys() - kept.keys()
        self._states = self._states.followed(kept, gone)
        self._rounds = self._rounds.followed(dict.fromkeys(kept, t), gone)

    def restore(self, states: Mapping[int, ClientState], rounds: Mapping[int, int]) -> None:
        self._states, self._rounds, self._offered = Table(states), Table(rounds), {}

    def states(self) -> Mapping[int, ClientState]:
        return self._states

    def rounds(self) -> Mapping[int, int]:
        return self._rounds
