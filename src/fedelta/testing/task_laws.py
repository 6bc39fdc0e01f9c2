"""The laws of tasks, in the order in which they are asked."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedelta.data.rows import Row
from fedelta.tasks import Example, Predictions, Task
from fedelta.tasks.metrics import UNDECIDED, get_metric
from fedelta.testing.reports import Law, Violation, law

ROOM = 64
"""A batch's length is rounded up to a multiple of this, to have more padding than any batch of the task's own."""


@dataclass(frozen=True, eq=False)
class TaskScene:
    """A task, and the rows, the tokenizer and the model that it is tried on.

    Attributes:
        task: settled on the rows.
        rows: two or more.
        tokenizer: of the model.
        model: in evaluation mode.
        tolerance: the relative error that the model's precision leaves.
    """

    task: Task
    rows: Sequence[Row]
    tokenizer: Any
    model: nn.Module
    tolerance: float

    @cached_property
    def examples(self) -> list[Example]:
        """All rows, encoded at once."""
        return list(self.task.encode(self.rows, self.tokenizer))

    def pad(self) -> int:
        """Returns the tokenizer's padding token, or 0."""
        return getattr(self.tokenizer, "pad_token_id", None) or 0

    def predictions(self, examples: Sequence[Example], task: Task | None = None) -> Predictions:
        """Returns the model's predictions on one batch of examples."""
        task = task or self.task
        return task.predict(self.model, task.collate(examples, self.pad()))

    def loss(self, examples: Sequence[Example], task: Task | None = None, pad: int | None = None) -> Tensor:
        """Returns the loss on one batch of examples."""
        task = task or self.task
        return task.loss(self.model, task.collate(examples, self.pad() if pad is None else pad))

    def far(self, one: float, other: float) -> bool:
        """Returns True if two numbers differ by more than the model's precision explains; NaN is far from all."""
        return not math.isclose(one, other, rel_tol=self.tolerance, abs_tol=self.tolerance)


@law("one example a row", first=True)
def one_example_a_row(scene: TaskScene) -> None:
    """A row becomes one example, in order and the same whatever rows stand beside it, of at most `max_length` tokens."""
    if len(scene.examples) != len(scene.rows):
        raise Violation(f"{len(scene.rows)} rows became {len(scene.examples)} examples")
    for i, row in enumerate(scene.rows):
        alone = scene.task.encode([row], scene.tokenizer)
        if len(alone) != 1:
            raise Violation(f"row {i} alone became {len(alone)} examples")
        if not _alike(alone[0], scene.examples[i]):
            raise Violation(f"row {i} is encoded differently alone than among all {len(scene.rows)} rows")
        if (length := scene.task.length(alone[0])) > scene.task.max_length:
            raise Violation(f"row {i} has {length} tokens, but max_length is {scene.task.max_length}")


@law("padding")
def padding(scene: TaskScene) -> None:
    """An example's loss does not depend on its padding, nor on what it is padded with, nor on the examples beside it."""
    together = scene.predictions(scene.examples)
    if len(together) != len(scene.examples):
        raise Violation(f"a batch of {len(scene.examples)} examples has {len(together)} predictions")
    wide = replace(scene.task, pad_to_multiple=ROOM)
    for i, example in enumerate(scene.examples):
        alone = scene.predictions([example])
        if alone.count[0] != together.count[i]:
            raise Violation(f"row {i} is {alone.count[0]} decisions alone and {together.count[i]} in a batch of all rows")
        _demand_same_loss(scene, i, alone.loss_sum[0], together.loss_sum[i], "in a batch of all rows")
        loss = scene.loss([example]).item()
        _demand_same_loss(scene, i, loss, scene.loss([example], wide).item(), f"padded to a multiple of {ROOM}")
        _demand_same_loss(scene, i, loss, scene.loss([example], wide, scene.pad() + 1).item(), "padded with another token")


