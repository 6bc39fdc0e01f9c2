"""Trains a whole cohort in few passes: the frozen base sees the tokens of many clients at once.

Starts up to `WINDOW` visits; each runs until its method calls `client.train`. The requests are put into groups that fit into
one pass, and each group trains together. A request that fits into no group trains alone, as in the sequential engine.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeAlias

from fedelta.activity import board
from fedelta.adapted import CPU_TOKENS
from fedelta.client import Batch, LocalClient, Request
from fedelta.engines.guards import reason_of
from fedelta.engines.letters import Letter
from fedelta.engines.runners._handover import Answer, Visitor
from fedelta.engines.runners._in_process import Answered, Asked, ClientSide, InProcess, answered_by
from fedelta.engines.runners._joint import train_together
from fedelta.engines.settings import Choice
from fedelta.method import Client, ClientState

logger = logging.getLogger("fedelta.engines")

WINDOW = 64
"""The number of visits that wait at a time: each holds a thread, and the message that it got."""

Wanted: TypeAlias = tuple[Client, Request]
"""A client, and the training that its method asks it for."""


def runner(token_budget: int) -> InProcess:
    """Returns the batched engine with passes of so many tokens."""
    return Batched(token_budget)


def plan_for(clients: Collection[Client], token_budget: int | None, *, forced: bool) -> Choice:
    """Returns this engine with its token budget, or the sequential one if that is no slower.

    Args:
        clients: of the run.
        token_budget: chosen for the device if None.
        forced: the engine was asked for by name.
    """
    first = next(iter(clients))
    able = (forced or len(clients) > 1) and not any(_refusals(clients))
    if not able or not isinstance(first, LocalClient):
        return Choice("batched" if forced else "sequential", token_budget or CPU_TOKENS)
    budget = token_budget or first.model.pass_tokens()
    # a pass with room for one client's batch alone would only cost the bookkeeping of joint passes
    wins = forced or 2 * first.model.tokens(next(first.batches(0))) <= budget
    return Choice("batched" if wins else "sequential", budget)


@dataclass(eq=False)
class Batched(InProcess):
    """The batched engine.

    Args:
        token_budget: tokens in a pass; a client whose batch is larger trains alone.
    """

    token_budget: int = CPU_TOKENS
    _said: set[str] = field(default_factory=set[str])

    def answers(self, side: ClientSide, asked: Iterable[Asked]) -> Iterator[tuple[Letter, Answered]]:
        """Yields each letter with its answer; up to `WINDOW` visits wait at a time."""
        left = iter(asked)
        while window := list(islice(left, WINDOW)):
            yield from zip((letter for letter, _ in window), self._answers(side, window), strict=True)

    def _answers(self, side: ClientSide, asked: Sequence[Asked]) -> list[Answered]:
        """Returns what each client answers; their requests for training are answered together."""
        visitors = [_visitor(side, letter, memory) for letter, memory in asked]
        try:
            self._finish(visitors)
        finally:
            # After an error the other visits still wait for answers; their threads would outlive the round.
            for visitor in visitors:
                visitor.close()
        return [visitor.result for visitor in visitors if visitor.result is not None]

    def _finish(self, waiting: Sequence[Visitor[Answered]]) -> None:
        """Lets visits go on until all have ended; answers together what the waiting ones ask for."""
        answers: Sequence[Answer | None] = [None] * len(waiting)
        while waiting:
            for visitor, given in zip(waiting, answers, strict=True):
                visitor.advance(given)
            waiting = [visitor for visitor in waiting if visitor.asks is not None]
            answers = self.serve([(v.client, v.asks) for v in waiting if v.asks is not None])

    def serve(self, asked: Sequence[Wanted]) -> list[Answer]:
        """Returns the answer to each request, in order."""
        answers: dict[int, Answer] = {}
        for group in self._groups(asked):
            answers |= zip(group, self._train([asked[k] for k in group]), strict=True)
            board().count(board().trained + len(group))
        return [answers[k] for k in range(len(asked))]

    def _groups(self, asked: Sequence[Wanted]) -> list[list[int]]:
        """Returns groups of positions: a group's requests have one model and base and like lengths, and fit into one pass."""
        alone, shared = list[list[int]](), dict[tuple[int, int], list[tuple[int, int, int]]]()
        refusals = _refusals(client for client, _ in asked)
        for k, ((client, request), refusal) in enumerate(zip(asked, refusals, strict=True)):
            reason = refusal or _refusal_of(request)
            if reason is not None:
                self._say(reason)
            first = _first_batch(client, request) if reason is None else None
            if first is None or not isinstance(client, LocalClient):
                alone.append([k])
                continue
            # The pass shows one version of the base to all. Neighbours in length share a pass, which pads to the longest.
            key = (id(client.model), 0 if request.base is None else request.base.version)
            shared.setdefault(key, []).append((client.model.longest(first), k, client.model.tokens(first)))
        groups = alone
        for sizes in shared.values():
            groups += packed(sorted(sizes), self.token_budget)
        return groups

    def _train(self, asked: Sequence[Wanted]) -> list[Answer]:
        clients = [client for client, _ in asked if isinstance(client, LocalClient)]
        if len(asked) > 1:
            try:
                return train_together(clients, [request for _, request in asked])
            except Exception as error:  # whether of one client or of the pass: training alone shows whose fault it is
                logger.debug("a joint pass failed", exc_info=error)
                self._say(reason_of(error))
        return [_alone(client, request) for client, request in asked]

    def _say(self, reason: str) -> None:
        """Says a reason once."""
        if reason not in self._said:
            self._said.add(reason)
            logger.warning("some clients train one after another: %s", reason)


