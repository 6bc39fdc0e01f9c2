"""A model's predictions on a whole set of examples, and their metrics."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from fedelta.activity import board
from fedelta.tasks.metrics import Predictions
from fedelta.tasks.task.batches import Example
from fedelta.tasks.task.contract import Task


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Puts the model in evaluation mode; afterwards each module is back in the mode it was in, for they may differ."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def predict_all(
    task: Task,
    model: nn.Module,
    examples: Sequence[Example],
    *,
    batch_size: int = 32,
    device: torch.device | str | None = None,
    pad_token_id: int | None = None,
) -> Predictions:
    """Returns the model's predictions on every example, in their order; batches are made of examples of like length.

    Args:
        task: the task.
        model: anything whose `model(**inputs)` has `logits`; its modes are put back afterwards.
        examples: encoded examples.
        batch_size: examples per batch.
        device: where the model is; the device of its first parameter if not given.
        pad_token_id: what fills short sequences; that of the model's config, or 0, if not given.

    Raises:
        ValueError: there are no examples.
    """
    if not examples:
        raise ValueError("cannot evaluate on zero examples: give the evaluation set at least one row")
    place = next((p.device for p in model.parameters()), "cpu") if device is None else device
    pad = _pad_token_of(model) if pad_token_id is None else pad_token_id
    order = np.argsort([-task.length(example) for example in examples], kind="stable")
    parts: list[Predictions] = []
    now = board()
    now.step, now.steps = 0, -(-len(order) // batch_size)
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            batch = task.collate([examples[i] for i in order[start : start + batch_size]], pad)
            parts.append(task.predict(model, {name: values.to(place) for name, values in batch.items()}))
            now.step += 1
    # sorting the order itself gives the way back to the examples' own order
    return Predictions.join(parts).take(np.argsort(order, kind="stable"))


def _pad_token_of(model: nn.Module) -> int:
    return getattr(getattr(model, "config", None), "pad_token_id", None) or 0


def evaluate(
    task: Task,
    model: nn.Module,
    examples: Sequence[Example],
    *,
    batch_size: int = 32,
    device: torch.device | str | None = None,
    pad_token_id: int | None = None,
) -> dict[str, float]:
    """Returns the task's metrics of a model on encoded examples; arguments as for `predict_all`."""
    return task.score(predict_all(task, model, examples, batch_size=batch_size, device=device, pad_token_id=pad_token_id))
