"""A task turns rows into batches, batches into a loss, and a model's scores into metrics. It knows no client and no adapter.

    rows -> encode -> examples -> collate -> batch -> loss (training) or predict -> score (evaluation)

Every task here is a choice among candidates: classes, endings, or the next token. So a family of tasks says only how to
encode its rows, how to pad them, and which `Decisions` a batch holds; loss, predictions and metrics follow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Hashable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedelta.data.rows import Row
from fedelta.tasks.metrics import UNDECIDED, Metric, Predictions, score

Example = Mapping[str, Any]
"""One encoded example: lists of ints by name, and a label where the task has one."""
Batch = dict[str, Tensor]

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
IGNORED = -100
"""The token label of a position that is not part of the answer."""


@dataclass(frozen=True)
class Decisions:
    """What a model has to decide in a batch of n examples: m decisions among c candidates.

    Args:
        scores: (m, c) logits; -inf for a candidate that does not exist.
        target: (m,) index of the right candidate.
        owner: (m,) position in the batch of the example that a decision belongs to; None if each example is one decision.
    """

    scores: Tensor
    target: Tensor
    owner: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """What is learned from a row, and how it is scored; a frozen dataclass of keyword-only settings.

    Class attributes:
        name: the key in the registry.
        auto_class: the class of transformers that loads the model, such as "AutoModelForCausalLM".
        peft_task_type: PEFT's `TaskType`, or None where PEFT has none for this task.
        modules_to_save: heads that PEFT does not find by itself from its task type.

    Args:
        max_length: the longest sequence in tokens, special tokens included; longer rows are cut.
        pad_to_multiple: a batch's length is rounded up to a multiple of this (8 suits GPU tensor cores).
        metrics: names from `fedelta.tasks.metrics.METRICS`, or functions `Predictions -> float`.
    """

    name: ClassVar[str]
    auto_class: ClassVar[str]
    peft_task_type: ClassVar[str | None]
    modules_to_save: ClassVar[tuple[str, ...]] = ()

    max_length: int = 128
    pad_to_multiple: int = 1
    metrics: tuple[str | Metric, ...] = ("accuracy", "loss")

    def settled(self, rows: Sequence[Row]) -> Task:
        """This task with what it leaves open (such as the list of labels) read from the training rows."""
        return self

    def text_fields(self) -> tuple[str, ...]:
        """The fields whose texts a row should not leave empty."""
        return ()

    def label_field(self) -> str | None:
        """The field that `label_of` reads; None where the task has no labels."""
        return None

    def model_kwargs(self) -> dict[str, Any]:
        """Arguments for `from_pretrained` beside the model's name."""
        return {}

    @abstractmethod
    def encode(self, rows: Sequence[Row], tokenizer: Any) -> list[Example]:
        """One example per row, in order, unpadded.

        Raises:
            ValueError: there are no rows, or a row lacks a field, has a value that is not usable or an unknown label; the
                message names the row's position, the field and the remedy.
        """

    @abstractmethod
    def collate(self, examples: Sequence[Example], pad_token_id: int) -> Batch:
        """Examples as one batch of int64 tensors on the CPU, padded on the right to the longest of them."""

    @abstractmethod
    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        """The model's scores for what it has to decide, with gradients; asks once, for `.logits` or by `logits_at`."""

    @abstractmethod
    def label_of(self, row: Row) -> Hashable:
        """The row's label, for partitioning and for the majority line; None where the task has no labels."""

    def length(self, example: Example) -> int:
        """The number of tokens of an example's longest sequence."""
        return len(example["input_ids"])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean negative log-likelihood over the batch's decisions: a scalar in nats, with gradients."""
        made = self.decisions(model, batch)
        return F.cross_entropy(at_least_float32(made.scores), made.target)

    def predict(self, model: nn.Module, batch: Batch) -> Predictions:
        """What the model says about each example of a batch; no gradients. The model's mode is the caller's to set."""
        with torch.inference_mode():
            made = self.decisions(model, batch)
            losses = F.cross_entropy(at_least_float32(made.scores), made.target, reduction="none")
            return _by_example(made, losses, guess=made.scores.argmax(dim=-1), examples=len(batch["input_ids"]))

    def score(self, predictions: Predictions) -> dict[str, float]:
        """The task's metrics by name."""
        return score(predictions, self.metrics)


