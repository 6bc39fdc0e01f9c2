"""Joins the batches of several clients: puts what each loss asks of the model into one call, and takes the answer apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedelta.adapted import Batch, Loss
from fedelta.models.cohort.grouped import Rows
from fedelta.tasks.text.logits import logits_at

Inputs: TypeAlias = Mapping[str, Any]


WANTED = "wanted"
"""The name, among the inputs, of the positions of which a loss asks logits; see `fedelta.tasks.text.logits.logits_at`."""


def asked(loss: Loss, module: nn.Module, batch: Batch) -> Inputs:
    """Returns the inputs that a loss gives its model, by name; the model is not run.

    Raises:
        ValueError: for a loss that does not call its model.
    """
    try:
        loss(cast("nn.Module", _Question(module)), batch)
    except _Asked as question:
        return question.inputs
    raise ValueError("the loss does not call its model")


def answered(loss: Loss, module: nn.Module, batch: Batch, answer: SimpleNamespace) -> Tensor:
    """Computes the loss of a batch when the model's answer to it is known."""
    return loss(cast("nn.Module", _Answer(module, answer)), batch)


class _Asked(Exception):
    """Carries what a loss asks past the rest of it."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.inputs = inputs


class _Question:
    """Stands for the model while a loss is called to learn what it asks."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def __call__(self, **inputs: Any) -> Any:
        raise _Asked(inputs)

    def logits_at(self, inputs: Inputs, wanted: Tensor) -> Any:
        raise _Asked({**inputs, WANTED: wanted})


class _Answer(_Question):
    """Stands for the model when its answer is known; a loss that asks twice cannot be served by one pass."""

    def __init__(self, module: nn.Module, answer: SimpleNamespace) -> None:
        super().__init__(module)
        self._answers = [answer]

    def __call__(self, **inputs: Any) -> Any:
        if not self._answers:
            raise ValueError("the loss calls its model more than once")
        return self._answers.pop()

    def logits_at(self, inputs: Inputs, wanted: Tensor) -> Any:
        return self().logits


def join(parts: Sequence[Inputs], pad_token_id: int = 0) -> tuple[dict[str, Any], Rows]:
    """Joins the inputs of all clients into those of one call, client by client, padded on the right to the longest.

    Args:
        parts: of each client: integer tensors (n, ..., length), of which the last dimension is padded; other tensors (n, ...);
            plain values.
        pad_token_id: what fills `input_ids`; other integers are filled with 0.

    Raises:
        ValueError: for inputs that differ in what cannot be padded.
    """
    names = set(parts[0])
    if any(set(part) != names for part in parts):
        raise ValueError(f"the clients' inputs differ: {sorted(set().union(*parts) - names.intersection(*parts))}")
    sizes = [_size(part) for part in parts]
    counts, lengths = tuple(count for count, _ in sizes), tuple(length for _, length in sizes)
    if len(set(lengths)) > 1 and "attention_mask" not in names:
        raise ValueError("inputs of unequal length have no attention_mask that could hide their padding")
    joint: dict[str, Any] = {}
    for name in parts[0]:
        joint[name] = _joined(name, [part[name] for part in parts], pad_token_id if name == "input_ids" else 0)
    return joint, Rows(counts, lengths, max(lengths))


def _size(part: Inputs) -> tuple[int, int]:
    """Returns (sequences, their length); for images the length is 0, since they are not padded."""
    main = part["input_ids"] if "input_ids" in part else next(v for v in part.values() if isinstance(v, Tensor))
    if _is_padded(main):
        return main.shape[:-1].numel(), main.shape[-1]
    return len(main), 0


def _is_padded(value: Tensor) -> bool:
    return value.ndim > 1 and not value.is_floating_point()


def _joined(name: str, values: Sequence[Any], fill: int) -> Any:
    first = values[0]
    if not isinstance(first, Tensor):
        if any(isinstance(v, Tensor) or v != first for v in values):
            raise ValueError(f"the clients' inputs {name!r} differ, and are no tensors that could be joined")
        return first
    if _is_padded(first):
        longest = max(v.shape[-1] for v in values)
        values = [F.pad(v, (0, longest - v.shape[-1]), value=fill) for v in values]
    if len({v.shape[1:] for v in values}) > 1:
        raise ValueError(f"the clients' inputs {name!r} have shapes {[tuple(v.shape) for v in values]}, which do not join")
    return torch.cat(list(values))


def reply(module: nn.Module, joint: Inputs, by_sequence: Collection[nn.Module]) -> Any:
    """Runs a model on joint inputs; returns what it returns, or the logits that are wanted of it.

    Args:
        by_sequence: modules that work for all clients by their sequences, and so must see every position.
    """
    if WANTED not in joint:
        return module(**joint)
    inputs = {name: value for name, value in joint.items() if name != WANTED}
    return {"logits": logits_at(module, inputs, joint[WANTED], by_sequence=by_sequence)}


def rows_of_answer(question: Inputs) -> int:
    """Returns the first dimension of a client's part of the answer: its wanted positions, or its examples."""
    if WANTED in question:
        return int(question[WANTED].sum())
    return len(next(value for value in question.values() if isinstance(value, Tensor)))


def parts_of(outputs: Any, counts: Sequence[int], rows: Rows) -> list[SimpleNamespace]:
    """Splits what a model returned into each client's part: its own rows, without the padding.

    Args:
        outputs: by name, tensors of which the first dimension is that of all clients; what else there is, is left out.
        counts: each client's part of that dimension.
        rows: whose the sequences are.

    Raises:
        ValueError: for a model that returns no tensors by name.
    """
    if not isinstance(outputs, Mapping):
        raise ValueError(f"the model returns a {type(outputs).__name__}, not tensors by name")
    total = sum(counts)
    split = {n: v.split(list(counts)) for n, v in outputs.items() if isinstance(v, Tensor) and v.ndim and len(v) == total}
    parts: list[SimpleNamespace] = []
    for k, length in enumerate(rows.lengths):
        own = {n: _trimmed(v[k], length, rows.length) for n, v in split.items()}
        parts.append(SimpleNamespace(**own))
    return parts


def _trimmed(value: Tensor, length: int, padded: int) -> Tensor:
    by_token = value.ndim > 2 and padded and value.shape[1] == padded
    return value[:, :length] if by_token else value
