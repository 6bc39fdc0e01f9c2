"""From a config to all that a run needs, each thing built once: data, method, model, clients, engine, settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from fedelta import sampling, topology
from fedelta.client import LocalClient, Training
from fedelta.data.rows import Row
from fedelta.data.sources import pinned_revision
from fedelta.engines.choice import choose as choose_engine
from fedelta.engines.federation import largest_template
from fedelta.engines.gossip import gossip
from fedelta.engines.rounds import Round
from fedelta.engines.server import federate
from fedelta.engines.settings import Choice, RunSettings
from fedelta.method import Client, Method
from fedelta.models.adapter_files import load_adapter
from fedelta.models.clients import check_ranks, clients_on
from fedelta.models.peft import PeftAdaptedModel
from fedelta.runs.base import check_trainable, evaluator, load_adapted, peft_config, pinned_model
from fedelta.runs.config import Federation, RunConfig
from fedelta.runs.config.choices import choose
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
        config: as resolved, with what was left to the graph and the machine as it was chosen.
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


def build(config: RunConfig) -> Experiment:
    """Everything up to the first round.

    Raises:
        ValueError, OSError, ImportError: for data, a model or an adapter that does not fit the config, naming the remedy.
    """
    check_trainable(config.model.dtype, config.device)  # before data are read
    config = _pinned(config)
    chosen = choose(config)
    dealt = deal(config, chosen.task)
    warn_of_missing_rows(config.data, dealt)
    mixing = None if chosen.topology is None else chosen.topology.mixing(len(dealt.parts), seed=config.seed)
    contraction = {} if mixing is None else topology.numbers(mixing)
    method = chosen.method.for_topology(config.federation.rounds, lambda: contraction.get("rho_sq", 0.0))
    model, tokenizer = load_adapted(config, dealt.task)
    adapter = peft_config(config.lora)
    check_ranks(model, adapter, dealt.ranks)
    train = _encode(dealt.task, dealt.splits.train, tokenizer, "train")
    clients = clients_on(
        model,
        dealt.task,
        [[train[i] for i in part] for part in dealt.parts],
        adapter,
        dealt.ranks,
        chosen.training,
        seed=config.seed,
        start=load_adapter(config.lora.start) if config.lora.start else None,
    )
    choice = choose_engine(config.federation.engine, clients, config.federation.token_budget)
    return Experiment(
        config=_resolved(config, _taken(method, chosen.method), model.gemm, choice),
        method=method,
        deal=dealt,
        training=chosen.training,
        model=model,
        clients=clients,
        template=largest_template(clients),
        validation=_encode(dealt.task, dealt.splits.validation, tokenizer, "validation"),
        test=_encode(dealt.task, dealt.splits.test, tokenizer, "test"),
        client_tests={k: [train[i] for i in part] for k, part in enumerate(dealt.held_out) if len(part)},
        evaluator=evaluator(config, dealt.task, model),
        choice=choice,
        settings=settings_of(config.federation, config.seed),
        mixing=mixing,
        contraction=contraction,
    )


def _pinned(config: RunConfig) -> RunConfig:
    """The config with the commits of what comes from the Hub, where it has none yet; OSError for one that is not there."""
    data = config.data.model_copy(update={"revision": pinned_revision(config.data.source, config.data.revision)})
    return config.model_copy(update={"data": data, "model": pinned_model(config.model)})


def _taken(method: Method, given: Method) -> dict[str, Any]:
    """The hyper-parameters that a method took from the graph and the number of rounds."""
    values = {entry.name: getattr(method, entry.name) for entry in fields(method)}
    return {name: value for name, value in values.items() if value != getattr(given, name)}


def _resolved(config: RunConfig, taken: Mapping[str, Any], gemm: str, choice: Choice) -> RunConfig:
    """The config with what it left to the graph and the machine as it was chosen."""
    federation = {"engine": choice.engine, "token_budget": choice.token_budget}
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"gemm": gemm}),
            "federation": config.federation.model_copy(update=federation),
            "method": {**config.method, **taken},
        }
    )


def settings_of(federation: Federation, seed: int) -> RunSettings:
    """The settings of a run, as its config has them; which engine runs it is chosen once its clients are there."""
    return RunSettings(
        rounds=federation.rounds,
        seed=seed,
        cohort=sampling.uniform(federation.participation),
        weights=federation.weights,
        max_share=federation.max_share,
        quorum=federation.quorum,
        link_drop=federation.link_drop,
        spool=federation.spool,
    )


def play(experiment: Experiment, clients: Sequence[Client], settings: RunSettings) -> Iterator[Round]:
    """The rounds of a run with these clients and settings, with a server or on the experiment's graph."""
    given = (experiment.method, clients, experiment.template)
    if experiment.mixing is None:
        return federate(*given, **_keywords(settings, "link_drop"))
    return gossip(*given, mixing=experiment.mixing, **_keywords(settings, "cohort", "max_share"))


def _keywords(settings: RunSettings, *without: str) -> dict[str, Any]:
    """The settings by name, but for those that an engine does not have."""
    return {entry.name: getattr(settings, entry.name) for entry in fields(settings) if entry.name not in without}


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
