"""Holds every option of a run, with one set of defaults for Python and for the config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from fedelta import sampling
from fedelta.adapted import CPU_TOKENS
from fedelta.engines.rounds import Snapshot
from fedelta.exchange.channel import Channel
from fedelta.exchange.spool import Spooling
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
        ValueError: naming the option that cannot be.
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
        if self.rounds < 0:
            raise ValueError(f"rounds must not be negative, got {self.rounds}")
        if self.weights not in (None, "examples", "uniform"):
            raise ValueError(f"weights must be 'examples' or 'uniform', got {self.weights!r}")
        if self.max_share is not None and not 0 < self.max_share <= 1:
            raise ValueError(f"max_share must lie in (0, 1], got {self.max_share}")
        sampling.share(self.quorum, self.quorum if isinstance(self.quorum, int) else 1, "quorum")
        if isinstance(self.link_drop, float) and not 0 <= self.link_drop <= 1:
            raise ValueError(f"link_drop must be a probability, got {self.link_drop}")
        if self.token_budget is not None and self.token_budget < 1:
            raise ValueError(f"token_budget must be at least 1, got {self.token_budget}")
        if self.spool not in (True, False, "auto"):
            raise ValueError(f"spool must be true, false or 'auto', got {self.spool!r}")
