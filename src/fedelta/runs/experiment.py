"""From a config to what a run needs: data, split, model, clients.

`deal` stops before the model, for looking at a split; `build` goes all the way.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from hashlib import sha256
from typing import Any

import numpy as np
from peft import LoraConfig

from fedelta import sampling, seeding, topology
from fedelta.client import LocalClient
from fedelta.data.rows import Row
from fedelta.data.sources import Splits, load_splits, pinned_revision
from fedelta.engines.choice import choose
from fedelta.engines.federation import largest_template
from fedelta.engines.gossip import gossip
from fedelta.engines.rounds import Round, Snapshot
from fedelta.engines.server import federate
from fedelta.engines.settings import Score
from fedelta.method import Client, Method
from fedelta.models.adapter_files import load_adapter
from fedelta.models.aliases import is_packaged
from fedelta.models.base_files import find_base
from fedelta.models.clients import check_ranks, clients_on, config_for, pad_token_of
from fedelta.models.devices import pick_device
from fedelta.models.loading import load_model
from fedelta.models.peft import PeftAdaptedModel
from fedelta.runs.config import Model, Partition, RankChoice, RunConfig
from fedelta.runs.evaluation import Evaluator
from fedelta.split.partition import assign_ranks, partition
from fedelta.tasks.task import Example, Task
from fedelta.tasks.text.gaps import warn_of_cut_texts, warn_of_empty_texts
from fedelta.topology import Mixing
from fedelta.tree import Adapter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Deal:
    """Data, and who gets what of it.

    Attributes:
        task: with its labels known.
        splits: the rows.
        parts: for each client, the positions of its training rows in `splits.train`.
        held_out: for each client, the positions of the rows kept to test it by.
        ranks: one for each client.
    """

    task: Task
    splits: Splits
    parts: Sequence[np.ndarray]
    held_out: Sequence[np.ndarray]
    ranks: Sequence[int]


@dataclass(frozen=True)
class Experiment:
    """All that a run needs.

    Attributes:
        config: as resolved, with what the method took from the graph written out.
        method: the method.
        deal: data and split.
        model: the one model in memory.
        tokenizer: the model's.
        clients: one for each part.
        template: the common initial adapter, at the largest ranks.
        validation, test: encoded rows that nobody owns; empty where there are none.
        client_tests: encoded rows to test each client by, by client id; empty where none are held out.
        evaluator: scores models.
        mixing: the graph; None with a server.
        contraction: how fast the graph mixes (`fedelta.topology.numbers`); empty with a server.
    """

    config: RunConfig
    method: Method
    deal: Deal
    model: PeftAdaptedModel
    tokenizer: Any
    clients: Sequence[LocalClient]
    template: Adapter
    validation: Sequence[Example]
    test: Sequence[Example]
    client_tests: Mapping[int, Sequence[Example]]
    evaluator: Evaluator
    mixing: Mixing | None = None
    contraction: Mapping[str, Any] = field(default_factory=dict[str, Any])


def deal(config: RunConfig) -> Deal:
    """Loads the data and splits it over clients; no model is touched.

    Raises:
        ValueError, FileNotFoundError, ImportError: for data that cannot be read, or a split that cannot be made.
    """
    data = config.data
    splits = load_splits(
        data.source,
        train=data.train,
        validation=data.validation,
        test=data.test,
        subset=data.subset,
        fields=data.fields,
        validation_fraction=data.validation_fraction,
        test_fraction=data.test_fraction,
        stratify=data.stratify,
        limit=data.limit,
        label=config.build_task().label_field(),
        empty=data.empty,
        seed=config.seed,
        revision=data.revision,
    )
    task = config.build_task().settled(splits.train)
    parts = _partition(config.partition, task, splits.train, config.seed)
    kept = [_hold_out(part, data.client_test_fraction, config.seed, k) for k, part in enumerate(parts)]
    ranks = _ranks(config.lora.rank, len(parts), config.seed)
    return Deal(task, splits, [train for train, _ in kept], [test for _, test in kept], ranks)


def row_digests(splits: Splits) -> dict[str, str]:
    """A digest of the rows of each split that has any, by which a resumed run knows its data again."""
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {name: _digest(rows) for name, rows in parts.items() if rows}


def _digest(rows: Sequence[Row]) -> str:
    found = sha256()
    for row in rows:
        found.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return found.hexdigest()


def build(config: RunConfig) -> Experiment:
    """Everything up to the first round.

    Raises:
        ValueError, OSError, ImportError: for data, a model or an adapter that does not fit the config, naming the remedy.
    """
    _check_model(config.model.dtype, config.device)  # before data are read
    config = pinned(config)
    dealt = deal(config)
    _warn_of_missing_rows(config, dealt)
    graph = config.federation.build_topology()
    mixing = None if graph is None else graph.mixing(len(dealt.parts), seed=config.seed)
    contraction = {} if mixing is None else topology.numbers(mixing)
    config = settled(config, contraction.get("rho_sq", 0.0))
    model, tokenizer = load_adapted(config, dealt.task)
    check_ranks(model, peft_config(config), dealt.ranks)
    train = _encode(dealt.task, dealt.splits.train, tokenizer, "train")
    clients = clients_on(
        model,
        dealt.task,
        [[train[i] for i in part] for part in dealt.parts],
        peft_config(config),
        dealt.ranks,
        config.training.build(),
        seed=config.seed,
        start=load_adapter(config.lora.start) if config.lora.start else None,
    )
    return Experiment(
        config=config,
        method=config.build_method(),
        deal=dealt,
        model=model,
        tokenizer=tokenizer,
        clients=clients,
        template=largest_template(clients),
        validation=_encode(dealt.task, dealt.splits.validation, tokenizer, "validation"),
        test=_encode(dealt.task, dealt.splits.test, tokenizer, "test"),
        client_tests={k: [train[i] for i in part] for k, part in enumerate(dealt.held_out) if len(part)},
        evaluator=evaluator(config, dealt.task, model),
        mixing=mixing,
        contraction=contraction,
    )


def _check_model(dtype: str, device: str) -> None:
    """Raises ValueError for a device that is not here, or a dtype in which a run cannot train (though a model can answer)."""
    pick_device(device)
    if dtype == "float16":
        raise ValueError(
            "model.dtype = float16 is not trained in, since small gradients become exactly zero in it: set bfloat16 or float32"
        )


def pinned(config: RunConfig) -> RunConfig:
    """The config with the commits of what comes from the Hub, and the digest of the model's code, where it has none yet.

    Raises:
        OSError, ValueError: for a revision that is not there.
    """
    data = config.data.model_copy(update={"revision": pinned_revision(config.data.source, config.data.revision)})
    return config.model_copy(update={"data": data, "model": config.model.model_copy(update=_pins(config.model))})


def _pins(model: Model) -> dict[str, str | None]:
    """Revision and digest of a model.

    An alias has no digest: its package and the Hub hold the same weights, but may write the configs differently.
    """
    try:
        files = find_base(model.name, model.revision)
    except (OSError, ValueError):
        return {}  # said at the loading of the model, with its remedies
    digest = model.digest or (None if is_packaged(model.name) else files.digest())
    return {"revision": files.revision, "digest": digest}


def settled(config: RunConfig, rho_sq: float) -> RunConfig:
    """The config with the hyper-parameters that the method takes from the graph and the number of rounds."""
    given = config.build_method()
    method = given.for_topology(config.federation.rounds, lambda: rho_sq)
    found = {f.name: getattr(method, f.name) for f in fields(method) if getattr(method, f.name) != getattr(given, f.name)}
    return config.model_copy(update={"method": {**config.method, **found}}) if found else config


def play(
    experiment: Experiment,
    clients: Sequence[Client],
    *,
    rounds: int,
    score: Score | None,
    start: Snapshot | None = None,
    debug: bool = False,
) -> Iterator[Round]:
    """The rounds of a run, with a server or on the config's graph."""
    federation = experiment.config.federation
    given = (experiment.method, clients, experiment.template)
    options: dict[str, Any] = {
        "rounds": rounds,
        "weights": federation.weights,
        "quorum": federation.quorum,
        "seed": experiment.config.seed,
        "score": score,
        "start": start,
        "debug": debug,
        "engine": federation.engine,
        "token_budget": federation.token_budget,
        "spool": federation.spool,
    }
    if experiment.mixing is not None:
        return gossip(*given, mixing=experiment.mixing, link_drop=federation.link_drop, **options)
    cohort = sampling.uniform(federation.participation)
    return federate(*given, cohort=cohort, max_share=federation.max_share, **options)


