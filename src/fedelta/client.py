"""Trains a client locally: load, step, extract. No other module has a training loop.

A `LocalClient` joins a peer's examples to an `AdaptedModel`. The model may be shared with other clients: a call of `train` or
`gradient` loads what it needs, leaves nothing behind that a later call reads, and returns values of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from fedelta import seeding, tree
from fedelta.activity import board
from fedelta.adapted import AdaptedModel, Batch, Loss
from fedelta.demands import Check, demand_all, instance, number, optional, whole
from fedelta.method import MOST, Displacing, GradientHook, Penalty, Trainable, TrainResult
from fedelta.optim import AdamW, Optimizer, OptimizerState
from fedelta.peers import Peer
from fedelta.tasks.task import Task
from fedelta.tree import Adapter, BaseDelta, Tensors

Example: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of a client's training in one round.

    Args:
        batch_size: examples in a step; the last batch of an epoch may be smaller.
        learning_rate: in round 0.
        learning_rate_decay: factor for each further round.
        local_steps: optimiser steps in a round; None to count epochs.
        local_epochs: passes over the client's examples in a round, if `local_steps` is None.
        max_grad_norm: clips the gradient of all trained tensors together to this norm; None does not clip.
        optimizer: fresh in every round.

    Raises:
        ValueError: naming the value that makes no sense.
    """

    batch_size: int = 16
    learning_rate: float = 1e-3
    learning_rate_decay: float = 1.0
    local_steps: int | None = None
    local_epochs: int = 1
    max_grad_norm: float | None = None
    optimizer: Optimizer = field(default_factory=AdamW)

    def __post_init__(self) -> None:
        demand_all(self, CHECKS)

    def steps_for(self, num_examples: int) -> int:
        """Counts the steps of a round for a client with so many examples."""
        return self.local_steps or self.local_epochs * math.ceil(num_examples / self.batch_size)


CHECKS: Mapping[str, Check] = {
    "batch_size": whole(least=1),
    "local_steps": optional(whole(least=1, most=MOST)),
    "local_epochs": whole(least=1, most=MOST),
    "learning_rate": number(above=0),
    "learning_rate_decay": number(above=0),
    "max_grad_norm": optional(number(above=0)),
    "optimizer": instance(Optimizer, "an optimizer such as AdamW()"),
}
"""The bounds of the settings of training; one with more steps would not end."""


@dataclass(frozen=True, eq=False)
class Request:
    """A call of `Client.train` as a value; its fields are the arguments, see there."""

    t: int
    start: Adapter
    base: BaseDelta | None = None
    trainable: Trainable | None = None
    penalty: Penalty | None = None
    gradient: GradientHook | None = None
    optimizer: Optimizer | None = None
    num_steps: int | None = None
    lr_scale: float = 1.0


@dataclass(frozen=True)
class Reading:
    """The way in which a client's examples were made of rows, for whoever scores its model on other rows.

    Attributes:
        task: with its labels known, as it was given; `fedelta.models.fitting.task_for` says how the model takes it.
        tokenizer: of the model.
    """

    task: Task
    tokenizer: Any


