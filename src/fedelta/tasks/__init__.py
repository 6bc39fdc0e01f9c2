"""Tasks, one file each, found by the file's name; and metrics.

A new file in this folder with one subclass of `Task` in it is a new task: nothing else is to be edited. A file whose name
starts with an underscore is no task; `_template.py` is one to copy. What tasks are built from lies in the subpackages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from os import PathLike
from typing import TYPE_CHECKING, Any

from fedelta.code_files import CodeFile, read_code
from fedelta.data.rows import Row, labels_from
from fedelta.registry import check_settings, class_in, class_named, classes_in, find_name, is_code, names_in
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
    from fedelta.tasks.image_classification import ImageClassification
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
    "ImageClassification",
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


def get_task(name: str | PathLike[str], **settings: Any) -> Task:
    """Returns a task by its name, or by the path of a Python file that defines it.

    Lists among the settings become tuples, as YAML has no tuples. A file's code runs: give no path that came from somebody
    else.

    Raises:
        ValueError: the name or a setting is unknown (the nearest known one is named), a value does not fit, or a file cannot be
            imported or does not define one task.
        FileNotFoundError: if there is no such file.
    """
    if is_code(name):
        return task_of(task_in(read_code(name)), str(name), settings)
    return task_of(task_class(str(name)), str(name), settings)


def task_in(code: CodeFile) -> type[Task]:
    """Runs a Python file and returns the one task that it defines; raises ValueError as `CodeFile.class_of`."""
    return code.class_of(Task)


def task_of(cls: type[Task], name: str, settings: Mapping[str, Any]) -> Task:
    """Returns a task of a class, called `name` in messages; raises ValueError for settings that it does not have."""
    check_settings(f"task {name!r}", settings, [field.name for field in fields(cls)])
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    return cls(**values)


def __getattr__(name: str) -> Any:
    # Classes by their own names (fedelta.tasks.Classification), so that a new file needs no line here.
    return class_named(__name__, name, Task)


def __dir__() -> list[str]:
    return sorted([*globals(), *(cls.__name__ for cls in classes_in(__name__, Task))])
