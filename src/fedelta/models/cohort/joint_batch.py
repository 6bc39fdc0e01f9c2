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
from fedelta.tasks.task import IGNORED
from fedelta.tasks.text.logits import logits_at

Inputs: TypeAlias = Mapping[str, Any]


MAIN = "input_ids"
"""What a model of text reads."""

TOKENS = (MAIN, "decoder_input_ids")
"""The inputs that are padded by the padding token."""

FILL = {"labels": IGNORED}
"""What other inputs than tokens are padded by, where it is not 0."""

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

    What differs in length otherwise from client to client, as what an encoder reads and what a decoder writes, is padded to
    another length, so that a layer's input tells by its length which of them it holds.

    Args:
        parts: of each client: integer tensors (n, ..., length), of which the last dimension is padded; other tensors (n, ...);
            plain values.
        pad_token_id: what fills tokens; labels are filled with `IGNORED`, other integers with 0.

    Raises:
        ValueError: for inputs that differ in what cannot be padded.
    """
    names = set(parts[0])
    if any(set(part) != names for part in parts):
        raise ValueError(f"the clients' inputs differ: {sorted(set().union(*parts) - names.intersection(*parts))}")
    lengths: dict[int, tuple[int, ...]] = {}
    joint: dict[str, Any] = {}
    # The main input first: what measures as it does is its mask or its types.
    main = _main_of(parts[0])
    for name in sorted(parts[0], key=lambda name: name != main):
        values = [part[name] for part in parts]
        length = _length_for(lengths, values)
        if length and name == main and len(set(lengths[length])) > 1 and "attention_mask" not in names:
            raise ValueError("inputs of unequal length have no attention_mask that could hide their padding")
        joint[name] = _joined(name, values, length, pad_token_id if name in TOKENS else FILL.get(name, 0))
    return joint, Rows(tuple(_sequences(part) for part in parts), lengths)


def _main_of(part: Inputs) -> str:
    """Returns the name of what the model reads: the first tensor, where it is no text."""
    return MAIN if MAIN in part else next(name for name, value in part.items() if isinstance(value, Tensor))


def _sequences(part: Inputs) -> int:
    """Counts the sequences of one client; each of an example's choices is one."""
    main = part[_main_of(part)]
    return main.shape[:-1].numel() if _is_padded(main) else len(main)


def _length_for(lengths: dict[int, tuple[int, ...]], values: Sequence[Any]) -> int:
    """Returns the length to which the clients' sequences are padded, which is noted; 0 for what is not padded."""
    if not all(isinstance(v, Tensor) and _is_padded(v) for v in values):
        return 0
    own = tuple(v.shape[-1] for v in values)
    length = max(own)
    while lengths.setdefault(length, own) != own:
        length += 1
    return length


def _is_padded(value: Tensor) -> bool:
    return value.ndim > 1 and not value.is_floating_point()


def _joined(name: str, values: Sequence[Any], length: int, fill: int) -> Any:
    """Returns the clients' values as one, their sequences padded to a length."""
    first = values[0]
    if not isinstance(first, Tensor):
        if any(isinstance(v, Tensor) or v != first for v in values):
            raise ValueError(f"the clients' inputs {name!r} differ, and are no tensors that could be joined")
        return first
    if length:
        values = [F.pad(v, (0, length - v.shape[-1]), value=fill) for v in values]
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
    for k in range(len(counts)):
        own = {n: _trimmed(v[k], k, rows) for n, v in split.items()}
        parts.append(SimpleNamespace(**own))
    return parts


def _trimmed(value: Tensor, k: int, rows: Rows) -> Tensor:
    """Returns client k's rows of an answer without their padding, if they are answers by token."""
    return value[:, : rows.own_lengths(value.shape[1])[k]] if value.ndim > 2 else value