def _visitor(side: ClientSide, letter: Letter, memory: ClientState) -> Visitor[Answered]:
    """Returns the visit of a letter's client."""
    return Visitor(side.clients[letter.peer.id], lambda client: answered_by(client, side, letter, memory))


def packed(sizes: Iterable[tuple[int, int, int]], budget: int) -> list[list[int]]:
    """Forms groups of neighbours in which the largest batch times the count stays within the budget.

    Args:
        sizes: (length, position, tokens), by length.
        budget: tokens; a larger batch is a group of its own.
    """
    groups, largest = list[list[int]](), 0
    for _, position, size in sizes:
        if groups and (len(groups[-1]) + 1) * max(largest, size) <= budget:
            groups[-1].append(position)
            largest = max(largest, size)
        else:
            groups.append([position])
            largest = size
    return groups


def _first_batch(client: Client, request: Request) -> Batch | None:
    """Returns the first batch of a request; None if its rows cannot be made into one. The error comes where they train."""
    assert isinstance(client, LocalClient)  # as `_refusals` says
    try:
        return client.first_batch(request.t)
    except Exception as error:  # the client's own fault, which must not end the round of the others
        logger.debug("client %s: no first batch", client.peer.id, exc_info=error)
        return None


def _refusals(clients: Iterable[Client]) -> Iterator[str | None]:
    """Yields for each client the reason why it cannot share a pass, None if it can; asks each model once."""
    known = dict[int, str | None]()
    for client in clients:
        if not isinstance(client, LocalClient):
            yield f"a {type(client).__name__} trains in its own way"
        elif not client.examples:
            yield f"client {client.peer.id} has no training examples"
        else:
            if id(client.model) not in known:
                known[id(client.model)] = client.model.joint_refusal()
            yield known[id(client.model)]


def _refusal_of(request: Request) -> str | None:
    if getattr(request.optimizer, "closure", False):
        return f"{type(request.optimizer).__name__} evaluates the loss more than once in a step"
    return None


def _alone(client: Client, request: Request) -> Answer:
    asked = {name: value for name, value in vars(request).items() if name not in ("t", "start")}
    try:
        return client.train(request.t, request.start, **asked)
    except Exception as error:  # raised where the request was made
        return error
