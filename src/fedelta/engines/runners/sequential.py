"""Visits clients one after another in this process: the engine that all others are compared with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fedelta.engines.letters import Letter
from fedelta.engines.runners._in_process import Answered, Asked, ClientSide, InProcess, answered_by


def runner(token_budget: int) -> InProcess:
    """Returns the sequential engine; it has no passes to share."""
    return Sequential()


class Sequential(InProcess):
    """The sequential engine."""

    def answers(self, side: ClientSide, asked: Iterable[Asked]) -> Iterator[tuple[Letter, Answered]]:
        """Yields each letter with its answer before the next letter is written."""
        for letter, memory in asked:
            yield letter, answered_by(side.clients[letter.peer.id], side, letter, memory)
