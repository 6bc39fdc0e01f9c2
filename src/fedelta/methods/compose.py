"""Compose: several local rules and a server optimiser around one method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

from fedelta.method import Method
from fedelta.methods import named_method
from fedelta.methods._compose.composition import Composite
from fedelta.methods._compose.optimisers import ServerOptimizer
from fedelta.methods._compose.parts import Parts, claims
from fedelta.methods._compose.rules import LocalRule
from fedelta.methods.fedavg import FedAvg

Choice: TypeAlias = Method | str | Mapping[str, Any]
"""A method; or its name; or {"name": its name, and its hyper-parameters}, as in a config file."""


@dataclass(frozen=True, kw_only=True)
class Compose(Composite, Method):
    """A method with other rules for its clients, and an optimiser for its server.

    Algorithm:
        init            each part's own
        client k        as `server`; every gradient goes through the local rules first, and through the hook of `server` last:
                        proximal terms, then control variates, then projections, whatever the order in which they are given;
                        penalties of `server` are in the gradient already
        server          as `server`, perhaps with the weights of a rule; what that adds to the factors goes through the local
                        rules that have a say in it, and then to `optimizer`
        travels         what each part sends, under its own name
        scale           that of `server`

    Parts that add up, or keep, vectors in the coordinates of the factors (Scaffold, FedDyn, FedNova, FedSMOO, FedLADA,
    FedGLOMO, and all optimisers) need a server that averages factors; over one that factorises the product anew, or moves the
    base, they are refused. So are rules that send up something of each trained tensor over a method that keeps some of them at
    the client, and two rules that both ask for gradients at another point (FedSAM, FedSMOO, FedGLOMO).

    Args:
        local: rules of clients: fedprox, scaffold, feddyn, fednova, fedzmg, fedsam, fedsmoo, fedlada, fedglomo; one, or
            several.
        server: the method in the middle.
        optimizer: the server's: fedavgm, fedadam, fedyogi or fedadagrad.
    """

    local: Choice | Sequence[Choice] = ()
    server: Choice = "fedavg"
    optimizer: Choice | None = None

    paper = "combines methods"
    follows = "no paper of its own"

    def __post_init__(self) -> None:
        # Names and mappings of a config file become methods, so that the fields, and the resolved config, hold what is run.
        object.__setattr__(self, "local", tuple(sorted(self._rules(), key=lambda rule: rule.order)))
        self._resolve_server()
        super().__post_init__()
        self.parts.demand_alone()
        self.parts.demand_stable()
        self.parts.demand_public()

    def _rules(self) -> list[LocalRule]:
        rules: list[LocalRule] = []
        for choice in [self.local] if isinstance(self.local, Method | str | Mapping) else self.local:
            rule = _method(choice, "local")
            if not isinstance(rule, LocalRule):
                raise ValueError(f"{type(rule).__name__} is no local rule such as fedprox or scaffold; give it as `server`")
            rules.append(rule)
        names = [rule.name for rule in rules]
        if len(set(names)) < len(names):
            raise ValueError(f"each local rule can be there once, got {names}")
        return rules

    def _resolve_server(self) -> None:
        server = _method(self.server, "server")
        if isinstance(server, Composite):
            raise ValueError(f"{type(server).__name__} is no method for the middle; give it as `local` or `optimizer`")
        optimizer = None if self.optimizer is None else _method(self.optimizer, "optimizer")
        if not isinstance(optimizer, ServerOptimizer | None):
            raise ValueError(f"{type(optimizer).__name__} is no server optimiser such as fedavgm or fedadam")
        object.__setattr__(self, "server", server)
        object.__setattr__(self, "optimizer", optimizer)

    def _for_server(self, server: Method) -> Method:
        return replace(self, server=server)

    @property
    def parts(self) -> Parts:
        local = cast("Sequence[LocalRule]", self.local)
        return Parts(local, cast("Method", self.server), cast("ServerOptimizer | None", self.optimizer))


def _method(choice: Choice, where: str) -> Method:
    if isinstance(choice, Method):
        return choice
    settings = {"name": choice} if isinstance(choice, str) else dict(choice)
    if not isinstance(settings.get("name"), str):
        raise ValueError(f"`{where}` needs a name: write {{name: ..., and its settings}}, or the name alone; got {choice!r}")
    return named_method(**settings)


class _OfParts:
    """A claim of `Compose`: on an instance what its parts make of it, on the class that of the defaults."""

    def __init__(self, claim: str, default: object) -> None:
        self.claim, self.default = claim, default

    def __get__(self, made: Compose | None, cls: type[Compose]) -> object:
        return self.default if made is None else {**made.parts.claims()}[self.claim]


for _claim, _value in claims(FedAvg, []).items():
    setattr(Compose, _claim, _OfParts(_claim, "what the parts send" if _claim == "travels" else _value))
