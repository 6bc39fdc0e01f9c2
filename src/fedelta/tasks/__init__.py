"""Data, tasks and metrics: rows -> task -> batches, and how rows are shared out among clients."""

from fedelta.data.rows import Row, labels_from
from fedelta.tasks.causal_lm import Instruction
from fedelta.tasks.classification import Classification
from fedelta.tasks.metrics import METRICS, Predictions
from fedelta.tasks.multiple_choice import ChoiceByLikelihood, MultipleChoice
from fedelta.tasks.registry import get_task, list_tasks
from fedelta.tasks.task import Batch, Decisions, Example, Task, evaluate, predict_all

__all__ = [
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
    "predict_all",
]
