"""Trains several clients in one pass of their model at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from fedelta import seeding
from fedelta.activity import board
from fedelta.adapted import Batch, JointPass
from fedelta.client import LocalClient, Request, Session, displaced, trainable_names
from fedelta.engines.runners._handover import Answer
from fedelta.optim import OptimizerState
from fedelta.tree import Tensors


def train_together(clients: Sequence[LocalClient], requests: Sequence[Request]) -> list[Answer]:
    """Answers each request as `client.train` would, up to rounding; a client that has finished leaves the pass.

    Args:
        clients: of one model, whose `joint_refusal` is None.
        requests: one of each, with base deltas of one version.

    Returns:
        The result of each, in that order. A client whose loss became NaN or Inf has a FloatingPointError, and hurts no other.
    """
    starts, bases = [r.start for r in requests], [r.base for r in requests]
    dropout = [client.dropout(request.t) for client, request in zip(clients, requests, strict=True)]
    with clients[0].model.joint(starts, bases, dropout) as cohort:
        return _run(cohort, [_session(cohort, k, client, requests[k]) for k, client in enumerate(clients)])


def _session(cohort: JointPass, k: int, client: LocalClient, request: Request) -> Session:
    own = cohort.parameters(k)
    names = set(trainable_names(request.start, request.trainable))
    return Session(client, request, {n: p for n, p in own.items() if n in names}, state={})


def _run(cohort: JointPass, sessions: Sequence[Session]) -> list[Answer]:
    # One pass computes the gradients of all tensors that anybody trains; each session takes those that it asked for.
    cohort.train_only({name for session in sessions for name in session.params})
    steps: _Steps = _Stacked(cohort, sessions) if _alike(sessions) else _Separate(cohort, sessions)
    answers: dict[Session, Answer] = {}
    batches = {session: session.batches() for session in sessions}
    board().train(len(sessions), None, max(session.steps for session in sessions))
    while steps.sessions:
        drawn = [next(batches[session], None) for session in steps.sessions]
        if any(batch is None for batch in drawn):
            for k, session in enumerate(steps.sessions):
                if drawn[k] is None:
                    answers[session] = _answer(steps, k)
            # Who has finished leaves before the pass, whose cost is that of the clients that are still in it.
            left = [k for k, batch in enumerate(drawn) if batch is not None]
            cohort.keep(left)
            steps.keep(left)
        if steps.sessions:
            evaluate = partial(_gradients, cohort, steps.sessions, [batch for batch in drawn if batch is not None])
            displacing = any(session.displacing for session in steps.sessions)
            again = seeding.repeatable(cohort.generators if displacing else [])
            losses, grads = evaluate()
            if displacing:
                with again():
                    grads = _where_asked(cohort, steps.sessions, grads, evaluate)
            steps.step(losses, grads)
            board().step += 1
    return [answers[session] for session in sessions]


def _gradients(cohort: JointPass, sessions: Sequence[Session], batches: Sequence[Batch]) -> tuple[Tensor, dict[str, Tensor]]:
    """Computes each client's loss (K,), and the stacked gradients."""
    losses = torch.stack(cohort.losses([s.client.loss for s in sessions], batches))
    # One backward pass for all: no tensor belongs to two clients, so the gradient of the sum is each one's own.
    objective = losses.sum()
    if any(session.request.penalty is not None for session in sessions):
        for session, live in zip(sessions, cohort.live(), strict=True):
            if session.request.penalty is not None:
                objective = objective + session.request.penalty(live)
    return losses.detach(), cohort.gradients(objective)


Evaluate: TypeAlias = Callable[[], tuple[Tensor, dict[str, Tensor]]]
"""Returns the losses and the stacked gradients of a step, at the parameters as they are."""


def _where_asked(
    cohort: JointPass,
    sessions: Sequence[Session],
    grads: dict[str, Tensor],
    evaluate: Evaluate,
) -> dict[str, Tensor]:
    """Returns the stacked gradients, each client's at the displacement that its hook asks for, by a second pass if any does."""
    offsets = [session.offset(_own(cohort, k, session, grads)) for k, session in enumerate(sessions)]
    asking = [offset is not None for offset in offsets]
    if not any(asking):
        return grads
    with ExitStack() as moved:
        for session, offset in zip(sessions, offsets, strict=True):
            if offset is not None:
                moved.enter_context(displaced(session.params, offset))
        _, again = evaluate()
    return again if all(asking) else {n: _rows(asking, x, grads[n]) for n, x in again.items()}


def _rows(chosen: Sequence[bool], x: Tensor, other: Tensor) -> Tensor:
    """Returns the chosen rows of a tensor (K, ...), and the other ones of another."""
    which = torch.tensor(chosen, device=x.device).view(-1, *[1] * (x.ndim - 1))
    return torch.where(which, x, other)


