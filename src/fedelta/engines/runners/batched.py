"""Trains a whole cohort in few passes: the frozen base sees the tokens of many clients at once.

Starts up to 64 clients; each runs until its method calls `client.train`. The calls are put into groups that fit into one pass,
and each group trains together. What cannot be grouped trains alone, as in the sequential engine.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias

from fedelta.adapted import CPU_TOKENS
from fedelta.client import LocalClient, Request
from fedelta.engines.federation import Federation, Visit
from fedelta.engines.runners.handover import Answer, Visitor
from fedelta.engines.runners.joint import train_together
from fedelta.method import Client, State

logger = logging.getLogger("fedelta.engines")

Engine: TypeAlias = Literal["auto", "sequential", "batched"]
VisitAll: TypeAlias = Callable[[Federation, int, Mapping[int, State]], list[Visit]]
"""(federation, t, the state that each client of the cohort is served from, by id) -> the visits in that order."""

WINDOW = 64
"""Visits that wait at a time: each holds the message that it got, and a thread."""

Asked: TypeAlias = tuple[Client, Request]


@dataclass(frozen=True)
class Choice:
    """Says how a run's clients are run.

    Attributes:
        engine: "sequential" or "batched".
        token_budget: tokens in a pass of the batched engine.
    """

    engine: Literal["sequential", "batched"]
    token_budget: int = CPU_TOKENS

    def visits(self) -> VisitAll:
        """Returns the function that visits a cohort."""
        return Batched(self.token_budget).visits if self.engine == "batched" else one_by_one


def choose(engine: Engine, clients: Iterable[Client], token_budget: int | None = None) -> Choice:
    """Returns the engine itself; for "auto", the batched one if the clients can share a pass and two or more fit into it.

    Raises:
        ValueError: for an unknown engine or a budget below 1.
    """
    if engine not in ("auto", "sequential", "batched"):
        raise ValueError(f"no engine is called {engine!r}; there are auto, sequential, batched")
    if token_budget is not None and token_budget < 1:
        raise ValueError(f"token_budget must be at least 1, got {token_budget}")
    if engine == "sequential":
        return Choice(engine, token_budget or CPU_TOKENS)  # nobody needs to be asked whether a pass can be shared
    clients = list(clients)
    first: Any = clients[0]
    able = (engine == "batched" or len(clients) > 1) and not any(map(_refusal, clients))
    budget = token_budget or (first.model.pass_tokens() if able else CPU_TOKENS)
    if engine == "auto":
        wins = able and 2 * first.model.tokens(next(first.batches(0))) <= budget
        engine = "batched" if wins else "sequential"
    return Choice(engine, budget)


def one_by_one(run: Federation, t: int, states: Mapping[int, State]) -> list[Visit]:
    """Visits one client after another: the sequential engine."""
    return [run.visit(t, state, k) for k, state in states.items()]


@dataclass(eq=False)
class Batched:
    """The batched engine.

    Args:
        token_budget: tokens in a pass; a client whose batch is larger trains alone.
    """

    token_budget: int = CPU_TOKENS
    _said: set[str] = field(default_factory=set[str])

    def visits(self, run: Federation, t: int, states: Mapping[int, State]) -> list[Visit]:
        """Visits a cohort, in order; what a client raises is handled where the sequential engine handles it."""
        ids, found = list(states), list[Visit]()
        for at in range(0, len(ids), WINDOW):
            window = [_visitor(run, t, states[k], k) for k in ids[at : at + WINDOW]]
            try:
                self._play(window)
            finally:
                for visitor in window:
                    visitor.close()
            found += [visitor.result for visitor in window if visitor.result is not None]
        return found

    def _play(self, waiting: Sequence[Visitor]) -> None:
        answers: Sequence[Answer | None] = [None] * len(waiting)
        while waiting:
            for visitor, answer in zip(waiting, answers, strict=True):
                visitor.advance(answer)
            waiting = [visitor for visitor in waiting if visitor.asks is not None]
            answers = self.serve([(v.client, v.asks) for v in waiting if v.asks is not None])

    def serve(self, asked: Sequence[Asked]) -> list[Answer]:
        """Returns what each request comes to, in order."""
        answers: dict[int, Answer] = {}
        for group in self._groups(asked):
            answers |= zip(group, self._train([asked[k] for k in group]), strict=True)
        return [answers[k] for k in range(len(asked))]

    def _groups(self, asked: Sequence[Asked]) -> list[list[int]]:
        """Returns the positions of requests that train together: of one model and base, of like length, within the budget."""
        alone, shared = list[list[int]](), dict[Any, list[tuple[int, int, int]]]()
        for k, (client, request) in enumerate(asked):
            reason = _refusal(client) or _refusal_of(request)
            if reason is None:
                assert isinstance(client, LocalClient)  # as `_refusal` says
                first = client.first_batch(request.t)
                key = (id(client.model), 0 if request.base is None else request.base.version)
                shared.setdefault(key, []).append((client.model.longest(first), k, client.model.tokens(first)))
            else:
                self._say(reason)
                alone.append([k])
        return alone + [group for sizes in shared.values() for group in packed(sorted(sizes), self.token_budget)]

    def _train(self, asked: Sequence[Asked]) -> list[Answer]:
        clients = [client for client, _ in asked if isinstance(client, LocalClient)]
        if len(asked) > 1:
            try:
                return train_together(clients, [request for _, request in asked])
            except Exception as error:  # one client's fault or the pass's: alone, each shows its own
                logger.debug("a joint pass failed", exc_info=error)
                self._say(f"{type(error).__name__}: {error}")
        return [_alone(client, request) for client, request in asked]

    def _say(self, reason: str) -> None:
        """Warns once for each reason."""
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


def _visitor(run: Federation, t: int, state: State, k: int) -> Visitor:
    return Visitor(run.clients[k], partial(run.visit, t, state, k))


def _refusal(client: Client) -> str | None:
    """Says why a client cannot share a pass with others."""
    if not isinstance(client, LocalClient):
        return f"a {type(client).__name__} trains in its own way"
    if not client.examples:
        return f"client {client.peer.id} has no training examples"
    return client.model.joint_refusal()


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
