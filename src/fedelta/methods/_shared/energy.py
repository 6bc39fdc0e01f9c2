"""Limits and restores the norm of a delta."""

from __future__ import annotations

import torch

from fedelta import lowrank as lr
from fedelta.lowrank import LoRA


def capped(x: LoRA, cap: float | None) -> LoRA:
    """Returns x brought to the Frobenius norm `cap` if it has a larger one."""
    if cap is None:
        return x
    size = float(lr.norm(x))
    return x if size <= cap else lr.with_factor(x, "B", x.B * (cap / size))


def with_norm_of(x: LoRA, like: LoRA) -> LoRA:
    """Returns x multiplied to the norm of `like`, the factor shared out evenly; a zero delta stays zero."""
    size = float(lr.norm(x.to(torch.float64)))
    if size == 0:
        return x
    rho = (float(lr.norm(like.to(torch.float64))) / size) ** 0.5
    return LoRA(x.B * rho, x.A * rho, x.scale)


def check_cap(cap: float | None) -> None:
    """Raises ValueError for a cap that is not positive."""
    if cap is not None and not cap > 0:
        raise ValueError(f"norm_cap must be positive, or None for no cap, got {cap}")
