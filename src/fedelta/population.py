"""A large population: peers as columns, and clients that are made when their turn comes.

    peers = Population(Peer(0, rank=8), num_examples)                   # (1_000_000,) numbers of examples
    clients = ClientsOnDemand(peers, make)                              # make(peer) -> Client
    federate(method, clients, rounds=50, cohort=sampling.uniform(100))

A million peers take nine bytes each. A round makes the peers and the clients of its cohort, and drops them.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from fedelta.method import MOST, Client
from fedelta.peers import FEW, Peer, Peers


class Population(Peers):
    """Peers as columns: the kind of each, its number of examples, and its id where ids do not just count.

    Args:
        kinds: peers that all others are copies of, but for id and number of examples; or the only one.
        num_examples: shape (peers,), in the order of ids.
        kind: shape (peers,), positions in `kinds`; without it all are of the first one.
        ids: shape (peers,), ascending; 0, 1, 2, ... without it.

    Raises:
        ValueError: for columns that do not fit together.
    """

    def __init__(
        self,
        kinds: Peer | Sequence[Peer],
        num_examples: npt.ArrayLike,
        *,
        kind: npt.ArrayLike | None = None,
        ids: npt.ArrayLike | None = None,
    ) -> None:
        self._models = [kinds] if isinstance(kinds, Peer) else list(kinds)
        self._examples = _integers("num_examples", num_examples)
        size = len(self._examples)
        self._model_of = _positions(kind, size, len(self._models))
        self._ids = range(size) if ids is None else _ascending(ids, size)
        first = np.unique(self._model_of, return_index=True)[1]
        self._kinds = [self[at] for at in sorted(first.tolist())]

    @property
    def ids(self) -> Sequence[int]:
        return self._ids

    @property
    def kinds(self) -> Sequence[Peer]:
        return self._kinds

    @property
    def examples(self) -> npt.NDArray[Any]:
        return self._examples

    def peer(self, k: int) -> Peer:
        at = self.position(k)
        if at is None:
            raise KeyError(k)
        return self._at(at)

    def position(self, k: int) -> int | None:
        """Returns the place of an id in the columns; None for one that nobody has."""
        at = bisect_left(self._ids, k)
        return at if at < len(self._ids) and self._ids[at] == k else None

    @overload
    def __getitem__(self, at: int) -> Peer: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Peer]: ...
    def __getitem__(self, at: int | slice) -> Peer | Sequence[Peer]:
        return self._at(range(len(self))[at]) if isinstance(at, int) else [self._at(k) for k in range(len(self))[at]]

    def _at(self, at: int) -> Peer:
        """Returns the peer at a position; all that makes one."""
        model = self._models[int(self._model_of[at])]
        return replace(model, id=self._ids[at], num_examples=int(self._examples[at]), base_version=0)

    def doubtful(self) -> Sequence[Peer]:
        """Returns one peer of each kind, and the first ones whose number of examples cannot be."""
        wrong = np.flatnonzero((self._examples < 1) | (self._examples > MOST))[:FEW]
        peers = [*self._kinds, *(self[at] for at in wrong.tolist())]
        return list({p.id: p for p in peers}.values())


class ClientsOnDemand(Sequence[Client]):
    """Clients that are made when they are asked for, and kept by nobody.

    Args:
        peers: who there are.
        make: makes the client of a peer, the same one each time: what lasts from round to round (the model, the data, what a
            site keeps) belongs to the function, not to the client. Clients of one kind begin from one template.
    """

    def __init__(self, peers: Population, make: Callable[[Peer], Client]) -> None:
        self.peers, self._make = peers, make

    def client(self, k: int) -> Client:
        """Returns the client with an id.

        Raises:
            KeyError: for an id that nobody has.
            ValueError: if another peer's client was made.
        """
        peer = self.peers.peer(k)
        client = self._make(peer)
        if client.peer != peer:
            raise ValueError(f"a client with {client.peer} was made for {peer}: give each the peer that it is made for")
        return client

    def samples(self) -> list[Client]:
        """Returns a client of each kind, and the last of all, which stand for the others where a run is prepared."""
        ids = dict.fromkeys([*(p.id for p in self.peers.kinds), *self.peers.ids[-1:]])
        return [self.client(k) for k in ids]

    @overload
    def __getitem__(self, at: int) -> Client: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Client]: ...
    def __getitem__(self, at: int | slice) -> Client | Sequence[Client]:
        ids = self.peers.ids
        return self.client(ids[at]) if isinstance(at, int) else [self.client(k) for k in ids[at]]

    def __len__(self) -> int:
        return len(self.peers)


def _integers(name: str, column: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Returns a copy of a column. Raises ValueError for one that does not hold whole numbers."""
    given = np.asarray(column)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise ValueError(f"{name} is of shape {given.shape} and {given.dtype}: give one whole number for each peer")
    return given.astype(np.int64)


def _positions(kind: npt.ArrayLike | None, size: int, models: int) -> npt.NDArray[Any]:
    """Returns the column of positions in `kinds`, in as few bytes as will do."""
    found = np.zeros(size, np.uint8) if kind is None else _integers("kind", kind)
    if len(found) != size:
        raise ValueError(f"a population has {size} num_examples and {len(found)} positions in `kind`: give one of each")
    if size and not 0 <= int(found.min()) <= int(found.max()) < models:
        raise ValueError(f"`kind` has positions from {found.min()} to {found.max()}, where there are {models} kinds")
    return found.astype(np.min_scalar_type(models))


def _ascending(ids: npt.ArrayLike, size: int) -> Sequence[int]:
    """Returns the column of ids in eight bytes each."""
    column = _integers("ids", ids)
    if len(column) != size:
        raise ValueError(f"a population has {size} num_examples and {len(column)} ids: give one of each")
    if (np.diff(column) <= 0).any():
        raise ValueError("the ids of a population must differ and ascend, with the other columns in their order")
    return array("q", column.tobytes())
