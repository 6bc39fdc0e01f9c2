"""Holds every option of a run, with one set of defaults for Python and for the config."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, cast

from fedelta import sampling
from fedelta.adapted import CPU_TOKENS
from fedelta.demands import Check, demand_all, function, instance, number, one_of, optional, whole
from fedelta.engines.rounds import Snapshot
from fedelta.exchange.channel import Channel
from fedelta.exchange.spool import Spooling
from fedelta.method import Method
from fedelta.peers import Peer
from fedelta.topology.links import LinkDrop
from fedelta.tree import Adapter, BaseDelta

Score: TypeAlias = Callable[[Adapter, BaseDelta | None], Mapping[str, float]]
"""Metrics of a model on the common validation split."""

Weights: TypeAlias = Literal["examples", "uniform"]
"""Of the updates: in proportion to their senders' examples, or all alike."""


@dataclass(frozen=True)
class Choice:
    """The runner that answers, as it is chosen once for a run.

    Attributes:
        engine: the runner's name.
        token_budget: tokens in a pass of the batched engine.
    """

    engine: str
    token_budget: int = CPU_TOKENS


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The options of a run; `federate` and `gossip` build one from their keywords in their first line.

    Args:
        rounds: of the whole run; those before `start` count.
        seed: of the run: cohorts and the method's own draws.
        cohort: who takes part in which round; in gossip everyone does.
        weights: of the updates; None is "examples" with a server and "uniform" in gossip.
        max_share: the largest weight of an update, in (0, 1], whatever number of examples its sender claims.
        quorum: the updates that a round needs, as an int, or as a fraction of its cohort (1.0 is all of it).
        link_drop: in gossip, the probability that a message gets lost, or (t, sender, receiver) -> whether it did.
        score: rates uploads, for a method that needs validation.
        start: the snapshot after which to go on.
        debug: a client's error is raised rather than turned into a warning.
        engine: the name of a runner, "auto", or a function that visits a cohort (`engines.visits.VisitAll`).
        token_budget: tokens in a pass of the batched engine; chosen for the device if None.
        spool: whether updates wait for their aggregation on disk.
        channel: stages between the method and the wire.

    Raises:
        ValueError: naming the option that is of a wrong type or cannot be.
    """

    rounds: int
    seed: int = 0
    cohort: sampling.CohortRule = sampling.everyone
    weights: Weights | None = None
    max_share: float | None = None
    quorum: float = 0.5
    link_drop: LinkDrop = 0.0
    score: Score | None = None
    start: Snapshot | None = None
    debug: bool = False
    engine: str | Callable[..., object] = "auto"
    token_budget: int | None = None
    spool: Spooling = "auto"
    channel: Channel = field(default_factory=Channel)

    def __post_init__(self) -> None:
        demand_all(self, CHECKS)

    def cohort_size(self, peers: Sequence[Peer]) -> int:
        """Counts the peers that a round asks; where the rule varies, those of round 0."""
        return len(self.cohort(0, peers, self.seed))


def _quorum(name: str, value: object) -> None:
    """Checks a number of updates, or a fraction of a cohort."""
    number()(name, value)
    sampling.share(cast("float", value), value if isinstance(value, int) else 1, name)


def _link_drop(name: str, value: object) -> None:
    """Checks a probability, or a rule."""
    if not callable(value):
        number(least=0, most=1)(name, value)


def _engine(name: str, value: object) -> None:
    if not isinstance(value, str) and not callable(value):
        raise ValueError(f"{name} must be the name of a runner or a function that visits a cohort, got {value!r:.60}")


CHECKS: Mapping[str, Check] = {
    "rounds": whole(least=0),
    "seed": whole(),
    "cohort": function(),
    "weights": optional(one_of("examples", "uniform")),
    "max_share": optional(number(above=0, most=1)),
    "quorum": _quorum,
    "link_drop": _link_drop,
    "score": optional(function()),
    "start": optional(instance(Snapshot, "the `snapshot` of a round, or None")),
    "debug": one_of(True, False),
    "engine": _engine,
    "token_budget": optional(whole(least=1)),
    "spool": one_of(True, False, "auto"),
    "channel": instance(Channel, "a Channel"),
}
"""What each option may be."""


def check_given(method: object, clients: object, template: object) -> None:
    """Raises TypeError for a method, clients or a template that are of another kind, saying what to give instead."""
    if not isinstance(method, Method):
        raise TypeError(f"method must be a method, not {_kind(method)}{_remedy(method)}")
    check_clients(clients)
    if template is not None and not isinstance(template, Adapter):
        raise TypeError(f"template must be an Adapter, or None for what the clients hold, not {_kind(template)}")


def check_clients(clients: object) -> None:
    """Raises TypeError for something else than clients."""
    if not isinstance(clients, Sequence) or isinstance(clients, str | bytes):
        raise TypeError(f"clients must be a list of clients, or ClientsOnDemand, not {_kind(clients)}")
    listed = cast("Sequence[object]", clients) if isinstance(clients, list | tuple) else ()
    for client in listed:
        if not isinstance(getattr(client, "peer", None), Peer):
            raise TypeError(f"clients must be clients, each with its `peer`, but one is {_kind(client)}")


def _kind(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"{value!r:.60}"


def _remedy(method: object) -> str:
    """Returns how a method is made of a name or a class."""
    if isinstance(method, str):
        return f": get_method({method!r}) makes one"
    if isinstance(method, type) and issubclass(method, Method):
        name = method.__module__.rpartition(".")[2]
        return f": get_method({name!r}), or {method.__name__}(), makes one"
    return ': get_method("fedavg") makes one'
