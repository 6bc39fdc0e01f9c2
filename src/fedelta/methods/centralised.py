"""Training on the pooled data: the upper line of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate, merge
from fedelta.method import Client, Method, State
from fedelta.peers import Peer
from fedelta.tree import Adapter


class PoolingClient(Client, Protocol):
    """A client that can make one client of many."""

    def pool(self, clients: Sequence[Client]) -> Client:
        """Returns a client with the data of all `clients`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Centralised(Method):
    """One client that holds the data of all of them.

    Algorithm:
        init            A random, B = 0
        client          trains A, B and head on all data from what it got
        server          keeps what comes back
        travels         nothing in truth; the ledger shows the one client's adapter, up and down
    """

    paper = "baseline"
    follows = "no paper of its own"
    coordinates = "factors"
    one_shot = False
    travels = "nothing (the data are pooled)"

    def population(self, clients: Sequence[Client]) -> Sequence[Client]:
        if not hasattr(clients[0], "pool"):
            raise TypeError(f"centralised pools data, and a {type(clients[0]).__name__} has no method `pool` for that")
        return [cast(PoolingClient, clients[0]).pool(list(clients))]  # however many: it needs the data of all

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
