"""Finds what is to be checked, a method or a task, by its name or in a Python file."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

from fedelta.method import Method
from fedelta.methods import list_methods, method_class
from fedelta.registry import aliases_in, check_name, classes_of, file_named
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
    if target.endswith(".py"):
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
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    module = _imported(path)
    own = [*classes_of(module, Method), *classes_of(module, Task)]
    found = [cls for cls in own if not inspect.isabstract(cls)]
    if len(found) != 1:
        names = ", ".join(cls.__name__ for cls in found) or "none"
        raise ValueError(
            f"{path} must define one subclass of fedelta.Method that has `aggregate`, or one whole fedelta.tasks.Task, "
            f"and defines {names}"
        )
    return found[0]


def _imported(path: Path) -> ModuleType:
    name = f"_fedelta_checked_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their annotations up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a script that ends the program would end the check with no word of it
        del sys.modules[name]
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module
