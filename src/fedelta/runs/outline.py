"""Builds a run to reckon its cost where its model or its rows are not on this machine: from shapes and counts, without weights.

`hub_facts.json` has the shapes of some models of the Hub, in the words of their configs, and the sizes of some data sets. A
model is then built on torch's meta device, whose tensors have a shape and no content, and clients get equal parts of rows that
are not there. Such a run can be reckoned, and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from peft import LoraConfig
from transformers import AutoConfig

from fedelta.data.rows import Row
from fedelta.data.sources import RowsNotHere, Splits
from fedelta.models.base_files import BaseFiles
from fedelta.models.loading import ModelNotHere
from fedelta.models.lora_peers import config_for
from fedelta.models.peft import PeftAdaptedModel
from fedelta.runs.base import load_adapted
from fedelta.runs.config import Data, Model, RunConfig
from fedelta.runs.config.choices import Choices
from fedelta.runs.deal import Deal, deal, hold_out, ranks_for
from fedelta.runs.experiment import LocalExperiment, Sources, build
from fedelta.runs.hub_facts import shape_of, size_of
from fedelta.tasks.task import Example, Task

logger = logging.getLogger(__name__)


def built(config: RunConfig, chosen: Choices, *, scored: bool = True) -> LocalExperiment:
    """Returns the run of a config to reckon with: whole where model and rows are here, else in outline where both are known.

    Raises:
        ValueError, OSError, ImportError: as `experiment.build` does, for a model or rows that are neither here nor known.
    """
    try:
        return build(config, chosen, scored=scored)
    except (RowsNotHere, ModelNotHere):  # any other error is a fault of the config, or of what is here
        if shape_of(config.model) is None and size_of(config.data) is None:
            raise
        return build(_one_by_one(config), chosen, scored=False, sources=Sources(_dealt, _adapted, _as_many))


def built_beside(found: LocalExperiment, config: RunConfig, chosen: Choices) -> LocalExperiment:
    """Returns the run of another config to reckon with, on the rows, split and model of one that it has in common with it."""
    sources = Sources(lambda *_: found.deal, lambda *_, **__: (found.model, None), _as_many)
    return build(_one_by_one(config), chosen, scored=False, sources=sources)


def _one_by_one(config: RunConfig) -> RunConfig:
    """Returns the config for the sequential engine: for another the model would be tried, which has no values here."""
    federation = config.federation.model_copy(update={"engine": "sequential"})
    return config.model_copy(update={"federation": federation})


# --- rows ------------------------------------------------------------------------------------------------------------


def _dealt(config: RunConfig, task: Task) -> Deal:
    """Deals the rows; of a data set that is not here, as many as it has, in equal parts."""
    try:
        return deal(config, task)
    except RowsNotHere:
        size, clients = size_of(config.data), config.partition.clients
        if size is None or clients is None:
            raise
    count = _train_rows(config.data, size["train"])
    logger.warning(
        "the rows of %r are not here: reckoned with %d of them in %d equal parts", config.data.source, count, clients
    )
    field = task.label_field()
    one_a_label: list[Row] = [{} if field is None else {field: str(k)} for k in range(size.get("labels", 1))]
    seeds, share = config.seeds(), config.data.client_test_fraction
    parts = np.array_split(np.arange(count), clients)
    kept = [hold_out(part, share, seeds.data, k) for k, part in enumerate(parts)]
    ranks = ranks_for(config.lora.rank, clients, seeds.partition)
    splits = Splits(one_a_label, one_a_label, one_a_label)
    return Deal(task.settled(one_a_label), splits, [train for train, _ in kept], [test for _, test in kept], ranks)


def _as_many(dealt: Deal, part: Sequence[int] | np.ndarray, tokenizer: Any) -> list[Example]:
    """Returns an example for each row of a client: none is looked into."""
    return [{}] * len(part)


def _train_rows(data: Data, there: int) -> int:
    """Returns how many rows are left to train on."""
    carved = sum(
        fraction
        for fraction, given in ((data.validation_fraction, data.validation), (data.test_fraction, data.test))
        if given is None
    )
    most = data.limit.get("train") if isinstance(data.limit, Mapping) else data.limit
    left = there - round(there * carved)
    return left if most is None else min(left, most)


# --- the model -------------------------------------------------------------------------------------------------------


def _adapted(
    model: Model, task: Task, adapter: LoraConfig, *, device: str, seed: int, files: BaseFiles | None = None
) -> tuple[PeftAdaptedModel, Any]:
    """Loads the model; of one that is not here it builds the shape, and returns no tokenizer."""
    known = shape_of(model)
    if files is not None or known is None:
        return load_adapted(model, task, adapter, device=device, seed=seed, files=files)
    logger.warning("the weights of model %r are not here: reckoned from its shape", model.name)
    config = AutoConfig.for_model(**known, **task.model_kwargs())
    with torch.device("meta"):
        base = getattr(transformers, task.auto_class).from_config(config, dtype=getattr(torch, model.dtype))
    return PeftAdaptedModel(base, config_for(task, adapter, base), gemm="default", compact=False), None
