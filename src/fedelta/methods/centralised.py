"""Training on the pooled data: the upper line of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate, merge
from fedelta.method import Client, Method, State
from fedelta.peers import Peer
from fedelta.tree import Adapter


class PoolingClient(Client, Protocol):
    """A client that can make one client of many."""

    def pool(self, clients: Sequence[Client], cohort: int | None = None) -> Client:
        """Returns a client with the data of all `clients`, and as many steps in a round as `cohort` of them take together."""
        ...


@dataclass(frozen=True, kw_only=True)
class Centralised(Method):
    """One client that holds the data of all of them.

    It takes as many steps in a round as a cohort takes together, in the mean over cohorts and rounded, so that it bounds what a
    method does with the same compute. `federation.participation` sets the size of the cohort, and has no other meaning here.

    Algorithm:
        init            A random, B = 0
        client          trains A, B and head on all data from what it got, in every round
                        steps: sum_k steps_k x (clients in a cohort) / (all clients)
        server          keeps what comes back
        travels         nothing in truth; the ledger shows the one client's adapter, up and down
    """

    paper = "baseline"
    follows = "no paper of its own"
    coordinates = "factors"
    one_shot = False
    travels = "nothing (the data are pooled)"

    def population(self, clients: Sequence[Client], cohort: Callable[[], int] | None = None) -> Sequence[Client]:
        if not hasattr(clients[0], "pool"):
            raise TypeError(f"centralised pools data, and a {type(clients[0]).__name__} has no method `pool` for that")
        pool = cast(PoolingClient, clients[0]).pool
        return [pool(list(clients), None if cohort is None else cohort())]  # however many: it needs the data of all

    def check(self, template: Adapter, peers: Sequence[Peer]) -> None:
        if len(peers) != 1:
            raise ValueError(
                f"centralised trains one client on pooled data, got {len(peers)} peers; give the engine "
                "what method.population(clients) returns"
            )

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        return {"adapter": merge(_only, updates, state["adapter"])}


def _only(weights: Sequence[float], xs: Sequence[LoRA], old: LoRA) -> LoRA:
    if len(xs) != 1:
        raise ValueError(f"centralised has one client, got updates of {len(xs)}")
    return xs[0]
