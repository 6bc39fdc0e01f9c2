"""Defines the post between nodes without a server: what carries parcels, and the queue in which they wait to be read."""

from __future__ import annotations

import threading
from typing import Protocol

from fedelta.exchange.parcels import Parcel


class Mailbox(Protocol):
    """Carries the parcels of one node. Nothing in it waits for a neighbour, and a parcel may get lost."""

    def send(self, to: int, parcel: Parcel) -> None:
        """Hands over a parcel for a neighbour; returns at once."""
        ...

    def announce(self, parcel: Parcel) -> None:
        """Tells every neighbour this parcel, now and again, until another one takes its place."""
        ...

    def take(self, seconds: float) -> tuple[int, Parcel] | None:
        """Returns the sender's id and the parcel that has waited longest; None if none comes in time."""
        ...


class Queue:
    """Keeps parcels in the order in which they came, at most one of each sender and kind: a newer one replaces the older.

    A node in a later round has given up the earlier one, so that nothing is lost by it, and a slow reader holds no more than
    one update of each neighbour.
    """

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, str], Parcel] = {}
        self._change = threading.Condition()

    def put(self, other: int, parcel: Parcel) -> None:
        """Adds a parcel from, or to, another node."""
        with self._change:
            self._waiting.pop((other, parcel.kind), None)  # its place in the order is that of the newer one
            self._waiting[other, parcel.kind] = parcel
            self._change.notify_all()

    def take(self, seconds: float) -> tuple[int, Parcel] | None:
        """Returns the other node's id and the first parcel; None if there is none for so long."""
        with self._change:
            if not self._change.wait_for(lambda: self._waiting, timeout=seconds):
                return None
            (other, kind), parcel = next(iter(self._waiting.items()))
            del self._waiting[other, kind]
            return other, parcel

    def wait_until_empty(self, seconds: float) -> bool:
        """Waits until everything has been taken; returns whether it has."""
        with self._change:
            return self._change.wait_for(lambda: not self._waiting, timeout=seconds)
