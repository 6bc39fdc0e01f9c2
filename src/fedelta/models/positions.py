"""Finds out how long a text a model can take: by the places of its tables of positions, beyond which a pass fails."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fedelta.models.fitting import SEQ2SEQ
from fedelta.tasks.task import Example, Task

logger = logging.getLogger(__name__)

TABLES = frozenset({"embed_positions", "position_embedding", "position_embeddings", "positions_embed", "wpe"})
"""The names that transformers gives to tables of positions."""


@dataclass(frozen=True)
class Places:
    """Says how many tokens a model has positions for; None stands for any number.

    Attributes:
        reads: tokens of what it reads.
        writes: tokens of what the decoder of an encoder-decoder writes.
        trained: the number that the config of a model without a table names: it can read more, but has not learned to.
    """

    reads: int | None = None
    writes: int | None = None
    trained: int | None = None

    def suffice(self, task: Task) -> bool:
        """Returns True if no text of a task can be too long, whichever part of the model it is for."""
        return all(most is None or _padded(task.max_length, task) <= most for most in (self.reads, self.writes))


def places_of(model: nn.Module, task: Task) -> Places:
    """Returns how many tokens of a task's texts a model has positions for.

    Args:
        model: of transformers, with or without PEFT's layers.
        task: as the model takes it (`fedelta.models.fitting.task_for`).
    """
    config: Any = getattr(model, "config", None)
    apart = bool(getattr(config, "is_encoder_decoder", False))
    named = None if apart else getattr(config, "max_position_embeddings", None)
    found = {name: rows for name, table in model.named_modules() if (rows := _rows_of(name, table)) is not None}
    found |= {name: len(table) for name, table in model.named_buffers() if name.endswith(".embed_positions")}
    if not found:
        return Places(trained=named)
    if apart and task.auto_class == SEQ2SEQ:
        writes = [rows for name, rows in found.items() if "decoder" in name.split(".")]
        reads = [rows for name, rows in found.items() if "decoder" not in name.split(".")]
        return Places(min(reads, default=None), min(writes, default=None))
    # Where an encoder-decoder classifies, both of its parts read the text.
    return Places(min([*found.values(), *([] if named is None else [named])]))


def _rows_of(name: str, table: nn.Module) -> int | None:
    """Returns the positions of a table that a text can have; None for another module, or for a table that grows when asked."""
    named = TABLES.intersection(name.split(".")[-2:])  # PEFT keeps a module that it adapts one level further down
    if not named or not isinstance(table, nn.Embedding) or hasattr(table, "make_weight"):
        return None
    # BART and OPT begin at the third row; RoBERTa and MPNet behind the row of the padding.
    first = getattr(table, "offset", 0) if table.padding_idx is None else table.padding_idx + 1
    return table.num_embeddings - first


def check_lengths(places: Places, task: Task, examples: Sequence[Example], where: str) -> None:
    """Refuses examples that are longer than a model's table of positions; warns of those longer than it was trained with.

    Args:
        places: of the model.
        task: that made the examples.
        examples: encoded; there may be none.
        where: what they are, for messages.

    Raises:
        ValueError: with the number of examples, the model's limit and the remedy.
    """
    if not examples or "input_ids" not in examples[0]:
        return
    if task.auto_class == SEQ2SEQ and "token_labels" in examples[0]:
        for kind, name, most in (("prompts", "input_ids", places.reads), ("answers", "token_labels", places.writes)):
            _demand_places(task, [len(example[name]) for example in examples], most, f"{where}: {{}} {kind}")
        return
    kind = "prompts with their answers" if "token_labels" in examples[0] else "texts"
    lengths = [task.length(example) for example in examples]
    _demand_places(task, lengths, places.reads, f"{where}: {{}} {kind}")
    if places.trained is not None and (count := sum(length > places.trained for length in lengths)):
        logger.warning(
            "%s: %d of %d %s are longer than the %d tokens that the model's config names, beyond which it may know little: "
            "consider task.max_length = %d",
            *(where, count, len(lengths), kind, places.trained, places.trained),
        )


def _demand_places(task: Task, lengths: Sequence[int], most: int | None, what: str) -> None:
    """Raises ValueError for lengths above the most; `what` has a place for their number."""
    step, padded = task.pad_to_multiple, [_padded(length, task) for length in lengths]
    if most is None or max(padded) <= most:
        return
    count = sum(length > most for length in padded)
    by_padding = f", {max(padded)} as task.pad_to_multiple = {step} pads it" if step > 1 else ""
    raise ValueError(
        f"{what.format(f'{count} of {len(lengths)}')} are longer than the model has positions for: {max(lengths)} tokens in "
        f"the longest{by_padding}, but {most} positions: set task.max_length = {most // step * step} or less, by which they "
        "are cut (in Python: max_length of the task), or choose a model that takes longer texts"
    )


def _padded(length: int, task: Task) -> int:
    """Returns the length that a batch gets of a sequence."""
    return -(-length // task.pad_to_multiple) * task.pad_to_multiple
