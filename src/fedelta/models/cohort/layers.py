"""Lets one layer of a model work for several clients at once: adapted layers, and modules that train in full."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedelta.models.base_store import is_plain
from fedelta.models.cohort.grouped import Counts, GroupedLoRA, Rows
from fedelta.models.dropout import SeededDropout
from fedelta.models.packing import Packing, packing_of
from fedelta.models.products import Product, as_rows, is_frozen
from fedelta.models.slots import SLOT


class Clients(Protocol):
    """The clients of a pass as a layer knows them."""

    rows: Rows
    generators: Sequence[torch.Generator]
    stacked: Mapping[str, Tensor]
    product: Product

    def adapted(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Returns A (K, r, i), B (K, o, r) and the scales (K,) of a layer."""
        ...


class CohortLayer:
    """The forward pass of one adapted layer, for all clients."""

    def __init__(self, clients: Clients, name: str, layer: Any) -> None:
        self.clients, self.name = clients, name
        self.base: Any = layer.get_base_layer()
        self.fused_in = self.base.weight.dtype if is_product(self.base) else None
        dropout = layer.lora_dropout[SLOT]
        self.p = dropout.p if isinstance(dropout, SeededDropout) else 0.0

    def __call__(self, x: Tensor) -> Tensor:
        A, B, scales = self.clients.adapted(self.name)
        rows, product, packing = self.clients.rows, self.clients.product, packing_of(x)
        fused = x.dtype == self.fused_in
        flat = x.reshape(-1, x.shape[-1]).to(x.dtype if fused else A.dtype)
        counts = packing.counts(rows.counts) if packing else rows.of(*x.shape[:-1])
        keep = self._keep(flat, packing) if self.p else None
        if fused:
            y = GroupedLoRA.apply(flat, A, B, scales, keep, counts, as_rows(self.base), self.base.bias, product)
            return cast("Tensor", y).view(*x.shape[:-1], -1)
        y = self.base(x)
        low = cast("Tensor", GroupedLoRA.apply(flat, A, B, scales, keep, counts, None, None, product))
        return (y + low.view_as(y)).to(y.dtype)

    def _keep(self, x: Tensor, packing: Packing | None) -> Tensor:
        """Returns what dropout multiplies x (N, i) by."""
        rows, generators = self.clients.rows, self.clients.generators
        if packing is None:
            return keep_mask(x, self.p, rows, generators)
        grid = keep_mask(x.new_empty(packing.mask.numel(), x.shape[-1]), self.p, rows, generators)
        return packing.pack(grid.view(*packing.mask.shape, -1))[0]


def is_product(base: nn.Module) -> bool:
    """Says if a base layer is nothing but x W^T + b: no hook, not quantised, not offloaded."""
    return is_frozen(base) and not vars(base)["_forward_hooks"] and is_plain(base)


def keep_mask(x: Tensor, p: float, rows: Rows, generators: Sequence[torch.Generator]) -> Tensor:
    """Returns what each client's own dropout multiplies its rows of x (N, i) by; for padding nothing is drawn."""
    # A client draws for its own length, without the padding to the longest of the others: just what it would draw alone.
    keep = torch.ones_like(x, requires_grad=False)
    by_row = keep.view(rows.total, -1, x.shape[-1])
    lengths = rows.own_lengths(by_row.shape[1])
    for part, length, generator in zip(by_row.split(rows.counts), lengths, generators, strict=True):
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
        if (packing := packing_of(x)) is not None:
            y = self._each(x.reshape(packing.total, -1), packing.counts(self.clients.rows.counts))
            return y.view(*x.shape[:-1], -1)
        rows = self.clients.rows
        if rows.even and type(self.alone) is nn.Linear:
            tensors = {attribute: self.clients.stacked[name] for attribute, name in self.names.items()}
            return _linear(x, tensors["weight"], tensors.get("bias"))
        return self._each(x, rows.of(len(x)))

    def _each(self, x: Tensor, counts: Counts) -> Tensor:
        """Runs client by client, each with its own tensors."""
        own = zip(x.split(counts), *(self.clients.stacked[name].unbind() for name in self.names.values()), strict=True)
        return torch.cat(
            [functional_call(self.alone, dict(zip(self.names, tensors, strict=True)), part) for part, *tensors in own]
        )


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns x W_k^T + b_k on equally many rows of each client; W (K, o, i), b (K, o)."""
    parts = x.reshape(len(weight), -1, x.shape[-1]).to(weight.dtype)
    y = torch.bmm(parts, weight.mT) if bias is None else torch.baddbmm(bias[:, None], parts, weight.mT)
    return y.view(*x.shape[:-1], -1)
