"""Reads rows, finds models and asks methods before a suite's first cell, so that no fault comes out in the night."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from fedelta.engines.federation import Federation
from fedelta.models.base_files import find_base
from fedelta.runs.config import ConfigError, RunConfig
from fedelta.runs.config.checks import check
from fedelta.runs.deal import deal
from fedelta.runs.hub_facts import shape_of, size_of
from fedelta.runs.outline import built, built_beside
from fedelta.runs.sinks import demand_installed
from fedelta.runs.suite.cells import Task, combinations, with_seed
from fedelta.runs.suite.estimate import Cost, cost_built
from fedelta.runs.suite.work import Kind, Work
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


@dataclass(frozen=True)
class _Part:
    """A method in a setting, as one run of it.

    Attributes:
        kind: the setting's and the method's name.
        title: of the first open cell; of the method, where all are finished.
        config: with the suite's first seed, whatever the cell's: who takes part and in which ranks is asked once.
        finished: it has no open cell.
    """

    kind: Kind
    title: str
    config: RunConfig
    finished: bool = False

    def population(self) -> str:
        """Returns what all of its clients are made of."""
        values = self.config.model_dump(mode="json")
        parts = [values[key] for key in ("seed", "device", "model", "lora", "task", "data", "partition")]
        return json.dumps([*parts, values["training"]["trainer"]], sort_keys=True)


def rehearsed(work: Work, *, to_reckon: bool = False, to_size: bool = False) -> dict[Kind, Cost]:
    """Asks the method of each setting that has open cells whether it can serve the clients that it would get.

    Each model, split and set of ranks is built once, for all methods and whatever their seeds.

    Args:
        work: the suite's cells.
        to_reckon: also plays two rounds of each method and setting without training, of finished ones, too.
        to_size: also plays them of the first one, by whose memory cells run side by side.

    Returns:
        by setting and method, what a run costs; empty where nothing is reckoned. A finished one is left out where its rows or
        its model are not here.

    Raises:
        ConfigError: with one line for each refusal, and the first cell that it is about.
    """
    faults: dict[str, str] = {}
    costs: dict[Kind, Cost] = {}
    for parts in _by_population(work, all_kinds=to_reckon).values():
        found = None
        for part in parts:
            try:
                chosen = check(part.config, work.plan.own)
                first = found is None
                found = found or built(part.config, chosen, scored=False)
                score = _no_score if found.deal.splits.validation else None
                method = chosen.method.for_topology(chosen.settings.rounds, lambda: 0.0)
                Federation.prepare(method, found.clients, found.template, replace(chosen.settings, score=score))
                if to_reckon or (to_size and not costs):
                    costs[part.kind] = cost_built(found if first else built_beside(found, part.config, chosen))
            except (ValueError, TypeError, OSError, ImportError) as error:
                if not part.finished:
                    faults.setdefault(str(error), part.title)
    if faults:
        raise ConfigError("\n".join(f"{title}: {fault}" for fault, title in faults.items()))
    return costs


def _by_population(work: Work, *, all_kinds: bool) -> dict[str, list[_Part]]:
    """Returns each method and setting that has an open cell, or all that go together, by all that its clients are made of."""
    found: dict[Kind, _Part] = {}
    for task in (task for tasks in work.left().values() for task in tasks):
        kind = (task.setting, task.label)
        if kind not in found:
            found[kind] = _Part(kind, task.title, with_seed(task.config, work.plan.seeds[0]))
    for setting, entry in work.served() if all_kinds else ():
        kind = (setting, entry.label)
        if kind not in found:
            values = work.choice(setting, entry).values or combinations(entry)[0]
            config = with_seed(work.plan.config(setting, entry, values), work.plan.seeds[0])
            found[kind] = _Part(kind, " ".join(filter(None, kind)), config, finished=True)
    populations: dict[str, list[_Part]] = {}
    for part in found.values():
        populations.setdefault(part.population(), []).append(part)
    return populations


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
