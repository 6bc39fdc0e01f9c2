"""Local rules: a `LocalRule` is a method by itself, over `fedavg`; `compose` puts several over another one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.merging import ClientUpdate
from fedelta.method import Method
from fedelta.methods._compose.composition import Composite
from fedelta.methods._compose.parts import Part, Parts, claims
from fedelta.methods.fedavg import FedAvg
from fedelta.peers import Peer, demand_equal_ranks, kinds_of, named
from fedelta.tree import Adapter, Tensors


@dataclass(frozen=True)
class LocalRule(Part, Composite, Method):
    """Something that clients do differently.

    A subclass overrides what it needs of `Part`: mostly `hook`, which changes gradients, and `leave`, which says what goes up.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for claim, value in claims(FedAvg, [cls]).items():
            setattr(cls, claim, value)

    @property
    def parts(self) -> Parts:
        return Parts([self], FedAvg())

    def check_peers(self, template: Adapter, peers: Sequence[Peer]) -> None:
        if self.equal_ranks:
            demand_equal_ranks(self.name, template, peers)
        if self.one_scale:
            _demand_one_scale(self.name, template, peers)


def _demand_one_scale(name: str, template: Adapter, peers: Sequence[Peer]) -> None:
    """Raises ValueError if two peers apply a layer with different scales."""
    for layer, x in template.layers.items():
        kinds = kinds_of(peers)
        if len({p.scale_of(layer, p.rank_of(layer)) for p in kinds}) > 1:
            scales = {p.id: p.scale_of(layer, p.rank_of(layer)) for p in named(peers)}
            raise ValueError(
                f"{name} needs one scale, but layer {layer!r} of rank {x.rank} has scales {scales} by client, and a "
                "gradient of factors changes with theirs: give all clients one lora_alpha"
            )


def check_like(name: str, updates: Sequence[ClientUpdate], entry: str, what: str, like: Tensors) -> None:
    """Raises ValueError unless each client sent, as `entry`, finite tensors with names and shapes of those in `like`."""
    for u in updates:
        sent, who = u.content.get(entry), f"client {u.sender.id}"
        if not isinstance(sent, Mapping):
            raise ValueError(f"{who} sent no {what}: it must run {name} too")
        tensors = cast("Tensors", sent)
        tree.check_finite(tensors, who)
        for n, x in tensors.items():
            if n not in like or x.shape != like[n].shape:
                known = tuple(like[n].shape) if n in like else "no such tensor"
                raise ValueError(
                    f"{who} sent a {what} for {n!r} of shape {tuple(x.shape)}, where the server has {known}; "
                    "it must be of the tensors that are trained"
                )


def mean_by_name(weights: Sequence[float], parts: Sequence[Tensors]) -> dict[str, Tensor]:
    """Returns the weighted mean of tensors by name, where one that somebody lacks counts as zero at him."""
    likes: dict[str, Tensor] = {}
    for part in parts:
        likes |= part
    zeros = {n: torch.zeros_like(x) for n, x in likes.items()}
    return tree.mean(weights, [{**zeros, **part} for part in parts])


TINY = 1e-12
"""Added to a norm that something is divided by."""


def of_norm(tensors: Tensors, length: float) -> dict[str, Tensor]:
    """Scales tensors together to a norm, over all of them; zeros stay zeros."""
    if not tensors:
        return {}
    norm = torch.stack([x.detach().to(lr.wide(x.dtype)).square().sum() for x in tensors.values()]).sum().sqrt()
    return {n: (x * (length / (norm + TINY))).to(x) for n, x in tensors.items()}


ELSEWHERE = "asks for gradients at another point of each step"
"""What a rule does alone whose hook is `Elsewhere`."""


class Elsewhere(ABC):
    """A hook that asks for gradients at another point of each step, and refuses a client that does not take them there."""

    _asked = -1

    @abstractmethod
    def displacement(self, gradients: Tensors, parameters: Tensors, step: int) -> Tensors | None:
        """Returns what `offset` does; step 0 comes again, for a request that failed in company is answered again."""

    @abstractmethod
    def changed(self, gradients: Tensors, parameters: Tensors, step: int) -> Tensors:
        """Returns what the hook makes of the gradients there."""

    def offset(self, gradients: Tensors, parameters: Tensors, step: int) -> Tensors | None:
        self._asked = step
        return self.displacement(gradients, parameters, step)

    def __call__(self, gradients: Tensors, parameters: Tensors, step: int) -> Tensors:
        if self._asked != step:
            raise ValueError(
                "this client takes no gradients at another point: before it calls a gradient hook, its `train` must ask the "
                "hook for its `offset`, see fedelta.method.Displacing"
            )
        return self.changed(gradients, parameters, step)


class Pull:
    """A hook that adds strength (x - anchor) to the gradients."""

    def __init__(self, strength: float, anchor: Tensors) -> None:
        self.strength, self.anchor = strength, anchor

    def __call__(self, gradients: Tensors, parameters: Tensors, step: int) -> Tensors:
        if step == 0:  # once for all steps: the anchor comes from the server, the parameters may live on a GPU
            self.anchor = {n: self.anchor[n].to(x) for n, x in parameters.items()}
        return {n: g + self.strength * (parameters[n].detach() - self.anchor[n]) for n, g in gradients.items()}
