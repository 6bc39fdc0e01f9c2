"""A run whose clients are objects of a program: from them, and a config of the rest, to the folder that any run leaves.

The clients bring data, model, ranks, task and training, so a config says nothing of these. They are written into it as far as
the clients tell, under `federation.where: program`; whoever takes the run up must bring the same clients again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeAlias, cast

from fedelta import topology
from fedelta.client import LocalClient, Reading
from fedelta.data.rows import Row
from fedelta.engines.choice import choose, runner_of
from fedelta.engines.federation import largest_template
from fedelta.engines.rounds import Round
from fedelta.engines.settings import check_clients
from fedelta.engines.site import digest_of
from fedelta.method import Client
from fedelta.models.adapter_files import Layout
from fedelta.models.clients import pad_token_of
from fedelta.models.fitting import task_for
from fedelta.models.peft import PeftAdaptedModel
from fedelta.models.positions import places_of
from fedelta.optim import OPTIMIZERS
from fedelta.peers import Peer
from fedelta.population import ClientsOnDemand
from fedelta.runs.config import ConfigError, Data, LocalTraining, Lora, Model, Partition, RankChoice, RunConfig
from fedelta.runs.config.choices import Choices
from fedelta.runs.config.own import Own
from fedelta.runs.config.schema import PROGRAM
from fedelta.runs.deal import rows_digest
from fedelta.runs.encoded import encoded
from fedelta.runs.evaluation import Evaluator, Scores
from fedelta.runs.rounds import Experiment, taken

PARTS = ("validation", "test")

Evaluate: TypeAlias = Mapping[str, Sequence[Row]] | Callable[[Round], Mapping[str, Scores]]
"""Rows to score on, under "validation", "test" or both; or a function from a round to its scores under these names."""

THEIRS = ("data", "partition", "model", "lora", "task", "training", "device")
"""The keys of a config whose values the clients bring."""

EACH = 1000
"""Clients up to which the config lists the rank of each, and a checkpoint knows each."""


@dataclass(frozen=True)
class Given:
    """Clients of a program, and what scores their models.

    Args:
        clients: in the order of their ids.
        evaluate: None scores nothing.

    Raises:
        TypeError: for something else than clients, or what scores nothing.
    """

    clients: Sequence[Client]
    evaluate: Evaluate | None = None

    def __post_init__(self) -> None:
        check_clients(self.clients)
        if not len(self.clients):
            raise ValueError("clients is empty: give at least one")
        rows = self.evaluate
        if isinstance(rows, Mapping):
            if not rows or not set(rows) <= set(PARTS):
                raise ValueError(f"evaluate has rows for {sorted(rows)}: give them under {' or '.join(PARTS)}")
        elif rows is not None and not callable(rows):
            raise TypeError(f"evaluate must be rows by {' and '.join(PARTS)}, or a function of a round, not {rows!r:.60}")

    @property
    def samples(self) -> Sequence[Client]:
        """Returns clients that stand for all, where they are too many to be made at once."""
        return self.clients.samples() if isinstance(self.clients, ClientsOnDemand) else self.clients

    def in_config(self, config: RunConfig) -> RunConfig:
        """Returns the config with what the clients tell of themselves.

        Raises:
            ConfigError: for a config that says itself what the clients bring, or that they train elsewhere.
        """
        if config.federation.where not in ("here", PROGRAM):
            raise ConfigError(f"federation.where = {config.federation.where}, but clients that are given train in this process")
        if config.federation.where == "here":
            _demand_silent(config)
        federation = config.federation.model_copy(update={"where": PROGRAM})
        return _with_task(config.model_copy(update={"federation": federation, **_told_by(self)}), self.samples[0])

    def experiment(self, config: RunConfig, chosen: Choices, notes: Mapping[str, Any]) -> Experiment:
        """Builds all that comes before the first round.

        Args:
            config: of the run, from `in_config`.
            chosen: what it names, built.
            notes: of the checkpoint that the run goes on from; empty for a new one.

        Raises:
            ConfigError: for clients that are not those that the run began with, or rows that nobody here can score on.
        """
        template = largest_template(self.samples)
        told: dict[str, Any] = {"clients": _identities(self.clients), "template": digest_of(template)}
        if isinstance(self.evaluate, Mapping):
            told["scored"] = {part: rows_digest(rows) for part, rows in self.evaluate.items()}
        _demand_same(notes, told)
        mixing = None if chosen.topology is None else chosen.topology.mixing(len(self.clients), seed=config.seeds().schedule)
        contraction = {} if mixing is None else topology.numbers(mixing)
        method = chosen.method.for_topology(chosen.settings.rounds, lambda: contraction.get("rho_sq", 0.0))
        choice = choose(config.federation.engine, self.clients, config.federation.token_budget)
        resolved = {
            "federation": config.federation.model_copy(update=vars(choice)),
            "method": {**config.method, **taken(method, chosen.method)},
        }
        model: Any = getattr(self.samples[0], "model", None)
        return Experiment(
            config=config.model_copy(update=resolved),
            method=method,
            clients=self.clients,
            template=template,
            settings=chosen.settings,
            engine=partial(runner_of, choice),
            layout=getattr(model, "layout", Layout()),
            deal=None,
            **self._scored(config),
            device=getattr(model, "device", Experiment.device),
            notes=told,
            mixing=mixing,
            contraction=contraction,
        )

    def _scored(self, config: RunConfig) -> dict[str, Any]:
        """Returns the entries of an experiment that say what is scored, and by what."""
        if self.evaluate is None:
            return {"evaluator": None}
        if not isinstance(self.evaluate, Mapping):
            return {"evaluator": None, "measure": partial(_measured, self.evaluate)}
        client = self.samples[0]
        reading: Reading | None = getattr(client, "reading", None)
        if reading is None or not isinstance(client, LocalClient) or not isinstance(client.model, PeftAdaptedModel):
            raise ConfigError(
                "evaluate holds rows, but these clients do not say how rows become examples, as those of fedelta.hf_clients "
                "do: give a function that scores a round instead"
            )
        module = client.model.module
        task = task_for(reading.task, module.config)
        places, given = places_of(module, task), self.evaluate
        rows = {part: encoded(task, given.get(part, ()), reading.tokenizer, part, places=places) for part in PARTS}
        scores = Evaluator(task, client.model, pad_token_of(client.model), config.evaluation.batch_size)
        return {"evaluator": scores, **rows}


def _measured(evaluate: Callable[[Round], Mapping[str, Scores]], done: Round) -> dict[str, dict[str, float]]:
    """Returns what a program's own function says of a round; raises TypeError for anything but numbers by part and metric."""
    found = evaluate(done)
    if not _is_mapping(found) or not all(part in PARTS and _are_scores(scores) for part, scores in found.items()):
        raise TypeError(
            f"evaluate must return finite numbers by metric under {' or '.join(PARTS)}, such as "
            f'{{"test": {{"accuracy": 0.5}}}}, but returned {found!r:.200}'
        )
    return {part: {metric: float(value) for metric, value in scores.items()} for part, scores in found.items()}


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


