"""The needs of a run's rounds, wherever its clients train; no model library is imported for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from fedelta.engines.gossip import gossip
from fedelta.engines.rounds import Round
from fedelta.engines.server import federate
from fedelta.engines.settings import RunSettings
from fedelta.engines.visits import VisitAll
from fedelta.method import Client, Method
from fedelta.models.adapter_files import Layout
from fedelta.report.words import majority
from fedelta.runs.config import RunConfig
from fedelta.runs.deal import Deal
from fedelta.runs.evaluation import Evaluator, Scores
from fedelta.tasks.task import Example
from fedelta.topology import Mixing
from fedelta.tree import Adapter


def _none(done: Round) -> Mapping[int, Scores]:
    return {}


def _nothing() -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """All that a run needs, wherever its clients train.

    Attributes:
        config: as resolved: it holds the choices that it left to the graph and the machines.
        method: with the hyper-parameters that it took from the graph.
        clients: the doors to them.
        template: the common initial adapter, at the largest ranks.
        settings: of the whole run, from its first round; the engine and the score of uploads are added where it is run.
        engine: makes the engine that visits a cohort.
        layout: of the folders that adapters are written to.
        deal: data and split; None where they are not here.
        evaluator: scores models; None without a model in this process.
        validation, test: encoded rows that nobody owns; empty where there are none.
        measure: what scores a round in the place of evaluator and rows, by part and metric; None where these do.
        own_scores: scores each participant's own model on its own rows after a round, by client id.
        memories_here: whether what clients remember is in this process, so that their own models can be written.
        device: where this process computes.
        processes: over which the clients are shared, where their number may change bits.
        notes: what a checkpoint keeps of the run beside all that, to know it again.
        mixing: the graph; None with a server.
        contraction: how fast the graph mixes (`fedelta.topology.numbers`); empty with a server.
        close: lets go of what was made for this run alone, such as its model, once the run is over.
    """

    config: RunConfig
    method: Method
    clients: Sequence[Client]
    template: Adapter
    settings: RunSettings
    engine: Callable[[], VisitAll]
    layout: Layout
    deal: Deal | None
    evaluator: Evaluator | None
    validation: Sequence[Example] = ()
    test: Sequence[Example] = ()
    measure: Callable[[Round], Mapping[str, Scores]] | None = None
    own_scores: Callable[[Round], Mapping[int, Scores]] = _none
    memories_here: bool = True
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a value, and frozen
    processes: int = 1
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    mixing: Mixing | None = None
    contraction: Mapping[str, Any] = field(default_factory=dict[str, Any])
    close: Callable[[], None] = _nothing

    def cohort_size(self) -> int:
        """Counts the clients that a round asks."""
        return self.settings.cohort_size([client.peer for client in self.clients])

    def majority(self) -> float | None:
        """Returns the share of the commonest label among the rows to report on; None where there are none here."""
        return None if self.deal is None else majority(self.deal.labels(self.deal.splits.test))


def taken(method: Method, given: Method) -> dict[str, Any]:
    """Returns the hyper-parameters that a method took from the graph and the number of rounds."""
    values = {entry.name: getattr(method, entry.name) for entry in fields(method)}
    return {name: value for name, value in values.items() if value != getattr(given, name)}


def play(experiment: Experiment, clients: Sequence[Client], settings: RunSettings) -> Iterator[Round]:
    """Yields the rounds of a run with these clients and settings, with a server or on the experiment's graph."""
    given = (experiment.method, clients, experiment.template)
    if experiment.mixing is None:
        return federate(*given, **_keywords(settings, "link_drop"))
    return gossip(*given, mixing=experiment.mixing, **_keywords(settings, "cohort", "max_share"))


def _keywords(settings: RunSettings, *without: str) -> dict[str, Any]:
    """Returns the settings by name, without those that an engine does not have."""
    return {entry.name: getattr(settings, entry.name) for entry in fields(settings) if entry.name not in without}
