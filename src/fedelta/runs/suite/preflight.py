"""Reads rows, finds models and asks methods before a suite's first cell, so that no fault comes out in the night."""

from __future__ import annotations

import json
from dataclasses import replace

from fedelta.engines.federation import Federation
from fedelta.models.base_files import find_base
from fedelta.runs.config import ConfigError, RunConfig
from fedelta.runs.config.checks import check
from fedelta.runs.deal import deal
from fedelta.runs.hub_facts import shape_of, size_of
from fedelta.runs.outline import built
from fedelta.runs.sinks import demand_installed
from fedelta.runs.suite.cells import Task
from fedelta.runs.suite.work import Work
from fedelta.tree import Adapter, BaseDelta


def demand_sources(work: Work, *, to_reckon: bool = False) -> None:
    """Reads each source of rows, deals it once, and finds each model that open cells need.

    A suite whose cells are all finished needs none of them.

    Args:
        work: the suite's cells.
        to_reckon: nothing will be trained, so that of a model or rows whose shape or size is known nothing is demanded.

    Raises:
        ConfigError: with one line for each source or model that cannot be used, and the first cell that needs it.
    """
    faults: dict[str, str] = {}
    for what, task in _first_needs(work).items():
        if to_reckon and _is_known(what, task.config):
            continue
        try:
            demand_installed(task.config)
            _use(what, task.config, work)
        except (ValueError, OSError, ImportError) as error:
            faults.setdefault(str(error), task.title)
    if faults:
        raise ConfigError("\n".join(f"{title}: {fault}" for fault, title in faults.items()))


def demand_served(work: Work) -> None:
    """Asks the method of each setting that has open cells whether it can serve the clients that it would get.

    Each model, split and set of ranks is built once, for all methods.

    Raises:
        ConfigError: with one line for each refusal, and the first cell that it is about.
    """
    faults: dict[str, str] = {}
    for tasks in _by_population(work).values():
        found = None
        for task in tasks:
            try:
                chosen = check(task.config, work.plan.own)
                found = found or built(task.config, chosen, scored=False)
                score = _no_score if found.deal.splits.validation else None
                method = chosen.method.for_topology(chosen.settings.rounds, lambda: 0.0)
                Federation.prepare(method, found.clients, found.template, replace(chosen.settings, score=score))
            except (ValueError, TypeError, OSError, ImportError) as error:
                faults.setdefault(str(error), task.title)
    if faults:
        raise ConfigError("\n".join(f"{title}: {fault}" for fault, title in faults.items()))


def _by_population(work: Work) -> dict[str, list[Task]]:
    """Returns the first open cell of each method and setting, by all that its clients are made of."""
    found: dict[str, list[Task]] = {}
    seen: set[tuple[str, str]] = set()
    for task in (task for tasks in work.left().values() for task in tasks):
        if (task.setting, task.label) in seen:
            continue
        seen.add((task.setting, task.label))
        values = task.config.model_dump(mode="json")
        parts = [values[key] for key in ("seed", "device", "model", "lora", "task", "data", "partition")]
        parts.append(values["training"]["trainer"])
        found.setdefault(json.dumps(parts, sort_keys=True), []).append(task)
    return found


def _no_score(adapter: Adapter, base: BaseDelta | None) -> dict[str, float]:
    """Stands for what scores uploads: here nothing is uploaded."""
    return {}


def _first_needs(work: Work) -> dict[tuple[str, str], Task]:
    """Returns the first open cell for each model, and for each section of rows and what is made of them."""
    found: dict[tuple[str, str], Task] = {}
    for tasks in work.left().values():
        for task in tasks:
            config = task.config
            rows = [config.data.model_dump(mode="json"), config.task, config.partition.model_dump(mode="json")]
            found.setdefault(("model", json.dumps([config.model.name, config.model.revision])), task)
            found.setdefault(("rows", json.dumps(rows, sort_keys=True, default=str)), task)
    return found


def _is_known(what: tuple[str, str], config: RunConfig) -> bool:
    return (shape_of(config.model) if what[0] == "model" else size_of(config.data)) is not None


def _use(what: tuple[str, str], config: RunConfig, work: Work) -> None:
    if what[0] == "model":
        find_base(config.model.name, config.model.revision)
    else:
        deal(config, check(config, work.plan.own).task)
