"""Finds and installs the passes that compute less.

They lie in `fedelta.models.fast`, one file each, and are found by the names of the files: no other module imports them, nor do
they import one another. So a file that is deleted, or a new one, needs no line anywhere else; without any, passes are
transformers' own.

A module there has three names:

    SETTING    the field of `PassSettings` that asks for it
    ORDER      an int: lower ones are installed first, and taken out last
    install    (model, settings) -> a `FastPass`, or None where it is not asked for, or not safe, for this model
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, Protocol, TypeAlias, cast

from torch import nn

from fedelta.models.products import Product
from fedelta.registry import names_in

Backend: TypeAlias = Literal["default", "onednn", "bf16"]
"""Ways to form a frozen product. "bf16" rounds weights, inputs and results to bfloat16: a relative error of about 3e-3."""

FOLDER = "fedelta.models.fast"


@dataclass(frozen=True, kw_only=True)
class PassSettings:
    """Settings of a model's passes.

    Args:
        gemm: how products with frozen weights are formed on a CPU.
        compact: computes no padding, and no rows of the last layer that are not read.
        cache_activations: MiB of the device's memory in which to keep what enters the lowest layer that trains.
        base_dropout: leaves the base model's own dropout on in training.

    Raises:
        ValueError: for `cache_activations` under `base_dropout`.
    """

    gemm: Backend | Literal["auto"] = "auto"
    compact: bool = True
    cache_activations: int = 0
    base_dropout: bool = False

    def __post_init__(self) -> None:
        if self.cache_activations and self.base_dropout:
            raise ValueError("base_dropout draws anew in every pass, so nothing can be kept: set cache_activations to 0")

    def demanded(self) -> set[str]:
        """Returns the fields that ask for a pass outright; the others allow one where it gains something."""
        asked = {"gemm": self.gemm not in ("auto", "default"), "cache_activations": self.cache_activations > 0}
        return {name for name, is_asked in asked.items() if is_asked}


class FastPass(ABC):
    """A change of a model's passes, in effect until `remove`.

    Attributes:
        gemm: the backend of frozen products, for the pass that forms them.
        product: what forms a frozen product, for others to call; None leaves it to torch.
        skips_padding: says that padding is left out of the layers.
    """

    gemm: Backend | None = None
    product: Product | None = None
    skips_padding: bool = False

    @abstractmethod
    def remove(self) -> None:
        """Leaves the model as it was."""


class Trained(Protocol):
    """A model as a fast pass sees it."""

    @property
    def module(self) -> nn.Module:
        """The model itself, which a task calls."""
        ...

    @property
    def trained_modules(self) -> Sequence[nn.Module]:
        """The modules that carry an adapter or train in full."""
        ...


class _Module(Protocol):
    """A module of the folder."""

    SETTING: str
    ORDER: int

    def install(self, model: Trained, settings: PassSettings) -> FastPass | None: ...


def installed(model: Trained, settings: PassSettings) -> Iterator[FastPass]:
    """Installs one pass after another, and yields each as soon as it is there.

    Raises:
        ValueError: before the first, for settings that ask outright for a pass that is not there.
    """
    modules = _modules()
    if missing := sorted(settings.demanded() - {m.SETTING for m in modules}):
        raise ValueError(f"{FOLDER} has no file for {', '.join(missing)}: leave the setting out, or install fedelta anew")
    for module in modules:
        found = module.install(model, settings)
        if found is not None:
            yield found


def _modules() -> list[_Module]:
    """Returns the modules of the folder, in their order."""
    try:
        import_module(FOLDER)
    except ModuleNotFoundError as error:
        if error.name != FOLDER:
            raise
        return []
    modules = [cast("_Module", import_module(f"{FOLDER}.{name}")) for name in names_in(FOLDER)]
    return sorted(modules, key=lambda m: m.ORDER)
