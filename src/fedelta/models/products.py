"""Products with frozen weights: which layers are nothing else, and how a product is formed without a fast pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

Product: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x (n, i), weight (o, i), bias (o,) or None) -> x W^T + b, for use where no graph is recorded."""

PLAIN: Product = F.linear
"""torch's own."""


class ProductForward:
    """Marks a forward pass that was put on a layer in place of its own and still computes x W^T + b."""


def as_rows(layer: nn.Module) -> Tensor:
    """Returns the weight (o, i) of a Linear or Conv1D layer, as it lies or as a view of it."""
    weight: Any = layer.weight
    return weight.mT if isinstance(layer, Conv1D) else weight


def is_frozen(layer: nn.Module) -> bool:
    """Returns whether a layer is a plain Linear or Conv1D that nothing trains and no other library has taken over."""
    forward = vars(layer).get("forward")
    untouched = forward is None or isinstance(forward, ProductForward)
    return type(layer) in (nn.Linear, Conv1D) and untouched and not any(p.requires_grad for p in layer.parameters())
