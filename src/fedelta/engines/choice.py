"""Chooses the runner that answers, once for a run and by name.

No runner is imported by a statement, since some bring libraries that a server of remote clients does without. A file of
`engines.runners` whose name does not begin with `_` is a runner: it has a function `runner(token_budget) -> VisitAll`. It may
also have `plan_for(clients, token_budget, *, forced) -> Choice`, which says when another runner is better.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module
from types import ModuleType
from typing import cast

from fedelta.adapted import CPU_TOKENS
from fedelta.client import LocalClient
from fedelta.engines import runners
from fedelta.engines.settings import Choice, RunSettings
from fedelta.engines.visits import VisitAll
from fedelta.method import Client
from fedelta.registry import check_name, names_in

AUTO = "auto"


def choose(engine: str, clients: Collection[Client], token_budget: int | None = None) -> Choice:
    """Returns the engine that is named; for "auto", the batched one if two or more clients fit into a pass.

    Raises:
        ValueError: for an engine that does not exist.
    """
    by_name = engine != AUTO
    if not by_name:
        # The batched engine needs models in this process; clients of another kind train in their own way, perhaps elsewhere.
        engine = "batched" if len(clients) > 1 and all(isinstance(c, LocalClient) for c in clients) else "sequential"
    plan = getattr(_load(engine), "plan_for", None)  # of a runner that knows when another one is better
    return Choice(engine, token_budget or CPU_TOKENS) if plan is None else plan(clients, token_budget, forced=by_name)


def visitor(settings: RunSettings, clients: Collection[Client]) -> VisitAll:
    """Returns the engine of the settings: their own function, or the runner that they name, or a chosen one."""
    if callable(settings.engine):
        return cast("VisitAll", settings.engine)
    return runner_of(choose(settings.engine, clients, settings.token_budget))


def runner_of(chosen: Choice) -> VisitAll:
    """Returns a fresh runner, as it was chosen."""
    return _load(chosen.engine).runner(chosen.token_budget)


def runner_names() -> list[str]:
    """Returns the names of all runners, without importing one: the files of `engines.runners` that do not begin with `_`."""
    return list(names_in(runners.__name__))


def _load(name: str) -> ModuleType:
    check_name("engine", name, [AUTO, *runner_names()])
    return import_module(f"{runners.__name__}.{name}")