def _own(cohort: JointPass, k: int, session: Session, grads: Tensors) -> dict[str, Tensor]:
    """Returns the gradients of one client's tensors that train: views without padding."""
    return {n: cohort.own(k, n, grads[n][k]) for n in session.params if n in grads}


def _answer(steps: _Steps, k: int) -> Answer:
    session = steps.sessions[k]
    session.state = steps.state(k)
    try:
        return session.result(steps.cohort.parameters(k))
    except FloatingPointError as error:
        return error


# --- the step from gradients to parameters ---------------------------------------------------------------------------


class _Steps(Protocol):
    cohort: JointPass
    sessions: list[Session]

    def step(self, losses: Tensor, grads: dict[str, Tensor]) -> None: ...
    def keep(self, which: Sequence[int]) -> None: ...
    def state(self, k: int) -> OptimizerState: ...


class _Separate:
    """Lets each client take its own step, with its own hook, norm, optimiser and rate."""

    def __init__(self, cohort: JointPass, sessions: Sequence[Session]) -> None:
        self.cohort, self.sessions = cohort, list(sessions)
        for session in sessions:
            session.state = session.optimizer.init(session.params)

    def step(self, losses: Tensor, grads: dict[str, Tensor]) -> None:
        for k, session in enumerate(self.sessions):
            session.step(losses[k], _own(self.cohort, k, session, grads))

    def keep(self, which: Sequence[int]) -> None:
        self.sessions = [self.sessions[k] for k in which]
        # The cohort has new stacked tensors, and a view of the old ones would write into nothing.
        for k, session in enumerate(self.sessions):
            own = self.cohort.parameters(k)
            session.params = {n: own[n] for n in session.params}

    def state(self, k: int) -> OptimizerState:
        return self.sessions[k].state


class _Stacked:
    """Takes one step for all clients on their stacked tensors; only where `_alike` says that it is each one's own step."""

    def __init__(self, cohort: JointPass, sessions: Sequence[Session]) -> None:
        self.cohort, self.sessions = cohort, list(sessions)
        first = sessions[0]
        self.names, self.optimizer, self.learning_rate = list(first.params), first.optimizer, first.learning_rate
        self.max_grad_norm = first.client.training.max_grad_norm
        self._state = self.optimizer.init(self._params())

    def step(self, losses: Tensor, grads: dict[str, Tensor]) -> None:
        grads = {n: grads[n] for n in self.names if n in grads}
        if self.max_grad_norm is not None and grads:
            grads = each_clipped(grads, self.max_grad_norm)
        with torch.no_grad():
            self.optimizer.update(self._params(), grads, self._state, self.learning_rate)
        for session, loss in zip(self.sessions, losses, strict=True):
            session.losses.append(loss)

    def keep(self, which: Sequence[int]) -> None:
        self.sessions = [self.sessions[k] for k in which]
        kept = list(which)

        def rows(x: Tensor) -> Tensor:
            return x[kept] if x.ndim else x  # a step counter is one for all

        for slot, tensors in self._state.items():
            self._state[slot] = {n: rows(x) for n, x in tensors.items()}

    def state(self, k: int) -> OptimizerState:
        def part(name: str, x: Tensor) -> Tensor:
            # A copy, since the next steps of the clients that stay write into the stacked state.
            return (self.cohort.own(k, name, x[k]) if x.ndim else x).clone()

        own: OptimizerState = {}
        for slot, tensors in self._state.items():
            own[slot] = {n: part(n, x) for n, x in tensors.items()}
        return own

    def _params(self) -> dict[str, Tensor]:
        return {n: self.cohort.stacked[n].detach() for n in self.names}


def _alike(sessions: Sequence[Session]) -> bool:
    """Returns whether one step on stacked tensors equals each client's own step.

    It does for one optimiser that works entry by entry, at one rate and one norm, without gradient hooks.
    """
    first = sessions[0]

    def like_first(s: Session) -> bool:
        same = s.optimizer is first.optimizer and s.learning_rate == first.learning_rate
        same = same and s.client.training.max_grad_norm == first.client.training.max_grad_norm
        return same and s.request.gradient is None and s.params.keys() == first.params.keys()

    return getattr(first.optimizer, "elementwise", False) and all(map(like_first, sessions))


def each_clipped(grads: Tensors, max_norm: float) -> dict[str, Tensor]:
    """Scales each client's part of stacked gradients (K, ...) down if the norm over all of that part is above `max_norm`."""
    norm = torch.stack([g.flatten(1).square().sum(1) for g in grads.values()]).sum(0).sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return {n: g * factor.view(-1, *[1] * (g.ndim - 1)) for n, g in grads.items()}