def at_least_float32(scores: Tensor) -> Tensor:
    """Half-precision logits lose the small differences that a loss is made of; float64 stays as it is."""
    return scores.float() if scores.dtype.itemsize < 4 else scores


def _by_example(made: Decisions, losses: Tensor, guess: Tensor, examples: int) -> Predictions:
    loss, target, guessed = (_to_numpy(values) for values in (losses, made.target, guess))
    hits = (guessed == target).astype(np.int64)
    if made.owner is None:
        return Predictions(guessed, target, hits, np.ones_like(hits), loss.astype(np.float64))
    owner = _to_numpy(made.owner)
    none = np.full(examples, UNDECIDED)
    return Predictions(
        predicted=none,
        target=none,
        correct=np.bincount(owner[hits == 1], minlength=examples),
        count=np.bincount(owner, minlength=examples),
        loss_sum=np.bincount(owner, weights=loss, minlength=examples),
    )


def _to_numpy(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()


def model_inputs(batch: Batch) -> Batch:
    """The part of a batch that the model takes. Labels are kept from it: the loss is the task's own, for toy models too."""
    return {name: batch[name] for name in INPUTS if name in batch}


def tokenized(tokenizer: Any, texts: list[str], pairs: list[str] | None, max_length: int) -> list[Example]:
    """Each text, or pair of texts, as the tokenizer's lists that the model takes; cut to `max_length`, unpadded."""
    encoded = tokenizer(texts, pairs, truncation=True, max_length=max_length)
    columns = {name: encoded[name] for name in INPUTS if name in encoded}
    return [{name: values[i] for name, values in columns.items()} for i in range(len(texts))]


def pad_rows(sequences: Sequence[Sequence[int]], value: int, multiple: int = 1) -> Tensor:
    """Integer sequences as one (n, length) int64 tensor, filled with `value` on the right.

    Args:
        sequences: n sequences of any lengths.
        value: what fills the places behind a sequence's end.
        multiple: the length is the longest sequence's, rounded up to a multiple of this.
    """
    longest = max(len(sequence) for sequence in sequences)
    padded = np.full((len(sequences), -(-longest // multiple) * multiple), value, dtype=np.int64)
    for i, sequence in enumerate(sequences):
        padded[i, : len(sequence)] = sequence
    return torch.from_numpy(padded)


def pad_examples(examples: Sequence[Example], pad_token_id: int, multiple: int = 1) -> Batch:
    """Each list-valued field of the examples padded to (n, length); a `label` becomes the (n,) tensor `labels`.

    Raises:
        ValueError: there are no examples.
    """
    if not examples:
        raise ValueError("no examples to make a batch of")
    fill = {"input_ids": pad_token_id, "token_labels": IGNORED}
    batch = {
        name: pad_rows([example[name] for example in examples], fill.get(name, 0), multiple)
        for name in examples[0]
        if name != "label"
    }
    if "label" in examples[0]:
        batch["labels"] = torch.tensor([example["label"] for example in examples])
    return batch


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """The model in evaluation mode; afterwards each module is back in the mode it was in, for they may differ."""
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
    """What the model says about every example, in their order; batches are made of examples of like length.

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
    parts = []
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            batch = task.collate([examples[i] for i in order[start : start + batch_size]], pad)
            parts.append(task.predict(model, {name: values.to(place) for name, values in batch.items()}))
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
    """The task's metrics of a model on encoded examples; arguments as for `predict_all`."""
    return task.score(predict_all(task, model, examples, batch_size=batch_size, device=device, pad_token_id=pad_token_id))
