"""Exchanges the words of a round between a node and its neighbours, and decides which links count."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from fedelta.engines.federation import Federation
from fedelta.engines.gossip import refused_at
from fedelta.engines.letters import Letter, Reply, Visit, sizes_of, steps_of
from fedelta.engines.mailbox import Mailbox
from fedelta.engines.neighbours import Neighbours, Patience
from fedelta.engines.visits import leave_out, receive, refuse, send
from fedelta.exchange import wire
from fedelta.exchange.parcels import Parcel
from fedelta.method import State

logger = logging.getLogger("fedelta.engines")


class Correspondence:
    """Sends, reads and answers what one node and its neighbours say.

    Args:
        federation: with all peers.
        me: this node's id.
        names: of its neighbours, by id.
        mailbox: its post.
        terms: what all nodes must agree in, by name.
        patience: how long others are waited for.
    """

    def __init__(
        self,
        federation: Federation,
        me: int,
        names: Mapping[int, str],
        mailbox: Mailbox,
        terms: Mapping[str, str],
        patience: Patience,
    ) -> None:
        self._federation, self._me, self._names = federation, me, names
        self._mailbox, self._terms, self._run = mailbox, terms, digest(repr(sorted(terms.items())).encode())
        self.heard = Neighbours(mailbox, names, terms, self._run, federation.settings.rounds, patience)

    def post(self, t: int, links: Sequence[int], reply: Reply) -> None:
        """Sends the own update to the neighbours of a round."""
        body = wire.encode(reply.content)
        for k in links:
            self._tell(k, "update", t, {"metrics": dict(reply.metrics)}, body)

    def received(self, t: int, state: State, links: Sequence[int], own: Visit) -> tuple[list[Visit], dict[int, int]]:
        """Waits for the neighbours' updates; returns all visits in the order of ids, and the bytes that arrived by sender."""
        self.keep_pace(t, links)
        parcels = {k: parcel for k in links if (parcel := self.heard.update(k, t)) is not None}
        theirs = [self._opened(t, state, k, parcel) for k, parcel in parcels.items()]
        visits = sorted([own, *theirs], key=lambda visit: visit.peer.id)
        reasons = refused_at(self._federation, self._me, [*sizes_of(visits)], sizes_of(visits), steps_of(visits))
        return leave_out(self._federation, t, visits, reasons), {k: len(parcel.body) for k, parcel in parcels.items()}

    def confirmed(self, t: int, links: Sequence[int], visits: Sequence[Visit]) -> tuple[list[int], list[int]]:
        """Says which updates are held, and waits for the same word; returns the linked neighbours and the one-sided ones."""
        reasons = {visit.peer.id: visit.reason for visit in visits}
        if (reason := reasons.pop(self._me)) is not None:
            for k in links:
                self._tell(k, "refusal", t, {"reason": f"it has no update of its own: {reason}"})
            return [], []
        for k, reason in reasons.items():
            self._tell(k, *(("held", t, {}) if reason is None else ("refusal", t, {"reason": reason})))
        held = [k for k, reason in reasons.items() if reason is None]
        self.heard.listen(lambda: not any(self.heard.awaits(k, t) and not self.heard.holds(k, t) for k in held))
        linked = [k for k in held if self.heard.holds(k, t)]
        for k in links:
            if k not in linked:
                logger.warning("round %s: no link with peer %s: %s", t, self._names[k], self._missing(t, k, reasons.get(k)))
        return linked, [k for k in held if k not in linked and self.heard.refusal(k, t) is None]

    def keep_pace(self, t: int, links: Sequence[int]) -> None:
        """Waits until the update of each neighbour of a round is there, or none of them can still come."""
        self.heard.listen(lambda: not any(self.heard.update(k, t) is None and self.heard.awaits(k, t) for k in links))

    def reached(self, t: int, links: Sequence[int]) -> list[int]:
        """Returns the neighbours that have answered to the own update, whether they hold it or refuse the link."""
        return [k for k in links if self.heard.holds(k, t) or self.heard.refusal(k, t) is not None]

    def announce(self, t: int) -> None:
        """Tells all neighbours, now and again from here on, that this node is there and in which round."""
        self._mailbox.announce(Parcel("hello", {**self._signed(t), "terms": dict(self._terms)}))

    def _opened(self, t: int, state: State, k: int, parcel: Parcel) -> Visit:
        """Returns the visit of a neighbour's update, checked against what this node itself would have sent to it."""
        letter: Letter = send(self._federation, t, state, k)
        metrics: Any = parcel.header.get("metrics")
        try:
            if not isinstance(metrics, Mapping):
                raise TypeError(f"its metrics are a {type(metrics).__name__}, where figures by name belong")
            reply = Reply(wire.decode(parcel.body), metrics)
        except Exception as error:
            return refuse(self._federation, t, letter, "upload", error, len(parcel.body))
        return receive(self._federation, t, state, letter, reply)

    def _missing(self, t: int, k: int, own_reason: str | None) -> str:
        """Returns why a link did not count."""
        if own_reason is not None:
            return own_reason
        if (reason := self.heard.refusal(k, t)) is not None:
            return f"it refuses: {reason}"
        if self.heard.is_gone(k):
            return "it has gone silent"
        return "no word of it came in time, or it is in a later round"

    def _tell(self, to: int, kind: str, t: int, header: Mapping[str, Any], body: bytes = b"") -> None:
        self._mailbox.send(to, Parcel(kind, {**self._signed(t), **header}, body))

    def _signed(self, t: int) -> dict[str, Any]:
        return {"sender": self._me, "run": self._run, "t": t}


def digest(data: bytes) -> str:
    """Returns 32 hexadecimal digits that tell these bytes from others."""
    return blake2b(data, digest_size=16).hexdigest()
