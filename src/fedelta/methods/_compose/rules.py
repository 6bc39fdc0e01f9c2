"""Local rules: a `LocalRule` is a method by itself, over `fedavg`; `compose` puts several over another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


def demand_one_scale(name: str, template: Adapter, peers: Sequence[Peer]) -> None:
    """Raises ValueError if two peers apply a layer with different scales."""
    for layer, x in template.layers.items():
        kinds = kinds_of(peers)
        if len({p.scale_of(layer, p.rank_of(layer)) for p in kinds}) > 1:
            scales = {p.id: p.scale_of(layer, p.rank_of(layer)) for p in named(peers)}
            raise ValueError(
                f"{name} needs one scale, but layer {layer!r} of rank {x.rank} has scales {scales} by client, and a "
                "gradient of factors changes with theirs: give all clients one lora_alpha"
            )


class Pull:
    """A hook that adds strength (x - anchor) to the gradients."""

    def __init__(self, strength: float, anchor: Tensors) -> None:
        self.strength, self.anchor = strength, anchor

    def __call__(self, gradients: Tensors, parameters: Tensors, step: int) -> Tensors:
        if step == 0:  # once for all steps: the anchor comes from the server, the parameters may live on a GPU
            self.anchor = {n: self.anchor[n].to(x) for n, x in parameters.items()}
        return {n: g + self.strength * (parameters[n].detach() - self.anchor[n]) for n, g in gradients.items()}
