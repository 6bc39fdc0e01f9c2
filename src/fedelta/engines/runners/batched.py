"""Trains a whole cohort in few passes: the frozen base sees the tokens of many clients at once.

Starts up to `WINDOW` visits; each runs until its method calls `client.train`. The requests are put into groups that fit into
one pass, and each group trains together. A request that fits into no group trains alone, as in the sequential engine.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from fedelta.adapted import CPU_TOKENS
from fedelta.client import Batch, LocalClient, Request
from fedelta.engines.federation import Federation
from fedelta.engines.guards import reason_of
from fedelta.engines.letters import Letter, Reply, Visit
from fedelta.engines.memories import InMemory
from fedelta.engines.runners._handover import Answer, Visitor
from fedelta.engines.runners._joint import train_together
from fedelta.engines.settings import Choice
from fedelta.engines.visits import VisitAll, answer, receive, refuse, send
from fedelta.method import Client, ClientState, State

logger = logging.getLogger("fedelta.engines")

WINDOW = 64
"""The number of visits that wait at a time: each holds a thread, and the message that it got."""

Answered: TypeAlias = tuple[Reply, ClientState] | Exception
"""A client's reply and memory, or what its local update raised."""

Asked: TypeAlias = tuple[Client, Request]


def runner(token_budget: int) -> VisitAll:
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
class Batched:
    """The batched engine.

    Args:
        token_budget: tokens in a pass; a client whose batch is larger trains alone.
        memories: of the clients.
    """

    token_budget: int = CPU_TOKENS
    memories: InMemory = field(default_factory=InMemory)
    _said: set[str] = field(default_factory=set[str])

    def __call__(self, federation: Federation, t: int, states: Mapping[int, State]) -> list[Visit]:
        """Returns the visits of a cohort, in order; up to `WINDOW` of them wait at a time."""
        ids, done = list(states), list[Visit]()
        for at in range(0, len(ids), WINDOW):
            letters = [send(federation, t, states[k], k) for k in ids[at : at + WINDOW]]
            for letter, answered in zip(letters, self._answers(federation, letters), strict=True):
                done.append(self._received(federation, states, letter, answered))
        return done

    def _answers(self, federation: Federation, letters: Sequence[Letter]) -> list[Answered]:
        """Returns what each client answers; their requests for training are answered together."""
        visitors = [self._visitor(federation, letter) for letter in letters]
        try:
            self._finish(visitors)
        finally:
            # After an error the other visits still wait for answers; their threads would outlive the round.
            for visitor in visitors:
                visitor.close()
        return [visitor.result for visitor in visitors if visitor.result is not None]

    def _visitor(self, federation: Federation, letter: Letter) -> Visitor[Answered]:
        k = letter.peer.id

        def answered(client: Client) -> Answered:
            try:
                return answer(federation.method, client, federation.channel, letter, self.memories.get(k))
            except Exception as error:  # the client's fault, which the server refuses
                return error

        return Visitor(federation.clients[k], answered)

    def _received(self, federation: Federation, states: Mapping[int, State], letter: Letter, answered: Answered) -> Visit:
        k = letter.peer.id
        if isinstance(answered, Exception):
            return refuse(federation, letter.t, letter, "local update", answered)
        reply, memory = answered
        self.memories.offer(k, memory)  # counts only if the visit does
        return receive(federation, letter.t, states[k], letter, reply)

    def _finish(self, waiting: Sequence[Visitor[Answered]]) -> None:
        """Lets visits go on until all have ended; answers together what the waiting ones ask for."""
        answers: Sequence[Answer | None] = [None] * len(waiting)
        while waiting:
            for visitor, given in zip(waiting, answers, strict=True):
                visitor.advance(given)
            waiting = [visitor for visitor in waiting if visitor.asks is not None]
            answers = self.serve([(v.client, v.asks) for v in waiting if v.asks is not None])

    def serve(self, asked: Sequence[Asked]) -> list[Answer]:
        """Returns the answer to each request, in order."""
        answers: dict[int, Answer] = {}
        for group in self._groups(asked):
            answers |= zip(group, self._train([asked[k] for k in group]), strict=True)
        return [answers[k] for k in range(len(asked))]

    def _groups(self, asked: Sequence[Asked]) -> list[list[int]]:
        """Returns groups of positions: the requests of a group have one model and base, and fit into one pass."""
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

    def _train(self, asked: Sequence[Asked]) -> list[Answer]:
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
