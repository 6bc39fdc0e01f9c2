"""How one layer of a model works for several clients at once: adapted layers, and modules that train in full."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedelta.models.base_store import is_plain
from fedelta.models.dropout import SeededDropout
from fedelta.models.frozen_gemm import Backend, as_rows, is_frozen
from fedelta.models.grouped import GroupedLoRA, Rows
from fedelta.models.peft import SLOT


class Clients(Protocol):
    """What a layer must know of the clients of a pass."""

    rows: Rows
    generators: Sequence[torch.Generator]
    stacked: Mapping[str, Tensor]
    backend: Backend

    def adapted(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """A (K, r, i), B (K, o, r) and the scales (K,) of a layer."""
        ...


class CohortLayer:
    """The forward pass of one adapted layer, for all clients."""

    def __init__(self, clients: Clients, name: str, layer: Any) -> None:
        self.clients, self.name = clients, name
        self.base: Any = layer.get_base_layer()
        dropout = layer.lora_dropout[SLOT]
        self.p = dropout.p if isinstance(dropout, SeededDropout) else 0.0

    def __call__(self, x: Tensor) -> Tensor:
        A, B, scales = self.clients.adapted(self.name)
        rows, backend = self.clients.rows, self.clients.backend
        flat = x.reshape(-1, x.shape[-1]).to(A.dtype)
        keep = keep_mask(flat, self.p, rows, self.clients.generators) if self.p else None
        if x.dtype == A.dtype and fuses(self.base, A.dtype):
            y = GroupedLoRA.apply(flat, A, B, scales, keep, rows, as_rows(self.base), self.base.bias, backend)
            return cast("Tensor", y).view(*x.shape[:-1], -1)
        y = self.base(x)
        low = cast("Tensor", GroupedLoRA.apply(flat, A, B, scales, keep, rows, None, None, backend))
        return (y + low.view_as(y)).to(y.dtype)


def fuses(base: nn.Module, dtype: torch.dtype) -> bool:
    """Whether a base layer is nothing but x W^T + b with a weight of this dtype: no hook, not quantised, not offloaded."""
    weight: Any = getattr(base, "weight", None)
    return is_frozen(base) and not vars(base)["_forward_hooks"] and is_plain(base) and weight.dtype == dtype


def keep_mask(x: Tensor, p: float, rows: Rows, generators: Sequence[torch.Generator]) -> Tensor:
    """What each client's own dropout multiplies its rows of x (N, i) by; for padding nothing is drawn."""
    keep = torch.ones_like(x, requires_grad=False)
    by_row = keep.view(rows.total, -1, x.shape[-1])
    padded = by_row.shape[1] == rows.length
    for part, own, generator in zip(by_row.split(rows.counts), rows.lengths, generators, strict=True):
        length = own if padded else by_row.shape[1]
        drawn = torch.rand((len(part), length, x.shape[-1]), generator=generator, device=x.device)
        part[:, :length] = (drawn >= p).to(x.dtype) / (1 - p)
    return keep


class CohortHead:
    """The forward pass of a module whose own tensors train, for all clients.

    Args:
        clients: of the pass.
        holder: the module.
        names: by attribute, the flat name of each of its tensors.
    """

    def __init__(self, clients: Clients, holder: nn.Module, names: Mapping[str, str]) -> None:
        self.clients, self.names = clients, names
        self.alone = copy.copy(holder)  # still with the forward pass that this one is to replace

    def __call__(self, x: Tensor) -> Tensor:
        rows = self.clients.rows
        tensors = {attribute: self.clients.stacked[name] for attribute, name in self.names.items()}
        if rows.even and type(self.alone) is nn.Linear:
            return _linear(x, tensors["weight"], tensors.get("bias"))
        parts = zip(rows.split(x), *(t.unbind() for t in tensors.values()), strict=True)
        return torch.cat([functional_call(self.alone, dict(zip(tensors, own, strict=True)), part) for part, *own in parts])


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W_k^T + b_k on equally many rows of each client; W (K, o, i), b (K, o)."""
    parts = x.reshape(len(weight), -1, x.shape[-1]).to(weight.dtype)
    y = torch.bmm(parts, weight.mT) if bias is None else torch.baddbmm(bias[:, None], parts, weight.mT)
    return y.view(*x.shape[:-1], -1)
