"""Notes what a run is doing at this moment, for a screen to show.

A notice board, and no callback: work writes on the board of its context, and a screen reads it whenever it draws itself. Nobody
is called, and work reads nothing back, so that a run computes the same whether somebody looks or not.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Board:
    """Shows what a run is doing.

    Attributes:
        doing: in words, such as "loading the model"; empty while clients train.
        t: the round; None before the first.
        cohort: clients that the round asks.
        trained: those of them that have trained.
        training: clients that train now, in one pass if there are several.
        client: the id of the one that trains; None for several.
        step: optimiser steps, or passes of an evaluation, that are done of it.
        steps: that it takes; 0 where they are not counted.
    """

    doing: str = "preparing"
    t: int | None = None
    cohort: int = 0
    trained: int = 0
    training: int = 0
    client: int | None = None
    step: int = 0
    steps: int = 0

    def clear(self) -> None:
        """Notes that a run begins."""
        self.t, self.cohort, self.trained = None, 0, 0
        self.say("preparing")

    def begin(self, t: int, cohort: int) -> None:
        """Notes that a round begins."""
        self.t, self.cohort, self.trained = t, cohort, 0
        self.say("sending")

    def say(self, doing: str, steps: int = 0) -> None:
        """Notes that something begins that is no training."""
        self.doing, self.training, self.client = doing, 0, None
        self.step, self.steps = 0, steps

    def train(self, training: int, client: int | None, steps: int) -> None:
        """Notes that one client, or several in one pass, begin to train."""
        self.say("", steps)
        self.training, self.client = training, client

    def count(self, trained: int) -> None:
        """Notes how many clients of the cohort have trained, as far as their engine can tell."""
        self.trained = max(self.trained, trained)
        self.training = 0

    def share(self) -> float:
        """Returns the share of the round's training that is done, in [0, 1]."""
        if not self.cohort:
            return 0.0
        now = self.training * self.step / self.steps if self.steps else 0.0
        return min(1.0, (self.trained + now) / self.cohort)


_BOARD: ContextVar[Board] = ContextVar("board", default=Board())  # noqa: B039 - nobody reads what is written on this one


def board() -> Board:
    """Returns the board to write on; nobody reads it where nobody watches."""
    return _BOARD.get()


@contextmanager
def watched() -> Generator[Board]:
    """Gives a fresh board to read, on which the work inside the block of a `with` writes."""
    fresh = Board()
    token = _BOARD.set(fresh)
    try:
        yield fresh
    finally:
        _BOARD.reset(token)
