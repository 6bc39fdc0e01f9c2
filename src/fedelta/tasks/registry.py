"""Tasks by name, as a config writes them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from fedelta.registry import check_name, check_settings
from fedelta.tasks.causal_lm import Instruction
from fedelta.tasks.classification import Classification
from fedelta.tasks.multiple_choice import ChoiceByLikelihood, MultipleChoice
from fedelta.tasks.task import Task

TASKS: dict[str, type[Task]] = {task.name: task for task in (Classification, MultipleChoice, ChoiceByLikelihood, Instruction)}


def list_tasks() -> list[str]:
    """The names that `get_task` knows."""
    return list(TASKS)


def get_task(name: str, **settings: Any) -> Task:
    """A task by its name; lists among the settings become tuples, as YAML has no tuples.

    Raises:
        ValueError: the name or a setting is unknown (the nearest known one is named), or a value does not fit.
    """
    check_name("task", name, TASKS)
    check_settings(f"task {name!r}", settings, [field.name for field in fields(TASKS[name])])
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    return TASKS[name](**values)
