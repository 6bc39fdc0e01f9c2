"""Reads and fills the places in which PEFT keeps an adapter: its layers, and the modules that train in full."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from fedelta.models.dropout import SeededDropout

SLOT = "default"
"""The name of the one adapter inside PEFT."""


def factors_of(layer: Any) -> tuple[Tensor, Tensor]:
    """Returns (B, A) of a PEFT layer."""
    if SLOT in layer.lora_embedding_A:
        return layer.lora_embedding_B[SLOT], layer.lora_embedding_A[SLOT]
    return layer.lora_B[SLOT].weight, layer.lora_A[SLOT].weight


def put_factors(layer: Any, B: nn.Parameter, A: nn.Parameter, scale: float) -> None:
    """Gives a PEFT layer other factors, of any rank."""
    rank = len(A)
    if SLOT in layer.lora_embedding_A:
        layer.lora_embedding_A[SLOT], layer.lora_embedding_B[SLOT] = A, B
    else:
        layer.lora_A[SLOT].weight, layer.lora_B[SLOT].weight = A, B
        layer.lora_A[SLOT].out_features = layer.lora_B[SLOT].in_features = rank
    layer.r[SLOT], layer.scaling[SLOT] = rank, scale


def saved_modules(module: nn.Module) -> dict[str, ModulesToSaveWrapper]:
    """Returns PEFT's wrappers of modules_to_save by name."""
    return {n: m for n, m in module.named_modules() if isinstance(m, ModulesToSaveWrapper)}


def heads_of(module: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, str]]]:
    """Yields the tensors of modules_to_save under their plain names, with the module and the attribute that hold them."""
    for name, wrapper in saved_modules(module).items():
        trained = wrapper.modules_to_save[SLOT]
        for key, _ in trained.named_parameters():
            holder, _, attribute = key.rpartition(".")
            yield f"{name}.{key}", (trained.get_submodule(holder), attribute)


def trained_heads(module: nn.Module) -> list[nn.Module]:
    """Returns the modules_to_save that hold tensors."""
    trained = [wrapper.modules_to_save[SLOT] for wrapper in saved_modules(module).values()]
    return [m for m in trained if list(m.parameters())]


def seeded_dropout(layer: Any) -> SeededDropout | None:
    """Puts our dropout in the place of PEFT's in a layer, if it has one."""
    dropout = layer.lora_dropout[SLOT]
    if not isinstance(dropout, nn.Dropout):
        return None
    layer.lora_dropout[SLOT] = seeded = SeededDropout(dropout.p)
    return seeded


def plain_dropout(layer: Any) -> None:
    """Gives a layer PEFT's dropout again."""
    if isinstance(layer.lora_dropout[SLOT], SeededDropout):
        layer.lora_dropout[SLOT] = nn.Dropout(layer.lora_dropout[SLOT].p)
