"""TAD-LoRA: without a server, one factor is trained for as many rounds as the graph needs, and both are mixed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fedelta import lowrank as lr
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate, in_order, merge
from fedelta.method import Client, ClientState, Method, State
from fedelta.tree import Adapter, BaseDelta, Factor, Message


@dataclass(frozen=True, kw_only=True)
class TadLoRA(Method):
    """Alternating training over gossip: the frozen factor is mixed too, or nodes would go on disagreeing about it.

    Algorithm:
        init            A random and common to all, B = 0, one rank r
        round t         F = B while floor(t / T) is even, else A; the same for all, whatever a node has missed
        node i          trains F (and the head) from what it has; the other factor stays as it is
        mixing          B_i <- sum_j W_ij B_j,   A_i <- sum_j W_ij A_j,   head likewise
        travels         A, B and head to every neighbour in every round; half of it is what RoLoRA sends
        scale           part of the value: a B_j with another scale s_j is first multiplied by s_j / s_i; A_j stays as it is
        T               round(c / sqrt(1 - rho_sq)) within [1, R / 2]: the sparser the graph, the longer a factor stays

    B goes first: while B = 0 the gradient of A is zero.

    Args:
        interval: T, taken as it is; None for the rule, with rho_sq of the graph (0 for a server) and R the rounds of the run.
        c: the constant. That T grows as 1 / sqrt(1 - rho) is reported; the constant is ours, from one published optimum, so
            treat it as a hyper-parameter.
        snap: moves the rule's T to the nearest one that divides the rounds into equal shares for both factors.
        freeze_head: the head is neither trained nor sent, as in the reported experiments; other methods here train theirs.

    ADF-LoRA, the same authors' arXiv 2511.18291, is a fixed T: its best was `interval=5`. With T of the whole run or more
    this is FFA-LoRA; on a complete graph it is RoLoRA with that period.

    Source: Wang et al., "Stabilizing Decentralized Federated Fine-Tuning via Topology-Aware Alternating LoRA", arXiv
    2602.00451 (2026). The full text was not available: this follows abstract and introduction, notes by others and a public
    reproduction. The order of the factors, the rule's constant and Metropolis weights are our decisions.
    """

    interval: int | None = None
    c: float = 3.0
    snap: bool = False
    freeze_head: bool = False

    paper = "Wang et al. 2026, TAD-LoRA, arXiv 2602.00451"
    follows = "others' readings"
    reported = (
        "mean over four GLUE tasks, RoBERTa-large, 10 clients, edges active with probability .02 / .1 / .5: .8032 / "
        ".8418 / .8731 against plain LoRA .7798 / .8375 / .8754. From a single second-hand reader, unverified"
    )
    decentralised = True
    coordinates = "factors"
    asks = frozenset({"trainable"})
    aliases = ("adf_lora",)
    lawful: ClassVar[Mapping[str, Any]] = {"interval": 1}  # the laws ask without an engine, which would fill it in

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interval is not None and self.interval < 1:
            raise ValueError(f"interval must be at least 1 round, got {self.interval}")
        if not self.c > 0:
            raise ValueError(f"c must be above 0, got {self.c}")

    def for_topology(self, rounds: int, rho_sq: Callable[[], float]) -> TadLoRA:
        if self.interval is not None:
            return self
        return replace(self, interval=interval_for(rho_sq(), rounds, c=self.c, snap=self.snap))

    def factor(self, t: int) -> Factor:
        """Returns the factor that round t trains. Raises ValueError while the interval is open."""
        if self.interval is None:
            raise ValueError("tad_lora has no interval yet: call for_topology, which an engine does, or give interval")
        return "B" if t // self.interval % 2 == 0 else "A"

    def upload(self, adapter: Adapter) -> Message:
        return {"layers": adapter.layers} if self.freeze_head else {"adapter": adapter}

    def local_update(self, t: int, down: Message, client_state: ClientState, client: Client) -> tuple[Message, ClientState]:
        start, factor = down["adapter"], self.factor(t)
        frozen = dict.fromkeys(start.dense) if self.freeze_head else {}
        result = client.train(t, start, trainable={**dict.fromkeys(start.layers, factor), **frozen})
        return self.upload(result.adapter), client_state

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        sent = [self.position(t, state, u)[0] for u in in_order(updates)] if self.freeze_head else None
        return {"adapter": merge(_mean, updates, state["adapter"], adapters=sent)}

    def position(self, t: int, state: State, update: ClientUpdate) -> tuple[Adapter, BaseDelta | None]:
        if self.freeze_head:
            return replace(state["adapter"], layers=update.content["layers"]), None
        return update.content["adapter"], None


def interval_for(rho_sq: float, rounds: int, *, c: float = 3.0, snap: bool = False) -> int:
    """Returns T = round(c / sqrt(1 - rho_sq)), no less than 1 and no more than half of the rounds.

    Args:
        rho_sq: the share of the squared distance to consensus that a round of mixing leaves; 0 with a server.
        rounds: R, of the run.
        snap: then to the nearest T with 2 T a divisor of R, the larger one of two.

    Raises:
        ValueError: to snap for an odd number of rounds, which no T shares out equally.
    """
    most = max(1, rounds // 2)
    wanted = c / math.sqrt(max(1 - rho_sq, 1e-12))  # a graph that is not connected has rho_sq = 1
    interval = min(most, max(1, round(min(wanted, most))))
    if not snap:
        return interval
    if rounds % 2:
        raise ValueError(f"{rounds} rounds cannot be shared out equally between two factors: make them even, or drop snap")
    equal_shares = [T for T in range(1, most + 1) if rounds % (2 * T) == 0]
    return min(equal_shares, key=lambda T: (abs(T - interval), -T))


def _mean(weights: Sequence[float], xs: Sequence[LoRA], old: LoRA) -> LoRA:
    if any(x.rank != old.rank for x in xs):
        ranks = [x.rank for x in xs]
        raise ValueError(f"needs rank {old.rank} of all, got {ranks}; use a method for unequal ranks: zeropad or flexlora")
    return lr.mean_factors(weights, [lr.rescale(x, old.scale) for x in xs])
