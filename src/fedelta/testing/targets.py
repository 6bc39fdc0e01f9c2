"""Finds what is to be checked, a method or a task, by its name or in a Python file."""

from __future__ import annotations

from pathlib import Path

from fedelta.code_files import read_code
from fedelta.method import Method
from fedelta.methods import list_methods, method_class
from fedelta.registry import aliases_in, check_name, file_named, is_code
from fedelta.tasks import Task, list_tasks, task_class
from fedelta.testing.methods import check_method
from fedelta.testing.reports import Report
from fedelta.testing.tasks import check_task


def check(target: str) -> Report:
    """Asks the method or the task of a name or a Python file all laws of its kind; a broken law does not raise."""
    cls = named(target)
    if issubclass(cls, Task):
        return check_task(cls, raise_on_failure=False)
    return check_method(cls, raise_on_failure=False)


def named(target: str) -> type[Method] | type[Task]:
    """Returns the class behind a method's name or alias, a task's name, or a path to a Python file.

    Raises:
        ValueError: for an unknown name, with the nearest known one, or as `class_from_file`.
        FileNotFoundError: if there is no such file.
    """
    if is_code(target):
        return class_from_file(target)
    if file_named("fedelta.tasks", target):
        return task_class(target)
    if not file_named("fedelta.methods", target):
        check_name("method or task", target, [*list_methods(), *list_tasks()], also=aliases_in("fedelta.methods"))
    return method_class(target)


def class_from_file(path: str | Path) -> type[Method] | type[Task]:
    """Returns the one subclass of `Method` or `Task` that a Python file defines. The file's code runs.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for a file that cannot be imported, or defines no method or task, or several.
    """
    return read_code(path).class_of(Method, Task)
