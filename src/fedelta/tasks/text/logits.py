"""Logits where they are wanted: a language model's output head costs as much as many of its layers, and most rows go unread."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def logits_at(model: Any, inputs: Mapping[str, Any], wanted: Tensor, *, by_sequence: Collection[nn.Module] = ()) -> Tensor:
    """Returns the model's logits at some positions; its output head sees no other row, and what follows the head still applies.

    A head that is not a plain Linear layer (adapted, trained apart, or unknown) computes all rows, of which the wanted ones
    are taken. A stand-in for a model may bring a `logits_at(inputs, wanted)` of its own.

    Args:
        model: anything whose `model(**inputs)` has `logits` of the shape (B, L, V).
        inputs: of the model, B sequences of length L.
        wanted: (B, L), True at n positions.
        by_sequence: modules that must see whole sequences; if the head is one of them, it computes all rows.

    Returns:
        (n, V), sequence by sequence.

    Raises:
        ValueError: for a model whose logits have neither a row for each position nor one for each wanted position.
    """
    own = getattr(model, "logits_at", None)
    if own is not None:
        return own(inputs, wanted)
    rows = wanted.flatten().nonzero()[:, 0]
    head = _plain_head(model)
    if head is None or head in by_sequence:
        logits: Tensor = model(**inputs).logits
    else:
        with _sees_only(head, rows, wanted.shape):
            logits = model(**inputs).logits
    if logits.shape[:-1] == wanted.shape:
        return logits.flatten(0, 1).index_select(0, rows)
    if logits.shape[:-1] in ((1, len(rows)), (len(rows),)):
        return logits.flatten(0, -2)
    raise ValueError(
        f"the model's logits have shape {tuple(logits.shape)}, but {len(rows)} of {tuple(wanted.shape)} positions are wanted: "
        "give the model a logits_at(inputs, wanted)"
    )


def _plain_head(model: Any) -> nn.Linear | None:
    find = getattr(model, "get_output_embeddings", None)
    head = None if find is None else find()
    return head if isinstance(head, nn.Linear) else None


@contextmanager
def _sees_only(head: nn.Module, rows: Tensor, shape: tuple[int, ...]) -> Generator[None]:
    """Gives a head these rows (n,) of its input (B, L, d), as (1, n, d); leaves another input alone."""

    def select(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        hidden, *rest = args
        return (hidden.flatten(0, 1).index_select(0, rows)[None], *rest) if hidden.shape[:-1] == shape else None

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
