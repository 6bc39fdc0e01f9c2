"""Walks through a message, from one leaf to the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor

from fedelta.lowrank import LoRA
from fedelta.tree.value import Adapter, BaseDelta

T = TypeVar("T")


def named_tensors(tree: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yields every tensor of a message with a path that a person can read, such as `adapter/encoder.query/B`."""
    if isinstance(tree, Tensor):
        yield prefix, tree
    elif isinstance(tree, LoRA):
        yield from named_tensors({"B": tree.B, "A": tree.A}, prefix)
    elif isinstance(tree, Adapter):
        yield from named_tensors(tree.layers, prefix)
        yield from named_tensors(tree.dense, prefix)
    elif isinstance(tree, BaseDelta):
        yield from named_tensors(tree.terms, prefix)
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from named_tensors(value, f"{prefix}/{key}" if prefix else str(key))
    elif isinstance(tree, list | tuple):
        for k, value in enumerate(tree):
            yield from named_tensors(value, f"{prefix}[{k}]")


def count(tree: Any) -> int:
    """Counts the entries of all tensors of a message: the numbers that travel, headers aside."""
    return sum(x.numel() for _, x in named_tensors(tree))


def find(message: Any, kind: type[T]) -> Iterator[T]:
    """Yields everything of one kind in a message, at any depth outside adapters and base deltas."""
    if isinstance(message, kind):
        yield message
    elif isinstance(message, Mapping):
        for value in message.values():
            yield from find(value, kind)
    elif isinstance(message, list | tuple):
        for value in message:
            yield from find(value, kind)