@law("asks once")
def asks_once(scene: TaskScene) -> None:
    """The loss is a finite scalar with gradients from one pass of the model; so is a prediction, without gradients."""
    batch = scene.task.collate(scene.examples, scene.pad())
    with _counted(scene.model) as passes:
        loss = scene.task.loss(scene.model, batch)
    if len(passes) != 1:
        raise Violation(f"the loss asked the model {len(passes)} times: engines put one pass of many clients together")
    if loss.dim() or not loss.requires_grad or not torch.isfinite(loss):
        raise Violation(f"the loss is {loss}, but a finite scalar with gradients is needed")
    with _counted(scene.model) as passes:
        scene.task.predict(scene.model, batch)
    if len(passes) != 1:
        raise Violation(f"a prediction asked the model {len(passes)} times")


def without_labels(scene: TaskScene) -> str | None:
    """Returns the reason why labels are not asked for, or None if the task has some."""
    none = all(scene.task.label_of(row) is None for row in scene.rows)
    return "the task has no labels" if none and scene.task.label_field() is None else None


@law("labels", silent=without_labels)
def labels(scene: TaskScene) -> None:
    """A row with its own label written into it is the same row; one label is one target; settling again changes nothing."""
    field, targets = scene.task.label_field(), scene.predictions(scene.examples).target
    if field is not None and not any(field in row for row in scene.rows):
        raise Violation(f"no row has the field {field!r}, which is where `label_field` says that labels are")
    if scene.task.settled(scene.rows) != scene.task:
        raise Violation("`settled` gives another task when it is asked again")
    known: dict[object, int] = {}
    for i, row in enumerate(scene.rows):
        label = scene.task.label_of(row)
        written = row if field is None else {**row, field: label}
        if scene.task.label_of(written) != label:
            raise Violation(f"row {i} has the label {label!r}; with that in its field it has {scene.task.label_of(written)!r}")
        if not _alike(scene.task.encode([written], scene.tokenizer)[0], scene.examples[i]):
            raise Violation(f"row {i} is encoded differently with its label {label!r} in its field {field!r}")
        if targets[i] != UNDECIDED and known.setdefault(label, targets[i]) != targets[i]:
            raise Violation(f"the label {label!r} is target {known[label]} in one row and {targets[i]} in row {i}")
    if len(set(known.values())) != len(known):
        raise Violation(f"different labels have one target: {known}")


@law("metrics")
def metrics(scene: TaskScene) -> None:
    """Each metric of the task is a finite number, for all rows and for one row alone."""
    names = [get_metric(metric)[0] for metric in scene.task.metrics]
    if not names:
        raise Violation("the task has no metrics")
    for what, examples in (("all rows", scene.examples), ("one row", scene.examples[:1])):
        scores = scene.task.score(scene.predictions(examples))
        for name in names:
            if not math.isfinite(scores.get(name, math.nan)):
                raise Violation(f"{name} of {what} is {scores.get(name, 'missing')}")


TASK_LAWS: tuple[Law[TaskScene], ...] = (one_example_a_row, padding, asks_once, labels, metrics)
"""All laws of tasks."""


def _demand_same_loss(scene: TaskScene, row: int, alone: float, padded: float, how: str) -> None:
    if scene.far(alone, padded):
        raise Violation(f"row {row} has the loss {alone:.6g} alone and {padded:.6g} {how}")


@contextmanager
def _counted(model: nn.Module) -> Generator[list[None]]:
    """Yields a list that gets an entry for each pass of the model."""
    passes: list[None] = []
    handle = model.register_forward_pre_hook(lambda *_: passes.append(None))
    try:
        yield passes
    finally:
        handle.remove()


def _alike(one: Example, other: Example) -> bool:
    """Returns True if two examples have the same fields with equal values."""
    return one.keys() == other.keys() and all(np.array_equal(_plain(one[name]), _plain(other[name])) for name in one)


def _plain(value: Any) -> Any:
    # sequences of unequal lengths, such as choices, are no array of numbers
    ragged = isinstance(value, list) and any(isinstance(part, list) for part in value)
    return np.array([str(part) for part in value]) if ragged else np.asarray(value)
