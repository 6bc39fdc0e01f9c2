"""A task turns rows into batches, batches into a loss, and a model's scores into metrics. It knows no client and no adapter.

    rows -> encode -> examples -> collate -> batch -> loss (training) or predict -> score (evaluation)

Every task is a choice among candidates: classes, endings, or the next token. So a task says only how to encode its rows, how
to pad them, and which `Decisions` a batch holds; loss, predictions and metrics follow.

A batch's names, and the call for its scores, follow from what the model reads and writes:

    text -> a class         input_ids, attention_mask, labels    model(**model_inputs(batch)).logits
    text -> the next token  token_labels, as long as input_ids   logits_at the positions before the answer's tokens
    encoder-decoder         token_labels of their own length     logits_at the answer's tokens, given `decoder_input_ids`; or
                                                                 model(**model_inputs(batch, labels=...)).logits
    an image -> a class     pixel_values, stacked; labels        model(**model_inputs(batch)).logits
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedelta.data.rows import Row
from fedelta.demands import demand_all, whole
from fedelta.tasks.metrics import UNDECIDED, Metric, Predictions, score
from fedelta.tasks.task.batches import Batch, Example, number_of_examples


@dataclass(frozen=True)
class Decisions:
    """The m decisions among c candidates that a model has to take in a batch of n examples.

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
    """Says how rows are learned from and how that is scored; a frozen dataclass of keyword-only settings.

    Class attributes:
        auto_class: the class of transformers that loads the model, such as "AutoModelForCausalLM".
        peft_task_type: PEFT's `TaskType`, or None where PEFT has none for this task.
        modules_to_save: heads that PEFT does not find by itself from its task type.
        main_input: what the model reads, as transformers names it: "input_ids" for text, "pixel_values" for images.
        sample: a few rows that fit the default settings; the laws of `fedelta.testing.check_task` are asked with them.

    Args:
        max_length: the longest sequence in tokens, special tokens included; longer rows are cut.
        pad_to_multiple: a batch's length is rounded up to a multiple of this (8 suits GPU tensor cores).
        metrics: names from `fedelta.tasks.metrics.METRICS`, or functions `Predictions -> float`.
    """

    auto_class: ClassVar[str]
    peft_task_type: ClassVar[str | None]
    modules_to_save: ClassVar[tuple[str, ...]] = ()
    main_input: ClassVar[str] = "input_ids"
    sample: ClassVar[tuple[Row, ...]] = ()

    max_length: int = 128
    pad_to_multiple: int = 1
    metrics: tuple[str | Metric, ...] = ("accuracy", "loss")

    def __post_init__(self) -> None:
        """Refuses lengths that no batch can have; a task with a check of its own calls this one, too."""
        demand_all(self, {"max_length": whole(least=1), "pad_to_multiple": whole(least=1)})

    def settled(self, rows: Sequence[Row]) -> Task:
        """Returns this task with what it leaves open (such as the list of labels) read from the training rows."""
        return self

    def for_encoder_decoder(self) -> Task:
        """Returns this task as a model of encoder and decoder takes it; itself where that is no other task."""
        return self

    def text_fields(self) -> tuple[str, ...]:
        """Returns the fields whose texts a row should not leave empty."""
        return ()

    def path_fields(self) -> tuple[str, ...]:
        """Returns the fields in which a text is the path of a file, such as an image."""
        return ()

    def label_field(self) -> str | None:
        """Returns the field that `label_of` reads; None where the task has no labels."""
        return None

    def model_kwargs(self) -> dict[str, Any]:
        """Returns arguments for `from_pretrained` beside the model's name."""
        return {}

    @abstractmethod
    def encode(self, rows: Sequence[Row], tokenizer: Any) -> list[Example]:
        """Returns one example per row, in order, unpadded.

        Args:
            rows: at least one.
            tokenizer: of the model; for images the `fedelta.tasks.images.processor.ImageProcessor` that it was trained with.

        Raises:
            ValueError: there are no rows, or a row lacks a field, has a value that is not usable or an unknown label; the
                message names the row's position, the field and the remedy.
        """

    @abstractmethod
    def collate(self, examples: Sequence[Example], pad_token_id: int) -> Batch:
        """Returns examples as one batch of tensors on the CPU, sequences padded on the right to the longest of them.

        The first dimension of each tensor is the examples. Ids, masks and labels are int64, `pixel_values` of the type that
        the examples have.
        """

    @abstractmethod
    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        """Returns the model's scores for what it has to decide, with gradients; asks once, for `.logits` or by `logits_at`."""

    @abstractmethod
    def label_of(self, row: Row) -> Hashable:
        """Returns the row's label, for partitioning and for the majority line; None where the task has no labels."""

    def length(self, example: Example) -> int:
        """Returns the number of tokens of an example's longest sequence; 1 for an example without text."""
        return len(example["input_ids"]) if "input_ids" in example else 1

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns the mean negative log-likelihood over the batch's decisions: a scalar in nats, with gradients."""
        made = self.decisions(model, batch)
        return F.cross_entropy(at_least_float32(made.scores), made.target)

    def predict(self, model: nn.Module, batch: Batch) -> Predictions:
        """Returns the model's prediction for each example of a batch; no gradients. The model's mode is the caller's to set."""
        with torch.inference_mode():
            made = self.decisions(model, batch)
            losses = F.cross_entropy(at_least_float32(made.scores), made.target, reduction="none")
            return _by_example(made, losses, guess=made.scores.argmax(dim=-1), examples=number_of_examples(batch))

    def score(self, predictions: Predictions) -> dict[str, float]:
        """Returns the task's metrics by name."""
        return score(predictions, self.metrics)


def at_least_float32(scores: Tensor) -> Tensor:
    """Returns half-precision scores in float32, for they lose the small differences that make a loss; others as they are."""
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
