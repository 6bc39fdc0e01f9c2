"""Defines what crosses the seam between server and client, `Letter` and `Reply`, and what becomes of them: a `Visit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedelta.engines.guards import Size
from fedelta.merging import ClientUpdate
from fedelta.peers import Peer
from fedelta.tree import Message


@dataclass(frozen=True, eq=False)
class Letter:
    """A message from the server to one client in one round.

    Attributes:
        t: the round.
        peer: to whom, with the base version that the server takes it to hold.
        message: what travels: the method's message after the channel.
        size: of the message, in bytes.
        remembered: the round of the client's last answer that the server took in: the memory of that round is the one that
            counts. None if there is no such answer yet.
    """

    t: int
    peer: Peer
    message: Message
    size: int
    remembered: int | None = None


@dataclass(frozen=True, eq=False)
class Reply:
    """The answer of a client to a letter; it has no field for the client's memory.

    Attributes:
        content: what travels: the method's upload after the channel.
        metrics: of the training: "num_steps" and, where it is finite, "loss".
        base_version: of the base delta that the client holds now. Only the client's word for it: `receive` bounds it.
    """

    content: Message
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    base_version: int = 0


@dataclass(frozen=True, eq=False)
class Visit:
    """The outcome of one client in one round; either `update` or `reason` is None.

    Attributes:
        peer: the client, with the base version that it held.
        down, up: bytes sent and received; `up` is None if nothing arrived.
        update: with weight 0, until the engine knows who else arrived.
        size: of the update.
        base_version: of what the client holds after the round.
        reason: why it is left out.
        not_finite: the reason is that its update, or its loss, is no finite number.
    """

    peer: Peer
    down: int
    up: int | None = None
    update: ClientUpdate | None = None
    size: Size = field(default_factory=Size)
    base_version: int = 0
    reason: str | None = None
    not_finite: bool = False


def sizes_of(visits: Sequence[Visit]) -> dict[int, Size]:
    """Returns the sizes of the updates that arrived, by their senders' ids."""
    return {v.peer.id: v.size for v in visits if v.update is not None}


def steps_of(visits: Sequence[Visit]) -> dict[int, float]:
    """Returns the steps that the senders of the updates that arrived say they have taken, by their ids."""
    arrived = [v.update for v in visits if v.update is not None]
    return {u.sender.id: u.metrics["num_steps"] for u in arrived if "num_steps" in u.metrics}