class LocalClient:
    """A client whose data and model are in this process.

    Args:
        peer: who it is. `num_examples` must be the number of examples.
        template: the common initial adapter, at this peer's ranks and scales.
        model: may be shared between clients.
        examples: encoded training examples.
        collate: makes a batch of examples.
        loss: the mean loss of a batch under a module, a scalar.
        training: how to train.
        seed: of the run.
    """

    copies_start = True
    """`train` never writes into the adapter that it is given; engines give other clients a copy."""

    def __init__(
        self,
        peer: Peer,
        template: Adapter,
        model: AdaptedModel,
        examples: Sequence[Example],
        collate: Callable[[Sequence[Example]], Batch],
        loss: Loss,
        training: Training,
        seed: int = 0,
    ) -> None:
        if peer.num_examples != len(examples):
            raise ValueError(f"client {peer.id} is said to have {peer.num_examples} examples but has {len(examples)}")
        self.peer, self.template, self.model, self.examples = peer, template, model, examples
        self.collate, self.loss, self.training, self.seed = collate, loss, training, seed
        self.reading: Reading | None = None
        self._ahead: tuple[tuple[int, str], Iterator[Batch]] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.peer!r}, {self.num_steps} steps a round)"

    @property
    def num_steps(self) -> int:
        return self.training.steps_for(len(self.examples))

    def pool(self, others: Sequence[LocalClient], cohort: int | None = None) -> LocalClient:
        """Joins clients into one with all their examples, the largest ranks, and the steps of a cohort.

        Its steps in a round are those that `cohort` of the clients take together in the mean, rounded half up; None for all.
        """
        top = max(others, key=lambda c: c.peer.rank)
        examples = [e for c in others for e in c.examples]
        steps, count = sum(c.num_steps for c in others), len(others)
        asked = count if cohort is None else cohort
        training = replace(self.training, local_steps=max(1, (2 * steps * asked + count) // (2 * count)))
        peer = replace(top.peer, id=0, num_examples=len(examples))
        return LocalClient(peer, top.template, self.model, examples, self.collate, self.loss, training, self.seed)

    def restore(self, base: BaseDelta) -> None:
        """Brings the model to a base that this client held before its process was lost."""
        self.model.load(self.template, base)

    def train(
        self,
        t: int,
        start: Adapter,
        *,
        base: BaseDelta | None = None,
        trainable: Trainable | None = None,
        penalty: Penalty | None = None,
        gradient: GradientHook | None = None,
        optimizer: Optimizer | None = None,
        num_steps: int | None = None,
        lr_scale: float = 1.0,
    ) -> TrainResult:
        """Trains from `start`; see `fedelta.method.Client`.

        Raises:
            ValueError: for a client without examples, or a start that does not fit the model.
            FloatingPointError: if the loss became NaN or Inf, naming the step.
        """
        request = Request(t, start, base, trainable, penalty, gradient, optimizer, num_steps, lr_scale)
        # Loaded anew in every call, even by the client that trained last: the model is shared, and whoever used it in between
        # left another adapter in it.
        params = self._load(start, base, trainable)
        drawn_from = self.model.mode(self.dropout(t))
        session = Session(self, request, params)
        board().train(1, self.peer.id, session.steps)
        for batch in session.batches():
            again = seeding.repeatable([drawn_from] if session.displacing and drawn_from else [])
            loss, grads = self._gradients(params, batch, penalty)
            offset = session.offset(grads)
            if offset is not None:
                with displaced(params, offset), again():
                    grads = self._gradients(params, batch, penalty)[1]
            session.step(loss, grads)
            board().step += 1
        return session.result(tree.parameters(self.model.live()))

    def dropout(self, t: int) -> torch.Generator:
        """Returns the generator of a round's adapter dropout: the client's own, whatever the order of clients."""
        return seeding.generator(self.seed, t, self.peer.id, "dropout")

    def gradient(self, start: Adapter, num_batches: int, *, base: BaseDelta | None = None, t: int = 0) -> Adapter:
        """Returns the mean gradient over some batches at `start`, in its shape; zero where the loss does not reach."""
        params = self._load(start, base, None)
        self.model.mode(None)
        total = {n: torch.zeros_like(p) for n, p in params.items()}
        for batch in islice(self.batches(t, "gradient"), num_batches):
            for name, grad in self._gradients(params, batch, None)[1].items():
                total[name] += grad / num_batches
        return tree.with_parameters(start, {n: g.cpu() for n, g in total.items()})

    def base_weight(self, layer: str) -> Tensor:
        """Returns the pretrained weight (o, i) of a layer; see `fedelta.method.Client`."""
        return self.model.base_weight(layer)

    def batches(self, t: int, purpose: str = "batches") -> Iterator[Batch]:
        """Yields endless batches of a round: epochs of a fresh order each, drawn for this client and round alone."""
        ahead, self._ahead = self._ahead, None
        return ahead[1] if ahead is not None and ahead[0] == (t, purpose) else self._drawn(t, purpose)

    def first_batch(self, t: int) -> Batch:
        """Returns the first of a round's `batches`, by which a pass is planned; the next call of `batches` begins with it."""
        # Kept until `batches` is called, since collating a batch costs time; the draws are the same either way.
        drawn = self._drawn(t, "batches")
        first = next(drawn)
        self._ahead = (t, "batches"), chain([first], drawn)
        return first

    def _drawn(self, t: int, purpose: str) -> Iterator[Batch]:
        generator = seeding.generator(self.seed, t, self.peer.id, purpose)
        while True:
            order: list[int] = torch.randperm(len(self.examples), generator=generator).tolist()
            for at in range(0, len(order), self.training.batch_size):
                batch = self.collate([self.examples[k] for k in order[at : at + self.training.batch_size]])
                yield moved(batch, self.model.device)

    def _load(self, start: Adapter, base: BaseDelta | None, trainable: Trainable | None) -> dict[str, Tensor]:
        """Loads the model and returns the tensors that train, by their flat name."""
        if not self.examples:
            raise ValueError(f"client {self.peer.id} has no training examples; leave it out, or give it a share of the data")
        self.model.load(start, base)
        live = self.model.live()
        chosen = set(trainable_names(live, trainable))
        params = tree.parameters(live)
        for name, p in params.items():
            p.requires_grad_(name in chosen)
        return {n: p for n, p in params.items() if n in chosen}

    def _gradients(self, params: Tensors, batch: Batch, penalty: Penalty | None) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.loss(self.model.module, batch)
        objective = loss if penalty is None else loss + penalty(self.model.live())
        return loss.detach(), gradients_of(objective, params)


def moved(batch: Batch, device: torch.device) -> Batch:
    """Moves a batch to a device; on CUDA while the step before it still runs."""
    # From pinned memory the GPU copies by itself, and the program does not wait for it.
    if device.type != "cuda":
        return {name: value.to(device) for name, value in batch.items()}
    return {name: value.pin_memory().to(device, non_blocking=True) for name, value in batch.items()}


class Session:
    """Trains as one request asks, step by step; whoever calls `step` says what the gradients are.

    Args:
        client: whose it is.
        request: what is asked.
        params: the tensors that train, by flat name; steps write into them.
        state: the optimiser's, if it is kept elsewhere.
    """

    def __init__(
        self, client: LocalClient, request: Request, params: dict[str, Tensor], state: OptimizerState | None = None
    ) -> None:
        training = client.training
        self.client, self.request, self.params = client, request, params
        self.optimizer: Optimizer = request.optimizer or training.optimizer
        self.state = self.optimizer.init(params) if state is None else state
        self.learning_rate = training.learning_rate * training.learning_rate_decay**request.t * request.lr_scale
        self.displacing = request.gradient if isinstance(request.gradient, Displacing) else None
        self.losses: list[Tensor] = []

    @property
    def steps(self) -> int:
        """Counts the steps that the request takes."""
        return self.request.num_steps or self.client.num_steps

    def batches(self) -> Iterator[Batch]:
        """Yields one batch for each step."""
        return islice(self.client.batches(self.request.t), self.steps)

    def offset(self, grads: Tensors) -> Tensors | None:
        """Returns the displacement at which the hook wants the gradients of the next step; None if it takes these."""
        return None if self.displacing is None else self.displacing.offset(grads, self.params, len(self.losses))

    def step(self, loss: Tensor, grads: dict[str, Tensor]) -> None:
        """Takes one step, from a batch's mean loss and its gradients by flat name."""
        # The hook comes before clipping: it may add to the gradients, and the limit is for what is stepped by.
        if self.request.gradient is not None:
            grads = dict(self.request.gradient(grads, self.params, len(self.losses)))
        if self.client.training.max_grad_norm is not None and grads:
            grads = clipped(grads, self.client.training.max_grad_norm)
        with torch.no_grad():
            self.optimizer.update(self.params, grads, self.state, self.learning_rate)
        self.losses.append(loss)

    def result(self, trained: Tensors) -> TrainResult:
        """Returns the trained adapter, the mean loss and the optimiser's state.

        Args:
            trained: all tensors of the adapter after the last step; they are copied to the CPU.

        Raises:
            FloatingPointError: if the loss became NaN or Inf, naming the step.
        """
        # Copies even on the CPU: these are the model's own tensors, and the next client trains in them.
        copies = {n: p.detach().to("cpu", copy=True) for n, p in trained.items()}
        adapter = tree.with_parameters(self.request.start, copies)
        return TrainResult(adapter, len(self.losses), self._mean_loss(), self.learning_rate, self._given_back())

    def _given_back(self) -> OptimizerState:
        """Returns the optimiser's state, on the CPU where a method brought the optimiser."""
        # Only such a method reads the state, and computes with it on the CPU; any other is spared the copy.
        if self.request.optimizer is None:
            return self.state
        given: OptimizerState = {}
        for slot, tensors in self.state.items():
            given[slot] = {n: x.cpu() for n, x in tensors.items()}
        return given

    def _mean_loss(self) -> float:
        # All at once, after the last step: to read each loss as it comes would make every step wait for the GPU.
        values: list[float] = torch.stack(self.losses).tolist()
        bad = next((k for k, v in enumerate(values) if not math.isfinite(v)), None)
        if bad is not None:
            raise FloatingPointError(
                f"client {self.client.peer.id}: the loss became {values[bad]} at local step {bad}; lower learning_rate "
                f"(now {self.client.training.learning_rate}) or set max_grad_norm"
            )
        return math.fsum(values) / len(values)


@contextmanager
def displaced(params: Tensors, offset: Tensors) -> Generator[None]:
    """Moves parameters by an offset, in place, inside a `with` block; afterwards they are to the bit what they were.

    Raises:
        ValueError: for an offset of something that does not train, or of another shape.
    """
    for n, x in offset.items():
        if n not in params or x.shape != params[n].shape:
            raise ValueError(
                f"an offset is asked for at {n!r} of shape {tuple(x.shape)}, which is none of the tensors that train: "
                "return offsets by the names, and of the shapes, of the gradients"
            )
    before = {n: params[n].detach().clone() for n in offset}
    try:
        with torch.no_grad():
            for n, x in offset.items():
                params[n].add_(x.to(params[n]))
        yield
    finally:
        with torch.no_grad():
            for n, x in before.items():
                params[n].copy_(x)


def gradients_of(objective: Tensor, leaves: Tensors) -> dict[str, Tensor]:
    """Returns the gradients of an objective by the leaves' names, without the leaves that it does not reach."""
    found = torch.autograd.grad(objective, list(leaves.values()), allow_unused=True)
    grads = cast("tuple[Tensor | None, ...]", found)  # torch's types leave the None out
    return {n: g for n, g in zip(leaves, grads, strict=True) if g is not None}


def clipped(grads: Tensors, max_norm: float) -> dict[str, Tensor]:
    """Scales gradients down together if their common norm is above `max_norm`."""
    norm = nn.utils.get_total_norm(list(grads.values()))
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return {n: g * factor for n, g in grads.items()}


def trainable_names(adapter: Adapter, trainable: Trainable | None) -> list[str]:
    """Returns the flat names, as in `tree.parameters`, of the tensors that train.

    Raises:
        ValueError: for a name that the adapter does not have, or a choice that is not known.
    """
    choice = trainable if isinstance(trainable, Mapping) else dict.fromkeys(adapter.layers, trainable or "AB")
    known = {*adapter.layers, *adapter.dense}
    if unknown := sorted(set(choice) - known):
        raise ValueError(f"trainable names {unknown}, which the adapter does not have; it has {sorted(known)[:4]} ...")
    names: list[str] = []
    for layer in adapter.layers:
        names += [f"{layer}.lora_{which}" for which in choice.get(layer, "AB") or ""]
    return names + [n for n in adapter.dense if choice.get(n, "dense") is not None]
