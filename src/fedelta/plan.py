"""What a run would cost, without training: steps, bytes on the wire, memory.

Two rounds are played with clients that answer at once with the adapter they got, so every message has the size that it has in
the run: some methods send another first message than later ones. Figures are for whole cohorts without losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedelta import sampling, tree
from fedelta.client import LocalClient
from fedelta.engines.local import Round, federate
from fedelta.experiment import Experiment
from fedelta.method import TrainResult
from fedelta.tree import Adapter, BaseDelta


@dataclass(frozen=True)
class Plan:
    """The cost of a run.

    Attributes:
        clients, cohort: how many there are, and how many take part in a round.
        rounds: of the run.
        steps: optimiser steps, over all rounds and cohorts; a mean where cohorts differ.
        trained: numbers that the largest client trains.
        bytes: by "first round" and "later round", the bytes "down" and "up"; and their "total" over the run.
        memory: bytes by what they are for: the frozen base, and the largest client's adapter, gradients and optimiser state;
            the server's state. Activations are not among them.
    """

    clients: int
    cohort: int
    rounds: int
    steps: int
    trained: int
    bytes: Mapping[str, Any]
    memory: Mapping[str, int]


class _IdleClient:
    """A client that does not train."""

    def __init__(self, client: LocalClient) -> None:
        self._client = client
        self.peer, self.template, self.num_steps = client.peer, client.template, client.num_steps

    def train(self, t: int, start: Adapter, **request: Any) -> TrainResult:
        return TrainResult(start, request.get("num_steps") or self.num_steps, 0.0)

    def gradient(self, start: Adapter, num_batches: int, **request: Any) -> Adapter:
        return tree.map_tensors(torch.zeros_like, start)

    def pool(self, others: Sequence[_IdleClient]) -> _IdleClient:
        return _IdleClient(self._client.pool([other._client for other in others]))

    def restore(self, base: BaseDelta) -> None:
        """It holds no model."""


def plan(experiment: Experiment) -> Plan:
    """The cost of the run that `experiment` was built for.

    Raises:
        ValueError: for a federation that the method cannot serve.
    """
    config = experiment.config
    played = _play(experiment)
    peers = len(played[0].peers)
    cohort = len(sampling.uniform(config.federation.participation)(0, played[0].peers, config.seed))
    idle = experiment.method.population([_IdleClient(c) for c in experiment.clients])
    steps = sum(c.num_steps for c in idle) * cohort / peers
    return Plan(
        clients=peers,
        cohort=cohort,
        rounds=config.federation.rounds,
        steps=round(steps * config.federation.rounds),
        trained=sum(x.numel() for x in tree.parameters(experiment.template).values()),
        bytes=_bytes(played, config.federation.rounds),
        memory=_memory(experiment, played[-1]),
    )


def _play(experiment: Experiment) -> list[Round]:
    config = experiment.config
    engine = federate(
        experiment.method,
        [_IdleClient(c) for c in experiment.clients],
        experiment.template,
        rounds=min(2, config.federation.rounds),
        cohort=sampling.uniform(config.federation.participation),
        seed=config.seed,
        weights=config.federation.weights,
        score=lambda adapter, base: {"loss": 0.0},  # whom scores would favour is unknown; sizes are alike
        debug=True,
    )
    return list(engine)


def _bytes(played: Sequence[Round], rounds: int) -> dict[str, Any]:
    first, later = played[0].bytes, played[-1].bytes
    return {
        "first round": {"down": first.total_down, "up": first.total_up},
        "later round": {"down": later.total_down, "up": later.total_up},
        "total": first.total + (rounds - 1) * later.total,
    }


def _memory(experiment: Experiment, last: Round) -> dict[str, int]:
    model = experiment.model
    module = model.module
    trained = dict(tree.parameters(model.live()))
    own = {id(x) for x in trained.values()}
    frozen = [x for x in (*module.parameters(), *module.buffers()) if id(x) not in own]
    adapter = dict(tree.parameters(experiment.template))
    optimizer = experiment.config.training.build().optimizer.init(adapter)
    return {
        "frozen base": _size(frozen),
        "adapter": _size(adapter.values()),
        "gradients": _size(adapter.values()),
        "optimizer state": sum(_size(slot.values()) for slot in optimizer.values()),
        "server state": _size(x for _, x in tree.named_tensors(last.state)),
    }


def _size(tensors: Any) -> int:
    return sum(x.nbytes for x in tensors)
