"""Visits clients one after another in this process: the engine that all others are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedelta.engines.federation import Federation
from fedelta.engines.letters import Visit
from fedelta.engines.memories import InMemory
from fedelta.engines.visits import VisitAll, visit
from fedelta.method import State


def runner(token_budget: int) -> VisitAll:
    """Returns the sequential engine; it has no passes to share."""
    return Sequential()


@dataclass(eq=False)
class Sequential:
    """The sequential engine.

    Attributes:
        memories: of the clients.
    """

    memories: InMemory = field(default_factory=InMemory)

    def __call__(self, federation: Federation, t: int, states: Mapping[int, State]) -> list[Visit]:
        """Returns the visits of a cohort, in order."""
        return [self._visit(federation, t, state, k) for k, state in states.items()]

    def _visit(self, federation: Federation, t: int, state: State, k: int) -> Visit:
        done, memory = visit(federation, t, state, k, federation.clients[k], self.memories.get(k))
        self.memories.offer(k, memory)  # counts only if the visit does
        return done
