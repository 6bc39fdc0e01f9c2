"""Builds from a config all that a run needs, each thing once: data, method, model, clients, engine, settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from fedelta import topology
from fedelta.client import LocalClient, Training
from fedelta.data.rows import Row
from fedelta.engines.choice import choose
from fedelta.engines.federation import largest_template
from fedelta.engines.gossip import gossip
from fedelta.engines.rounds import Round
from fedelta.engines.server import federate
from fedelta.engines.settings import Choice, RunSettings
from fedelta.method import Client, Method
from fedelta.models.adapter_files import load_adapter
from fedelta.models.clients import check_ranks, clients_on
from fedelta.models.peft import PeftAdaptedModel
from fedelta.runs.base import evaluator, load_adapted, peft_config, pinned_model
from fedelta.runs.config import RunConfig
from fedelta.runs.config.choices import Choices
from fedelta.runs.deal import Deal, deal, warn_of_missing_rows
from fedelta.runs.evaluation import Evaluator
from fedelta.tasks.task import Example, Task
from fedelta.tasks.text.gaps import warn_of_cut_texts, warn_of_empty_texts
from fedelta.topology import Mixing
from fedelta.tree import Adapter


@dataclass(frozen=True)
class Experiment:
    """All that a run needs.

    Attributes:
        config: as resolved: it holds the choices that it left to the graph and the machine.
        method: with the hyper-parameters that it took from the graph.
        deal: data and split.
        training: what a client does in a round.
        model: the one model in memory.
        clients: one for each part.
        template: the common initial adapter, at the largest ranks.
        validation, test: encoded rows that nobody owns; empty where there are none.
        client_tests: encoded rows to test each client by, by client id; empty where none are held out.
        evaluator: scores models.
        choice: the engine.
        settings: of the whole run, from its first round; the engine and the score of uploads are added where it is run.
        mixing: the graph; None with a server.
        contraction: how fast the graph mixes (`fedelta.topology.numbers`); empty with a server.
    """

    config: RunConfig
    method: Method
    deal: Deal
    training: Training
    model: PeftAdaptedModel
    clients: Sequence[LocalClient]
    template: Adapter
    validation: Sequence[Example]
    test: Sequence[Example]
    client_tests: Mapping[int, Sequence[Example]]
    evaluator: Evaluator
    choice: Choice
    settings: RunSettings
    mixing: Mixing | None = None
    contraction: Mapping[str, Any] = field(default_factory=dict[str, Any])


def build(config: RunConfig, chosen: Choices) -> Experiment:
    """Builds all that comes before the first round.

    Args:
        config: of the run.
        chosen: what the config names, as `runs.config.checks.check` built it.

    Raises:
        ValueError, OSError, ImportError: for data, a model or an adapter that does not fit the config, naming the remedy.
    """
    # The model's files first, which are quickly found wrong; then the data; the weights last, since they take longest.
    model_section, files = pinned_model(config.model, config.device)
    dealt = deal(config, chosen.task)
    mixing = None if chosen.topology is None else chosen.topology.mixing(len(dealt.parts), seed=config.seed)
    contraction = {} if mixing is None else topology.numbers(mixing)
    method = chosen.method.for_topology(chosen.settings.rounds, lambda: contraction.get("rho_sq", 0.0))
    warn_of_missing_rows(config.data, dealt)
    adapter = peft_config(config.lora)
    model, tokenizer = load_adapted(model_section, dealt.task, adapter, device=config.device, seed=config.seed, files=files)
    check_ranks(model, adapter, dealt.ranks)
    train, validation, test = _encoded(dealt, tokenizer)
    clients = clients_on(
        model,
        dealt.task,
        [_rows_at(part, train) for part in dealt.parts],
        adapter,
        dealt.ranks,
        chosen.training,
        seed=config.seed,
        start=load_adapter(config.lora.start) if config.lora.start else None,
    )
    template = largest_template(clients)
    choice = choose(config.federation.engine, clients, config.federation.token_budget)
    # Written into the config by name, so that a run that is taken up elsewhere goes on with the same choices.
    resolved = {
        "model": model_section.model_copy(update={"gemm": model.gemm}),
        "data": config.data.model_copy(update={"revision": dealt.revision}),
        "federation": config.federation.model_copy(update=vars(choice)),
        "method": {**config.method, **_taken(method, chosen.method)},
    }
    return Experiment(
        config=config.model_copy(update=resolved),
        method=method,
        deal=dealt,
        training=chosen.training,
        model=model,
        clients=clients,
        template=template,
        validation=validation,
        test=test,
        client_tests={k: _rows_at(part, train) for k, part in enumerate(dealt.held_out) if len(part)},
        evaluator=evaluator(dealt.task, model, config.evaluation.batch_size),
        choice=choice,
        settings=chosen.settings,
        mixing=mixing,
        contraction=contraction,
    )


def _rows_at(positions: np.ndarray, rows: Sequence[Example]) -> list[Example]:
    return [rows[i] for i in positions]


def _taken(method: Method, given: Method) -> dict[str, Any]:
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


def _encoded(dealt: Deal, tokenizer: Any) -> list[Sequence[Example]]:
    """Encodes the rows to train on, to choose by and to report on."""
    splits = dealt.splits
    return [
        _encode(dealt.task, rows, tokenizer, part)
        for part, rows in (("train", splits.train), ("validation", splits.validation), ("test", splits.test))
    ]


def _encode(task: Task, rows: Sequence[Row], tokenizer: Any, part: str) -> Sequence[Example]:
    if not rows:
        return []
    try:
        examples = task.encode(rows, tokenizer)
    except ValueError as error:  # most often a label that the training rows do not have
        raise ValueError(f"{part} rows: {error}") from error
    warn_of_empty_texts(task, rows, part)
    warn_of_cut_texts(task, rows, examples, tokenizer, part)
    return examples
