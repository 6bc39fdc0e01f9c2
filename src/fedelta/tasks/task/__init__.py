"""The contract of a task, and what every task is built from, behind one import path."""

from fedelta.tasks.task.batches import (
    IGNORED,
    INPUTS,
    Batch,
    Example,
    model_inputs,
    number_of_examples,
    pad_examples,
    pad_rows,
    tokenized,
)
from fedelta.tasks.task.contract import Decisions, Task, at_least_float32
from fedelta.tasks.task.evaluation import evaluate, evaluating, predict_all
from fedelta.tasks.task.labelled import Labelled

__all__ = [
    "IGNORED",
    "INPUTS",
    "Batch",
    "Decisions",
    "Example",
    "Labelled",
    "Task",
    "at_least_float32",
    "evaluate",
    "evaluating",
    "model_inputs",
    "number_of_examples",
    "pad_examples",
    "pad_rows",
    "predict_all",
    "tokenized",
]
