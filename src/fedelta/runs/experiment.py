"""Builds from a config all that a run needs, each thing once: data, method, model, clients, engine, settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, overload

import numpy as np

from fedelta import topology
from fedelta.activity import board
from fedelta.client import LocalClient, Training
from fedelta.engines.choice import choose, runner_of
from fedelta.engines.federation import largest_template
from fedelta.engines.settings import Choice
from fedelta.models.adapter_files import load_adapter
from fedelta.models.clients import clients_on
from fedelta.models.fitting import task_for
from fedelta.models.lora_peers import check_ranks
from fedelta.models.peft import PeftAdaptedModel
from fedelta.models.positions import Places, places_of
from fedelta.models.trainer.client import TrainerClient, in_place_of
from fedelta.runs.base import evaluator, load_adapted, peft_config, pinned_model
from fedelta.runs.config import RunConfig
from fedelta.runs.config.choices import Choices
from fedelta.runs.config.schema import Model
from fedelta.runs.deal import Deal, deal, warn_of_missing_rows
from fedelta.runs.encoded import encoded
from fedelta.runs.evaluation import Evaluator
from fedelta.runs.rounds import Experiment, taken
from fedelta.tasks.task import Example, Task


@dataclass(frozen=True, kw_only=True)
class LocalExperiment(Experiment):
    """An experiment whose clients train in this process.

    Attributes:
        deal: data and split.
        training: what a client does in a round.
        model: the one model in memory.
        clients: one for each part.
        client_tests: encoded rows to test each client by, by client id; empty where none are held out.
        evaluator: scores models.
        choice: the engine.
    """

    deal: Deal
    training: Training
    model: PeftAdaptedModel
    clients: Sequence[LocalClient] | Sequence[TrainerClient]
    client_tests: Mapping[int, Sequence[Example]]
    evaluator: Evaluator
    choice: Choice


@dataclass(frozen=True)
class Sources:
    """Says where rows and model of a run come from.

    Attributes:
        rows: deals them, from (config, task).
        model: has the arguments and results of `runs.base.load_adapted`.
        examples: of a client in a run that is not scored, from (deal, its part, tokenizer).
    """

    rows: Callable[[RunConfig, Task], Deal]
    model: Callable[..., tuple[PeftAdaptedModel, Any]]
    examples: Callable[[Deal, Sequence[int] | np.ndarray, Any], Sequence[Example]]


def build(config: RunConfig, chosen: Choices, *, scored: bool = True, sources: Sources | None = None) -> LocalExperiment:
    """Builds all that comes before the first round.

    Args:
        config: of the run.
        chosen: what the config names, as `runs.config.checks.check` built it.
        scored: models are scored in this process, too. Else it has clients only, and a client's rows are encoded when it first
            trains.
        sources: of rows and model; by default what is on this machine, or can be fetched.

    Raises:
        ValueError, OSError, ImportError: for data, a model or an adapter that does not fit the config, naming the remedy.
    """
    here, sources = sources is None, sources or Sources(deal, load_adapted, _Later)
    # The model's files first, which are quickly found wrong; then the data; the weights last, since they take longest.
    board().say("reading the rows")
    model_section, files = pinned_model(config.model, config.device)
    seeds, dealt = config.seeds(), sources.rows(config, chosen.task)
    mixing = None if chosen.topology is None else chosen.topology.mixing(len(dealt.parts), seed=seeds.schedule)
    contraction = {} if mixing is None else topology.numbers(mixing)
    method = chosen.method.for_topology(chosen.settings.rounds, lambda: contraction.get("rho_sq", 0.0))
    warn_of_missing_rows(config.data, dealt)
    adapter = peft_config(config.lora)
    board().say("loading the model")
    model, tokenizer = sources.model(model_section, dealt.task, adapter, device=config.device, seed=seeds.start, files=files)
    dealt = replace(dealt, task=task_for(dealt.task, model.module.config))
    check_ranks(model, adapter, dealt.ranks)
    board().say("encoding the rows")
    places = places_of(model.module, dealt.task)
    encode = partial(_encoded, dealt, tokenizer, places, own_texts=chosen.trainer is not None)
    train, validation, test = encode() if scored else ([], [], [])
    if here and not scored and not places.suffice(dealt.task):
        encode()  # which refuses rows that are too long, before a client meets one
    rows = [_rows_at(part, train) if scored else sources.examples(dealt, part, tokenizer) for part in dealt.parts]
    clients = _clients(config, chosen, dealt, model, rows)
    template = largest_template(clients)
    choice = choose(config.federation.engine, clients, config.federation.token_budget)
    model_section = model_section.model_copy(update={"gemm": model.gemm})
    scores = evaluator(dealt.task, model, config.evaluation.batch_size)
    client_tests = {k: _rows_at(part, train) for k, part in enumerate(dealt.held_out) if scored and len(part)}
    return LocalExperiment(
        config=_with_choices(config, model_section, dealt, choice, taken(method, chosen.method)),
        method=method,
        deal=dealt,
        training=chosen.training,
        model=model,
        clients=clients,
        template=template,
        validation=validation,
        test=test,
        client_tests=client_tests,
        evaluator=scores,
        own_scores=partial(scores.by_client, tests=client_tests),
        choice=choice,
        engine=partial(runner_of, choice),
        layout=model.layout,
        device=model.device,
        settings=chosen.settings,
        mixing=mixing,
        contraction=contraction,
    )


def _clients(
    config: RunConfig, chosen: Choices, dealt: Deal, model: PeftAdaptedModel, rows: Sequence[Sequence[Example]]
) -> Sequence[LocalClient] | Sequence[TrainerClient]:
    """Returns a client for each part, on one model; each with a Trainer of one's own where the config names one."""
    seeds, lora = config.seeds(), config.lora
    clients = clients_on(
        model,
        dealt.task,
        rows,
        peft_config(lora),
        dealt.ranks,
        chosen.training,
        seed=seeds.schedule,
        start_seed=seeds.start,
        start=load_adapter(lora.start) if lora.start else None,
        scale=lora.scale,
    )
    if chosen.trainer is None:
        return clients
    own = [[dealt.splits.train[i] for i in part] for part in dealt.parts]
    return [in_place_of(client, chosen.trainer, part) for client, part in zip(clients, own, strict=True)]


