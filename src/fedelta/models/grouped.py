"""Products of rows that belong to several clients, each with a matrix of its own.

The rows of a joint batch lie client by client. Shapes: N rows of all K clients together, i in, o out, r rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fedelta.models.frozen_gemm import Backend, product


@dataclass(frozen=True)
class Rows:
    """Whose the rows of a joint batch are.

    Attributes:
        counts: sequences of each client.
        lengths: what each client's sequences measure without the others.
        length: what they measure here, where all are padded to the longest.
    """

    counts: tuple[int, ...]
    lengths: tuple[int, ...]
    length: int

    @cached_property
    def total(self) -> int:
        """Sequences of all clients."""
        return sum(self.counts)

    @cached_property
    def even(self) -> bool:
        """Whether all clients have equally many."""
        return len(set(self.counts)) == 1

    def split(self, x: Tensor) -> Sequence[Tensor]:
        """Each client's part of (N, ...), where N is the total or a multiple of it.

        Raises:
            ValueError: for another N: the model mixes or drops rows.
        """
        each, rest = divmod(len(x), self.total)
        if rest or not each:
            raise ValueError(f"a layer sees {len(x)} rows of {self.total} sequences: the model mixes or drops rows")
        return x.split([count * each for count in self.counts])


def times(x: Tensor, matrices: Tensor, rows: Rows) -> Tensor:
    """Each client's rows of x (N, i) times its own of the matrices (K, i, o)."""
    if rows.even:
        return torch.bmm(x.view(rows_by_client(x, rows), -1, x.shape[-1]), matrices).view(len(x), -1)
    return torch.cat([part @ matrix for part, matrix in zip(rows.split(x), matrices.unbind(), strict=True)])


def add_times_(y: Tensor, x: Tensor, matrices: Tensor, rows: Rows) -> Tensor:
    """y (N, o) plus `times`, in place."""
    if rows.even:
        count = rows_by_client(x, rows)
        y.view(count, -1, y.shape[-1]).baddbmm_(x.view(count, -1, x.shape[-1]), matrices)
    else:
        for into, part, matrix in zip(rows.split(y), rows.split(x), matrices.unbind(), strict=True):
            into.addmm_(part, matrix)
    return y


def outer(x: Tensor, y: Tensor, rows: Rows) -> Tensor:
    """x_k^T y_k (K, i, o) of each client's rows of x (N, i) and y (N, o)."""
    if rows.even:
        count = rows_by_client(x, rows)
        return torch.bmm(x.view(count, -1, x.shape[-1]).mT, y.view(count, -1, y.shape[-1]))
    return torch.stack([p.mT @ q for p, q in zip(rows.split(x), rows.split(y), strict=True)])


def rows_by_client(x: Tensor, rows: Rows) -> int:
    """The number of clients, once it is known that x can be split among them."""
    rows.split(x)
    return len(rows.counts)


class GroupedLoRA(torch.autograd.Function):
    """Client k's rows of x times s_k A_k^T B_k^T, and of all rows the frozen x W^T + b, in one node.

    With D the dropout's mask over 1 - p, and z = (D x) A^T:

        y  = x W^T + b + s z B^T
        dz = s g B     dB = s g^T z     dA = dz^T (D x)     dx = g W + D (dz A)

    Only x (or D x), z and D are kept for the way back. Without W the frozen part is left out.

    Args:
        x: (N, i), client by client.
        A, B: (K, r, i) and (K, o, r). Smaller ranks are padded with zeros; where both factors are zero all gradients are.
        scales: (K,).
        keep: D (N, i), or None.
        rows: whose the rows are.
        weight, bias: (o, i) and (o,), or None.
        backend: of the frozen products.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        scales: Tensor,
        keep: Tensor | None,
        rows: Rows,
        weight: Tensor | None,
        bias: Tensor | None,
        backend: Backend,
    ) -> Tensor:
        kept = x if keep is None else x * keep
        scaled = (B * scales[:, None, None]).mT
        z = times(kept, A.mT, rows)
        ctx.save_for_backward(kept, z, A, B, scales, keep, weight)
        ctx.rows, ctx.backend = rows, backend
        if weight is None:
            return times(z, scaled, rows)
        return add_times_(product(x, weight, bias, backend), z, scaled, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kept, z, A, B, scales, keep, weight = ctx.saved_tensors
        rows, g, s = ctx.rows, grads[0].contiguous(), scales[:, None, None]
        need_x, need_A, need_B = ctx.needs_input_grad[:3]
        dz = times(g, B * s, rows) if need_x or need_A else None
        dB = outer(g, z, rows) * s if need_B else None
        dA = outer(dz, kept, rows) if need_A and dz is not None else None
        dx = _back(g, dz, A, keep, rows, weight, ctx.backend) if need_x and dz is not None else None
        return dx, dA, dB, None, None, None, None, None, None


def _back(g: Tensor, dz: Tensor, A: Tensor, keep: Tensor | None, rows: Rows, weight: Tensor | None, backend: Backend) -> Tensor:
    """dx = g W + D (dz A)."""
    if weight is None or keep is not None:
        low = times(dz, A, rows)
        low = low if keep is None else low * keep
        return low if weight is None else low.add_(product(g, weight.mT, None, backend))
    return add_times_(product(g, weight.mT, None, backend), dz, A, rows)
