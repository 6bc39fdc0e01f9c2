"""Reckons what a run would cost, without training: steps, bytes on the wire, memory.

Two rounds are played with clients that answer at once with the adapter they got, so every message has the size that it has in
the run: some methods send another first message than later ones. Figures are for whole cohorts without losses. Without a server
bytes go up only, once for each neighbour; later rounds are a mean over the graphs of the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor

from fedelta import topology, tree
from fedelta.client import LocalClient, trainable_names
from fedelta.engines.guards import takes_of
from fedelta.engines.rounds import Round
from fedelta.exchange.spool import held
from fedelta.method import TrainResult
from fedelta.models.trainer.client import TrainerClient
from fedelta.optim import OptimizerState
from fedelta.runs.experiment import LocalExperiment
from fedelta.runs.rounds import play
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
            the server's state; a round's updates that are not spooled. Activations are not among them.
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

    def __init__(self, client: LocalClient | TrainerClient) -> None:
        self._client = client
        self.peer, self.template, self.num_steps = client.peer, client.template, client.num_steps
        self.takes = takes_of(client)

    def train(self, t: int, start: Adapter, **request: Any) -> TrainResult:
        steps = request.get("num_steps") or self.num_steps
        # A rate as of training: some methods divide by it.
        return TrainResult(start, steps, loss=0.0, learning_rate=1.0, optimizer_state=_fresh_state(start, request))

    def gradient(self, start: Adapter, num_batches: int, **request: Any) -> Adapter:
        return tree.map_tensors(torch.zeros_like, start)

    def base_weight(self, layer: str) -> Tensor:
        weight = self._client.base_weight(layer)
        return torch.zeros_like(weight, device="cpu") if weight.is_meta else weight

    def pool(self, others: Sequence[_IdleClient], cohort: int | None = None) -> _IdleClient:
        first, rest = cast("LocalClient", self._client), [cast("LocalClient", other._client) for other in others]
        return _IdleClient(first.pool(rest, cohort))

    def restore(self, base: BaseDelta) -> None:
        """Does nothing, since an idle client holds no model."""


def plan(experiment: LocalExperiment) -> Plan:
    """Reckons the cost of the run that `experiment` was built for.

    Raises:
        ValueError: for a federation that the method cannot serve.
    """
    settings, played = experiment.settings, _play(experiment)
    peers = len(played[0].peers)
    cohort = len(settings.cohort(0, played[0].peers, settings.seed))
    idle = experiment.method.population([_IdleClient(c) for c in experiment.clients], experiment.cohort_size)
    steps = sum(c.num_steps for c in idle) * cohort / peers
    return Plan(
        clients=peers,
        cohort=cohort,
        rounds=settings.rounds,
        steps=round(steps * settings.rounds),
        trained=sum(x.numel() for x in tree.parameters(experiment.template).values()),
        bytes=_bytes(played, _links(experiment)),
        memory=_memory(experiment, played[-1]),
    )


def _play(experiment: LocalExperiment) -> list[Round]:
    idle = [_IdleClient(c) for c in experiment.clients]
    # Played on the complete graph, to learn what a link carries: the graphs of the first rounds may happen to have no link.
    if experiment.mixing is not None:
        experiment = replace(experiment, mixing=topology.complete(len(idle)))
    settings = replace(
        experiment.settings,
        link_drop=0.0,
        score=lambda adapter, base: {"loss": 0.0},  # whom scores would favour is unknown; sizes are alike
        debug=True,
        engine="sequential",
    )
    return list(islice(play(experiment, idle, settings), 2))


def _links(experiment: LocalExperiment) -> list[float]:
    """Returns for each round the share of the played messages that is sent: all, or on a graph those on its links."""
    rounds, mixing = experiment.settings.rounds, experiment.mixing
    if mixing is None:
        return [1.0] * rounds
    most = max(1, len(experiment.clients) * (len(experiment.clients) - 1))
    graphs = (topology.at(mixing, t) for t in range(rounds))
    return [int((W > 0).sum() - (W.diagonal() > 0).sum()) / most for W in graphs]


def _bytes(played: Sequence[Round], shares: Sequence[float]) -> dict[str, Any]:
    first, later = played[0].bytes, played[-1].bytes
    rest = sum(shares[1:])
    usual = rest / max(1, len(shares) - 1)
    return {
        "first round": {"down": first.total_down, "up": round(shares[0] * first.total_up)},
        "later round": {"down": later.total_down, "up": round(usual * later.total_up)},
        "total": first.total_down
        + (len(shares) - 1) * later.total_down
        + round(shares[0] * first.total_up + rest * later.total_up),
    }


def _fresh_state(start: Adapter, request: Mapping[str, Any]) -> OptimizerState:
    """Returns the state of a method's own optimiser, since some methods send a part of it."""
    if request.get("optimizer") is None:
        return {}
    params = tree.parameters(start)
    return request["optimizer"].init({n: params[n] for n in trainable_names(start, request.get("trainable"))})


def _memory(experiment: LocalExperiment, last: Round) -> dict[str, int]:
    model = experiment.model
    module = model.module
    trained = dict(tree.parameters(model.live()))
    own = {id(x) for x in trained.values()}
    frozen = [x for x in (*module.parameters(), *module.buffers()) if id(x) not in own]
    adapter = dict(tree.parameters(experiment.template))
    optimizer = experiment.training.optimizer.init(adapter)
    updates = _size(x for u in last.updates for _, x in tree.named_tensors(u.content))
    return {
        "frozen base": _size(frozen),
        "adapter": _size(adapter.values()),
        "gradients": _size(adapter.values()),
        "optimizer state": sum(_size(slot.values()) for slot in optimizer.values()),
        "server state": _size(x for _, x in tree.named_tensors(last.state)),
        "updates of a round": held(experiment.settings.spool, updates),
    }


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(x.nbytes for x in tensors)