def load_adapted(config: RunConfig, task: Task) -> tuple[PeftAdaptedModel, Any]:
    """The config's base model with places for adapters, and its tokenizer."""
    base, tokenizer = load_model(
        config.model.name,
        task,
        device=config.device,
        dtype=config.model.dtype,
        quantization=config.model.quantization,
        trust_remote_code=config.model.trust_remote_code,
        use_safetensors=config.model.use_safetensors,
        revision=config.model.revision,
        digest=config.model.digest,
        seed=config.seed,
    )
    lora = config_for(task, peft_config(config), base)
    chosen = config.model
    adapted = PeftAdaptedModel(
        base,
        lora,
        tokenizer,
        base_dropout=chosen.base_dropout,
        gemm=chosen.gemm,
        compact=chosen.compact,
        cache_activations=chosen.cache_activations,
    )
    return adapted, tokenizer


def resolved(experiment: Experiment) -> RunConfig:
    """The config with what it left to the machine as it was chosen."""
    config = experiment.config
    choice = choose(config.federation.engine, experiment.clients, config.federation.token_budget)
    chosen = {
        "model": config.model.model_copy(update={"gemm": experiment.model.gemm}),
        "federation": config.federation.model_copy(update=vars(choice)),
    }
    return config.model_copy(update=chosen)


