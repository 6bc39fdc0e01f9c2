"""`check_task`: the laws of tasks, asked of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fedelta.data.rows import Row
from fedelta.tasks import Task
from fedelta.tasks.task import evaluating
from fedelta.testing.language import ToyTokenizer, toy_model
from fedelta.testing.reports import ConformanceError, Report, examine
from fedelta.testing.scene import EXACT, quiet
from fedelta.testing.task_laws import TASK_LAWS, TaskScene

LOOSE = 1e-4
"""Relative error that is left to a model of less precision than float64."""


def check_task(
    task: type[Task] | Task,
    rows: Sequence[Row] | None = None,
    *,
    tokenizer: Any = None,
    model: nn.Module | None = None,
    raise_on_failure: bool = True,
) -> Report:
    """Asks a task all the laws, on a toy model in float64; takes less than a second.

    Args:
        task: a class, which is checked with its defaults; or a task.
        rows: two or more that fit it, best of different lengths and labels; its `sample` if not given.
        tokenizer: of the model; by default one with a token for each byte. A task of images gets its processor here.
        model: anything whose `model(**inputs)` has `logits`; by default a toy that fits the task's `auto_class`.
        raise_on_failure: whether a broken law raises.

    Returns:
        A verdict for every law.

    Raises:
        ConformanceError: if a law is broken, with the report.
        ValueError: for a class that cannot be made without arguments, fewer than two rows, or no toy that fits.
    """
    made = task if isinstance(task, Task) else _made(task)
    rows = made.sample if rows is None else rows
    if len(rows) < 2:
        given = f"{type(made).__name__} is checked on {len(rows)} row{'s' * (not rows)}"
        raise ValueError(f"{given}: give two at least, as `rows` or as its `sample`")
    settled = made.settled(rows)
    model = toy_model(settled) if model is None else model
    exact = all(p.dtype == torch.float64 for p in model.parameters())
    scene = TaskScene(settled, rows, tokenizer or ToyTokenizer(), model, EXACT if exact else LOOSE)
    with quiet(), evaluating(model):
        report = examine(type(made).__name__, scene, TASK_LAWS, {})
    if raise_on_failure and not report.ok:
        raise ConformanceError(report)
    return report


def _made(cls: type[Task]) -> Task:
    try:
        return cls()
    except TypeError as error:
        raise ValueError(
            f"{cls.__name__} cannot be made without arguments ({error}): define what is abstract, give settings defaults, or "
            "check an instance"
        ) from error
