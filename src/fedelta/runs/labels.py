"""Keeps the labels of a run's task with its adapters, so that they can be used where the training rows are not."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import fields, replace
from typing import Any

from fedelta.tasks.task import Task

LABELS = "labels"
"""The setting of a task with a head: its labels, in the order of the outputs."""


def labels_of(task: Task) -> Sequence[Hashable]:
    """Returns a task's labels, in the order of the head's outputs; none where it has none, or they are not known yet."""
    return tuple(getattr(task, LABELS, None) or ())


def lacks_labels(task: Task) -> bool:
    """Returns whether a task has labels that still have to be found."""
    return any(entry.name == LABELS for entry in fields(task)) and not labels_of(task)


def with_labels(task: Task, labels: Sequence[Hashable]) -> Task:
    """Returns a task that lacks its labels with these; any other task as it is.

    Raises:
        ValueError: for what cannot be labels.
    """
    known: dict[str, Any] = {LABELS: tuple(labels)}
    return replace(task, **known) if labels and lacks_labels(task) else task
