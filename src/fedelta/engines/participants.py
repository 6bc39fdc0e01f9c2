"""Who takes part in a run: clients by id, and their peers, whether they were given as a list or are made on demand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fedelta.engines.guards import check_templates
from fedelta.engines.tables import Table
from fedelta.method import Client
from fedelta.peers import Peer, Peers, demand_different_ids, kinds_of
from fedelta.population import ClientsOnDemand
from fedelta.tree import Adapter


class Doors(Mapping[int, Client]):
    """Clients on demand by id; each is looked at when it is made, as those of a list are before the first round.

    Args:
        clients: who there are.
        template: the adapter from whose rows of A each must begin; not compared without it.
    """

    def __init__(self, clients: ClientsOnDemand, template: Adapter | None = None) -> None:
        self.clients, self._template = clients, template

    def __getitem__(self, k: int) -> Client:
        client = self.clients.client(k)
        if self._template is not None:
            check_templates([client], self._template)
        return client

    def __contains__(self, k: object) -> bool:
        return isinstance(k, int) and self.clients.peers.position(k) is not None

    def __iter__(self) -> Iterator[int]:
        return iter(self.clients.peers.ids)

    def __len__(self) -> int:
        return len(self.clients)


def in_order(clients: Sequence[Client]) -> Sequence[Client]:
    """Returns clients in the order of their ids."""
    return clients if isinstance(clients, ClientsOnDemand) else sorted(clients, key=lambda c: c.peer.id)


def by_id(clients: Sequence[Client], template: Adapter | None = None) -> Mapping[int, Client]:
    """Returns clients, given in the order of ids, by id.

    Args:
        clients: in the order of ids.
        template: what clients on demand are compared with once they are made; those of a list are there to be compared now.

    Raises:
        ValueError: for two clients with one id.
    """
    if isinstance(clients, ClientsOnDemand):
        return Doors(clients, template)
    demand_different_ids([c.peer.id for c in clients])
    return {c.peer.id: c for c in clients}


def samples(clients: Mapping[int, Client]) -> Sequence[Client]:
    """Returns all clients of a list; of those on demand one of each kind, and the last."""
    return clients.clients.samples() if isinstance(clients, Doors) else list(clients.values())


def peers_of(clients: Mapping[int, Client]) -> Peers:
    """Returns the peers of clients by id."""
    return clients.clients.peers if isinstance(clients, Doors) else _Listed(clients)


class _Listed(Peers):
    """The peers of clients that are all there: their own objects."""

    def __init__(self, clients: Mapping[int, Client]) -> None:
        self._clients, self._ids = clients, list(clients)

    @property
    def ids(self) -> Sequence[int]:
        return self._ids

    @property
    def kinds(self) -> Sequence[Peer]:
        return self._kinds

    @cached_property
    def _kinds(self) -> Sequence[Peer]:
        return kinds_of(list(self))  # once a run: nobody changes what kind it is

    @property
    def examples(self) -> npt.NDArray[Any]:
        return np.array([p.num_examples for p in self])

    def peer(self, k: int) -> Peer:
        return self._clients[k].peer

    def __iter__(self) -> Iterator[Peer]:
        return (client.peer for client in self._clients.values())


class Holding(Peers):
    """Lists the peers of a run at one time: as it began with them, each with the version of the base that it then holds.

    Those in `kinds` are as they began.
    """

    def __init__(self, peers: Peers, base_versions: Table[int]) -> None:
        self._peers, self._base_versions = peers, base_versions

    @property
    def ids(self) -> Sequence[int]:
        return self._peers.ids

    @property
    def kinds(self) -> Sequence[Peer]:
        return self._peers.kinds

    @property
    def examples(self) -> npt.NDArray[Any]:
        return self._peers.examples

    def peer(self, k: int) -> Peer:
        return holding(self._peers.peer(k), self._base_versions.get(k, 0))

    def __iter__(self) -> Iterator[Peer]:
        held = dict(self._base_versions)  # an older version of a table is slow to ask for each client
        return (holding(peer, held.get(peer.id, 0)) for peer in self._peers)


def holding(peer: Peer, version: int) -> Peer:
    """Returns a peer with the version of the base that it holds."""
    return peer if peer.base_version == version else replace(peer, base_version=version)  # copies of all would be slow
