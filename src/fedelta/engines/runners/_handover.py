"""Runs visits that stop where they ask for training, so that the requests of many can be answered together.

A method calls `client.train` and waits for the result; it does not know who else waits. So each visit has a thread of its own,
but only one thread runs at a time: `advance` hands over to the visit, and the visit hands back when it asks or has ended. What
is computed, and in which order, is therefore the same in every run.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeAlias, TypeVar, cast

import torch

from fedelta.client import Request
from fedelta.method import Client, TrainResult
from fedelta.tree import Adapter

Result = TypeVar("Result")

Answer: TypeAlias = TrainResult | Exception
"""The result of a request; an exception is raised where the request was made."""


class Visitor(Generic[Result]):
    """A visit of one client that can be stopped and taken up.

    Args:
        client: the real one.
        visit: carries out the visit with the client that it is given.

    Attributes:
        asks: what the client's `train` was last called with, until the next `advance`.
        result: of the visit, once it has ended.
    """

    def __init__(self, client: Client, visit: Callable[[Client], Result]) -> None:
        self.client = client
        self.asks: Request | None = None
        self.result: Result | None = None
        self._visit, self._threads = visit, torch.get_num_threads()
        self._to_visit: SimpleQueue[Answer | _Abandoned] = SimpleQueue()
        self._from_visit: SimpleQueue[Request | _Ended[Result] | BaseException] = SimpleQueue()
        self._thread = Thread(target=copy_context().run, args=(self._run,), name=f"client {client.peer.id}", daemon=True)

    def advance(self, answer: Answer | None = None) -> None:
        """Lets the visit go on, at first or with the answer to what it asked, until it asks again or has ended.

        Raises:
            BaseException: what the visit raised.
        """
        if answer is None:
            self._thread.start()
        else:
            self._to_visit.put(answer)
        self.asks = None
        match self._from_visit.get():
            case Request() as request:
                self.asks = request
            case _Ended(result):
                self.result = result
            case error:
                raise error

    def close(self) -> None:
        """Ends a visit that waits for an answer which will not come."""
        if self._thread.is_alive():
            self._to_visit.put(_Abandoned())
            self._thread.join()

    def ask(self, request: Request) -> TrainResult:
        """Hands a request over and waits for the answer; called by the visit."""
        self._from_visit.put(request)
        answer = self._to_visit.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _run(self) -> None:
        # A new thread begins with torch's default, and the bits of a factorisation depend on the number.
        torch.set_num_threads(self._threads)
        try:
            self._from_visit.put(_Ended(self._visit(cast("Client", _Asking(self)))))
        except BaseException as error:  # of any kind, or whoever waits in `advance` would wait for ever
            self._from_visit.put(error)


@dataclass(frozen=True, eq=False)
class _Ended(Generic[Result]):
    """Wraps what a visit returned, which may itself be an exception."""

    result: Result


class _Abandoned(BaseException):
    """Unwinds a visit that is given up. It is no `Exception`, so that no method catches it by accident."""


class _Asking:
    """A client whose `train` is answered by whoever advances its visit."""

    def __init__(self, visitor: Visitor[Any]) -> None:
        self._visitor = visitor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._visitor.client, name)

    def train(self, t: int, start: Adapter, **request: Any) -> TrainResult:
        return self._visitor.ask(Request(t, start, **request))
