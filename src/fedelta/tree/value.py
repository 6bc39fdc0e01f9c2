"""Values that clients train and that move the base: `Adapter`, `BaseDelta`, and messages of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from torch import Tensor

from fedelta.lowrank import LoRA

Tensors: TypeAlias = Mapping[str, Tensor]


Message: TypeAlias = Mapping[str, Any]
"""What travels: nested mappings, lists and tuples of Adapter, BaseDelta, LoRA, Tensor, bool, int, float, str, None."""


Factor: TypeAlias = Literal["A", "B"]


@dataclass(frozen=True, eq=False)
class Adapter:
    """The tensors that a client trains.

    Attributes:
        layers: deltas by layer name, as PEFT names its target modules.
        dense: other trained tensors by name, such as a classifier head.
        base: fingerprint of the frozen model; ignored by algebra, checked by every merge. None matches anything.
    """

    layers: Mapping[str, LoRA]
    dense: Tensors = field(default_factory=dict[str, Tensor])
    base: str | None = None

    def __repr__(self) -> str:
        ranks = sorted({x.rank for x in self.layers.values()})
        return f"Adapter({len(self.layers)} layers, ranks {ranks}, {len(self.dense)} dense tensors, base {self.base})"


@dataclass(frozen=True, eq=False)
class BaseDelta:
    """The terms that have been added to the frozen base between two versions of it.

    Attributes:
        version: of the base once the delta is added.
        terms: by layer, the additions in order: LoRA factors, or a dense tensor (o, i) once that is the smaller. With
            `since` 0 they are the whole sum; otherwise one term for each version after `since`.
        since: the version that it is added to; 0 is the pretrained base, which a client without history holds.
    """

    version: int
    terms: Mapping[str, Sequence[LoRA | Tensor]]
    since: int = 0

    def __repr__(self) -> str:
        most = max((len(terms) for terms in self.terms.values()), default=0)
        return f"BaseDelta(version {self.version} since {self.since}, {len(self.terms)} layers of up to {most} terms)"


class Checked(Mapping[str, Any]):
    """A mapping whose tensors were found finite when they arrived; `check_finite` does not look at them again."""
