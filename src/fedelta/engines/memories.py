"""What clients remember between rounds, kept where the clients are.

In one process that is a dictionary; a real site keeps its own on its disk, and no reply holds a byte of it. A server only
knows in which round a client last replaced its memory, so that an answer which came too late never counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from fedelta.method import ClientState

NOTHING: ClientState = {}
"""The memory of a client that has none, or lost it; every method has a default for it."""


class Memories(Protocol):
    """Where the memories of the clients of one engine lie."""

    def get(self, k: int) -> ClientState:
        """Returns what client k remembers; `NOTHING` if that is nothing."""
        ...

    def keep(self, k: int, memory: ClientState) -> None:
        """Replaces what client k remembers, once its answer counts."""
        ...

    def all(self) -> Mapping[int, ClientState]:
        """Returns the memories at hand by client id, as they are now; empty where they lie at remote sites."""
        ...


class InMemory:
    """Memories in this process. Only what is not empty is kept: memory grows with what clients remember, not with their number.

    `all` is handed out without a copy and replaced, not changed, by the first `keep` after it: what a snapshot holds never
    changes, and a round without memories costs nothing.
    """

    def __init__(self, memories: Mapping[int, ClientState] | None = None) -> None:
        self._memories = dict(memories or {})
        self._is_shared = False

    def get(self, k: int) -> ClientState:
        return self._memories.get(k, NOTHING)

    def keep(self, k: int, memory: ClientState) -> None:
        if self._is_shared:
            self._memories, self._is_shared = dict(self._memories), False
        if memory:
            self._memories[k] = memory
        else:
            self._memories.pop(k, None)

    def all(self) -> Mapping[int, ClientState]:
        self._is_shared = True
        return self._memories
