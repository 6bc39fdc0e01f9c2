"""Tasks, one file each, found by the file's name; and metrics.

A new file in this folder with one subclass of `Task` in it is a new task: nothing else is to be edited. A file whose name
starts with an underscore is no task; `_template.py` is one to copy. What tasks are built from lies in the subpackages.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from fedelta.data.rows import Row, labels_from
from fedelta.registry import check_settings, class_in, class_named, classes_in, find_name, names_in
from fedelta.tasks.metrics import METRICS, Predictions
from fedelta.tasks.task import (
    IGNORED,
    Batch,
    Decisions,
    Example,
    Task,
    evaluate,
    model_inputs,
    pad_examples,
    predict_all,
    tokenized,
)

if TYPE_CHECKING:  # so that editors and type checkers know the classes that `__getattr__` finds
    from fedelta.tasks.choice_likelihood import ChoiceByLikelihood
    from fedelta.tasks.classification import Classification
    from fedelta.tasks.instruction import Instruction
    from fedelta.tasks.multiple_choice import MultipleChoice

__all__ = [
    "IGNORED",
    "METRICS",
    "Batch",
    "ChoiceByLikelihood",
    "Classification",
    "Decisions",
    "Example",
    "Instruction",
    "MultipleChoice",
    "Predictions",
    "Row",
    "Task",
    "evaluate",
    "get_task",
    "labels_from",
    "list_tasks",
    "model_inputs",
    "pad_examples",
    "predict_all",
    "task_class",
    "tokenized",
]


def list_tasks() -> list[str]:
    """Returns the names that `get_task` knows, in alphabetical order."""
    return list(names_in(__name__))


def task_class(name: str) -> type[Task]:
    """Returns a task's class by its name, spelled in any way.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    return class_in(__name__, find_name("task", __name__, name), Task)


def get_task(name: str, **settings: Any) -> Task:
    """Returns a task by its name; lists among the settings become tuples, as YAML has no tuples.

    Raises:
        ValueError: the name or a setting is unknown (the nearest known one is named), or a value does not fit.
    """
    cls = task_class(name)
    check_settings(f"task {name!r}", settings, [field.name for field in fields(cls)])
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    return cls(**values)


def __getattr__(name: str) -> Any:
    # Classes by their own names (fedelta.tasks.Classification), so that a new file needs no line here.
    return class_named(__name__, name, Task)


def __dir__() -> list[str]:
    return sorted([*globals(), *(cls.__name__ for cls in classes_in(__name__, Task))])