def evaluator(config: RunConfig, task: Task, model: PeftAdaptedModel) -> Evaluator:
    """The evaluator of a config."""
    return Evaluator(task, model, pad_token_of(model), config.evaluation.batch_size)


def peft_config(config: RunConfig) -> LoraConfig:
    """The config's adapter in PEFT's terms; ranks are the clients' own."""
    lora = config.lora
    return LoraConfig(
        lora_alpha=lora.lora_alpha,  # pyright: ignore[reportArgumentType] - PEFT divides it, so a fraction is fine
        use_rslora=lora.rslora,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        modules_to_save=lora.modules_to_save,
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern=dict(lora.alpha_pattern),
    )


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


def _warn_of_missing_rows(config: RunConfig, dealt: Deal) -> None:
    """Warns of rows that were left out, and of parts that are too small to leave anything to evaluate on."""
    splits, data = dealt.splits, config.data
    for part, count in splits.left_out.items():
        logger.warning("%s: %d rows without a label are left out (data.empty = drop)", part, count)
    total = len(splits.train) + len(splits.validation) + len(splits.test)
    for part, rows, asked in (
        ("validation", splits.validation, data.validation_fraction),
        ("test", splits.test, data.test_fraction),
    ):
        if asked and not rows:
            logger.warning("data.%s_fraction = %g of %d rows leaves 0 rows of %s", part, asked, total, part)
    tested = sum(len(part) > 0 for part in dealt.held_out)
    if data.client_test_fraction and tested < len(dealt.parts):
        logger.warning(
            "data.client_test_fraction = %g leaves %d of %d clients without rows to be tested by",
            data.client_test_fraction,
            len(dealt.parts) - tested,
            len(dealt.parts),
        )
    if not (splits.validation or splits.test or tested):
        logger.warning("0 of %d rows are left to evaluate on: the run will have no scores", total)


def _partition(settings: Partition, task: Task, rows: Sequence[Row], seed: int) -> list[np.ndarray]:
    """The parts of the training rows; the task's label is what skews them unless a field is named."""
    labels = rows if settings.by else [task.label_of(row) for row in rows]
    scheme = settings.build()
    return partition(labels, scheme, settings.clients, by=settings.by, seed=seed, min_examples=settings.min_examples)


def _hold_out(part: np.ndarray, fraction: float, seed: int, client: int) -> tuple[np.ndarray, np.ndarray]:
    """A client's rows as (to train on, to test by), each in the order of the data; one row at least stays to train on."""
    count = min(round(fraction * len(part)), max(len(part) - 1, 0))
    order = seeding.numpy_generator(seed, 0, client, "held out").permutation(part)
    return np.sort(order[count:]), np.sort(order[:count])


def _ranks(rank: int | list[int] | RankChoice, clients: int, seed: int) -> Sequence[int]:
    if isinstance(rank, RankChoice):
        return assign_ranks(rank.choices, clients, how="draw", seed=seed, weights=rank.shares)
    return assign_ranks(rank, clients, how="list")
