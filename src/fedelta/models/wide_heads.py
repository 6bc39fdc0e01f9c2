"""Lets modules train in float32 inside a model of half precision, which would lose their small steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Inputs: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


class Widened:
    """Brings a head to the dtype in which it trains, until `remove`: then each tensor gets its own dtype back, with its values.

    Args:
        head: changed in place; other parameters may take the place of its own meanwhile, under the same names.
        dtype: for all its numbers.
    """

    def __init__(self, head: nn.Module, dtype: torch.dtype) -> None:
        self._head = head
        self._own = {name: x.dtype for name, x in _tensors(head)}
        head.to(dtype)

    def remove(self) -> None:
        for name, x in _tensors(self._head):
            x.data = x.data.to(self._own[name])


def _tensors(head: nn.Module) -> list[tuple[str, Tensor]]:
    return [*head.named_parameters(), *head.named_buffers()]


def bridge(model: nn.Module, heads: Iterable[nn.Module], dtype: torch.dtype) -> list[RemovableHandle]:
    """Lets modules of a wider dtype than the model's work in it; where all are of one dtype nothing is changed.

    A head takes its inputs in its own dtype. What it returns stays so, since logits are to keep their digits; inside the
    model's body it goes on in the body's dtype.

    Args:
        model: what a task calls.
        heads: modules whose tensors train.
        dtype: of the model's frozen weights.

    Returns:
        Handles that take the hooks out again.
    """
    if dtype.itemsize >= torch.float32.itemsize:
        return []
    body: nn.Module = getattr(model, getattr(model, "base_model_prefix", ""), model)
    within = set(body.modules())
    handles = list[RemovableHandle]()
    for head in heads:
        handles.append(head.register_forward_pre_hook(_widen, with_kwargs=True))
        if head in within:
            handles.append(head.register_forward_hook(lambda _, __, output: _cast(output, dtype)))
    return handles


def _widen(head: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Inputs:
    dtype = next(head.parameters()).dtype
    return tuple(_cast(x, dtype) for x in args), {name: _cast(x, dtype) for name, x in options.items()}


def _cast(x: Any, dtype: torch.dtype) -> Any:
    return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