def _with_choices(config: RunConfig, model: Model, dealt: Deal, choice: Choice, hyper: Mapping[str, Any]) -> RunConfig:
    """Returns the config with what it left open written down by name, so that a run taken up elsewhere chooses the same."""
    resolved = {
        "model": model,
        "data": config.data.model_copy(update={"revision": dealt.revision}),
        "federation": config.federation.model_copy(update=vars(choice)),
        "method": {**config.method, **hyper},
    }
    return config.model_copy(update=resolved)


def _rows_at(positions: Sequence[int] | np.ndarray, rows: Sequence[Example]) -> list[Example]:
    return [rows[i] for i in positions]


class _Later(Sequence[Example]):
    """A client's examples, which are encoded when one is first asked for.

    Args:
        dealt: has the rows.
        part: the positions of the client's own among the training rows.
        tokenizer: of the model.
    """

    def __init__(self, dealt: Deal, part: Sequence[int] | np.ndarray, tokenizer: Any) -> None:
        self._dealt, self._part, self._tokenizer = dealt, part, tokenizer

    def __len__(self) -> int:
        return len(self._part)

    @overload
    def __getitem__(self, at: int) -> Example: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Example]: ...
    def __getitem__(self, at: int | slice) -> Example | Sequence[Example]:
        return self._examples[at]

    @cached_property
    def _examples(self) -> Sequence[Example]:
        return self._dealt.task.encode([self._dealt.splits.train[i] for i in self._part], self._tokenizer)


def _encoded(dealt: Deal, tokenizer: Any, places: Places, *, own_texts: bool) -> list[Sequence[Example]]:
    """Encodes the rows to train on, to choose by and to report on.

    Args:
        dealt: has the rows.
        tokenizer: of the model.
        places: of the model, in which rows have to fit.
        own_texts: clients make texts of their training rows by Trainers of their own; those that test them have to fit all the
            same.
    """
    splits = dealt.splits
    free = own_texts and not any(len(part) for part in dealt.held_out)
    train = encoded(dealt.task, splits.train, tokenizer, "train", places=None if free else places)
    rest = (("validation", splits.validation), ("test", splits.test))
    return [train, *(encoded(dealt.task, rows, tokenizer, part, places=places) for part, rows in rest)]