def _are_scores(value: object) -> bool:
    if not isinstance(value, Mapping):
        return False
    numbers = cast("Mapping[object, object]", value).values()
    return all(isinstance(number, float | int) and math.isfinite(number) for number in numbers)


# --- what clients tell of themselves ---------------------------------------------------------------------------------


def _demand_silent(config: RunConfig) -> None:
    """Raises ConfigError for a config that says what the clients bring."""
    plain = RunConfig()
    if said := [key for key in THEIRS if getattr(config, key) != getattr(plain, key)]:
        raise ConfigError(
            f"{' and '.join(said)} cannot stand in a config whose clients are given: they bring that themselves; leave it out, "
            "or leave the clients out"
        )


def _told_by(given: Given) -> dict[str, Any]:
    """Returns the sections of a config that clients tell."""
    first = given.samples[0]
    layout: Mapping[str, Any] = getattr(getattr(first, "model", None), "layout", Layout()).config
    training = first.training if isinstance(first, LocalClient) else None
    return {
        "data": Data(source=PROGRAM),
        "partition": Partition(clients=len(given.clients)),
        "model": Model(name=str(layout.get("base_model_name_or_path") or PROGRAM)),
        "lora": _lora(given, layout),
        "training": LocalTraining() if training is None else LocalTraining(**_training(training)),
    }


def _lora(given: Given, layout: Mapping[str, Any]) -> Lora:
    peer = given.samples[0].peer
    scale = {"scale": peer.scale} if peer.lora_alpha is None else {"lora_alpha": peer.lora_alpha, "rslora": peer.rslora}
    targets = layout.get("target_modules")
    names = sorted(cast("Collection[str]", targets)) if isinstance(targets, set | list | tuple) else targets
    told = {"rank": _ranks(given), "rank_pattern": dict(peer.rank_pattern), "target_modules": names, **scale}
    return Lora.model_validate(told)


def _ranks(given: Given) -> int | list[int] | RankChoice:
    ranks = [client.peer.rank for client in given.samples]
    if len(set(ranks)) == 1:
        return ranks[0]
    return ranks if len(ranks) == len(given.clients) <= EACH else RankChoice(choices=sorted(set(ranks)))


def _training(training: Any) -> dict[str, Any]:
    own = LocalTraining.model_fields.keys() - {"optimizer", "trainer"}  # a Trainer is the program's own affair
    settings = {key: getattr(training, key) for key in LocalTraining.model_fields if key in own}
    names = {cls: name for name, cls in OPTIMIZERS.items()}
    optimizer = training.optimizer
    known = {"name": names[type(optimizer)], **asdict(optimizer)} if type(optimizer) in names else {"name": PROGRAM}
    return {**settings, "optimizer": known}


def _with_task(config: RunConfig, client: Client) -> RunConfig:
    reading: Reading | None = getattr(client, "reading", None)
    return config if reading is None else Own(task=reading.task).in_config(config)


def _identities(clients: Sequence[Client]) -> dict[str, Any]:
    """Returns what must be the same of each client when the run is taken up again; of very many, that there are as many."""
    if len(clients) > EACH:
        return {"count": len(clients)}
    return {str(peer.id): {"rank": peer.rank, "num_examples": peer.num_examples} for peer in map(_peer, clients)}


def _peer(client: Client) -> Peer:
    return client.peer


def _demand_same(notes: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    """Raises ConfigError for clients that are not those that a run began with, as far as they tell; data are not compared."""
    now = told["clients"]
    before = notes.get("clients", now)
    if other := sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k)):
        said = "; ".join(f"client {k} was {before.get(k, 'not there')}, is {now.get(k, 'not there')}" for k in other[:5])
        raise ConfigError(f"the clients are not those that the run began with ({said}): make them as they were then")
    if notes.get("template", told["template"]) != told["template"]:
        raise ConfigError(
            "the clients begin from another adapter, or on another base model, than when the run began: make them as they were "
            "then, with the same seed, model, targets and ranks"
        )
    rows = notes.get("scored"), told.get("scored")
    if None not in rows and rows[0] != rows[1]:
        raise ConfigError(
            "evaluate has other rows than when the run began, so that scores could not be compared: give the same"
        )
