"""Multiplies rows that belong to several clients, each client's with a matrix of its own.

The rows of a joint batch lie client by client. Shapes: N rows of all K clients together, i in, o out, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fedelta.models.products import Product

Counts: TypeAlias = tuple[int, ...]
"""The rows of each client, in their order."""


@dataclass(frozen=True)
class Rows:
    """Says whose the rows of a joint batch are.

    Attributes:
        counts: sequences of each client.
        lengths: by what sequences measure here, where all are padded to the longest, what each client's measure without the
            others. An encoder-decoder has two kinds of them; those of images are not padded, and have none.
    """

    counts: Counts
    lengths: Mapping[int, tuple[int, ...]]

    @cached_property
    def total(self) -> int:
        """Sequences of all clients."""
        return sum(self.counts)

    @cached_property
    def even(self) -> bool:
        """Says if all clients have equally many."""
        return even(self.counts)

    def own_lengths(self, length: int) -> tuple[int, ...]:
        """Returns what each client's part measures of something that measures `length` here: as much, unless it was padded."""
        return self.lengths.get(length, (length,) * len(self.counts))

    def split(self, x: Tensor) -> Sequence[Tensor]:
        """Splits (N, ...) into each client's part, where N is the total or a multiple of it.

        Raises:
            ValueError: for another N: the model mixes or drops rows.
        """
        return x.split(self.of(len(x)))

    def of(self, n: int, *inner: int) -> Counts:
        """Counts each client's part of n rows, or of n times `inner` rows.

        Raises:
            ValueError: unless n is the total or a multiple of it: the model mixes or drops rows, or these are nobody's.
        """
        each, rest = divmod(n, self.total)
        if rest or not each:
            raise ValueError(f"a layer sees {n} rows of {self.total} sequences: the model mixes or drops rows")
        return tuple(count * each * math.prod(inner) for count in self.counts)


def times(x: Tensor, matrices: Tensor, counts: Counts) -> Tensor:
    """Multiplies each client's rows of x (N, i) by its own of the matrices (K, i, o)."""
    if even(counts):
        return torch.bmm(x.view(len(counts), -1, x.shape[-1]), matrices).view(len(x), -1)
    y = x.new_empty(len(x), matrices.shape[-1])
    for into, part, matrix in zip(y.split(counts), x.split(counts), matrices.unbind(), strict=True):
        torch.mm(part, matrix, out=into)
    return y


def add_times_(y: Tensor, x: Tensor, matrices: Tensor, counts: Counts) -> Tensor:
    """Adds `times` to y (N, o), in place."""
    if even(counts):
        y.view(len(counts), -1, y.shape[-1]).baddbmm_(x.view(len(counts), -1, x.shape[-1]), matrices)
    else:
        for into, part, matrix in zip(y.split(counts), x.split(counts), matrices.unbind(), strict=True):
            into.addmm_(part, matrix)
    return y


def outer(x: Tensor, y: Tensor, counts: Counts) -> Tensor:
    """Returns x_k^T y_k (K, i, o) of each client's rows of x (N, i) and y (N, o)."""
    if even(counts):
        return torch.bmm(x.view(len(counts), -1, x.shape[-1]).mT, y.view(len(counts), -1, y.shape[-1]))
    result = x.new_empty(len(counts), x.shape[-1], y.shape[-1])
    for into, p, q in zip(result.unbind(), x.split(counts), y.split(counts), strict=True):
        torch.mm(p.mT, q, out=into)
    return result


def even(counts: Counts) -> bool:
    """Says if all clients have equally many rows."""
    return len(set(counts)) == 1


class GroupedLoRA(torch.autograd.Function):
    """Multiplies client k's rows of x by s_k A_k^T B_k^T, and adds the frozen x W^T + b of all rows, in one node.

    With D the dropout's mask over 1 - p, and z = (D x) A^T:

        y  = x W^T + b + s z B^T
        dz = s g B     dB = s g^T z     dA = dz^T (D x)     dx = g W + D (dz A)

    Only x (or D x), z and D are kept for the way back. Without W the frozen part is left out. All products are formed in the
    dtype of x: factors that train in float32 are rounded to it on their way in, and their gradients are float32.

    Args:
        x: (N, i), client by client.
        A, B: (K, r, i) and (K, o, r). Smaller ranks are padded with zeros; where both factors are zero all gradients are.
        scales: (K,).
        keep: D (N, i), or None.
        counts: how many of the rows are each client's.
        weight, bias: (o, i) and (o,), or None.
        product: forms the frozen products.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        scales: Tensor,
        keep: Tensor | None,
        counts: Counts,
        weight: Tensor | None,
        bias: Tensor | None,
        product: Product,
    ) -> Tensor:
        kept = x if keep is None else x * keep
        scaled = (B * scales[:, None, None]).to(x.dtype).mT
        z = times(kept, A.to(x.dtype).mT, counts)
        ctx.save_for_backward(kept, z, A, B, scales, keep, weight)
        ctx.counts, ctx.product = counts, product
        if weight is None:
            return times(z, scaled, counts)
        return add_times_(product(x, weight, bias), z, scaled, counts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kept, z, A, B, scales, keep, weight = ctx.saved_tensors
        counts, g, s = ctx.counts, grads[0].contiguous(), scales[:, None, None]
        need_x, need_A, need_B = ctx.needs_input_grad[:3]
        dz = times(g, (B * s).to(g.dtype), counts) if need_x or need_A else None
        dB = outer(g, z, counts) * s if need_B else None
        dA = outer(dz, kept, counts).to(A.dtype) if need_A and dz is not None else None
        dx = _back(g, dz, A.to(g.dtype), keep, counts, weight, ctx.product) if need_x and dz is not None else None
        return dx, dA, dB, None, None, None, None, None, None


def _back(
    g: Tensor, dz: Tensor, A: Tensor, keep: Tensor | None, counts: Counts, weight: Tensor | None, product: Product
) -> Tensor:
    """Returns dx = g W + D (dz A)."""
    if weight is None or keep is not None:
        low = times(dz, A, counts)
        low = low if keep is None else low * keep
        return low if weight is None else low.add_(product(g, weight.mT, None))
    return add_times_(product(g, weight.mT, None), dz, A, counts)
