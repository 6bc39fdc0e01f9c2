"""Remembers for a node what it has heard of its neighbours, for whom it still waits, and whom it has given up for now."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedelta.engines.guards import one_line
from fedelta.engines.mailbox import Mailbox
from fedelta.exchange.parcels import Parcel

logger = logging.getLogger("fedelta.engines")

STEP = 0.25
"""Seconds of listening at a time. A process that was stopped in one has listened for no longer than this."""

ENOUGH = 2
"""Rounds in a row in which a link did not count, after which its other end is not waited for until it is heard again."""


@dataclass(frozen=True)
class Patience:
    """Bounds the time that a node gives to its neighbours, in seconds that it spends listening.

    Attributes:
        silence: a neighbour of whom nothing is heard for so long is not waited for until it is heard again.
        deadline: the longest wait for neighbours that are there, such as slower ones.
        every: from one warning of neighbours that have not been heard yet to the next.
    """

    silence: float = 5.0
    deadline: float = 600.0
    every: float = 10.0


@dataclass
class _Known:
    """Holds what is known of one neighbour; rounds are -1 where there was none.

    Attributes:
        t: the round that it was in when it was last heard.
        silent: seconds of listening since then.
        misses: rounds in a row in which its link did not count.
        update: its newest, and `updated` the round of that.
        held: the newest round of which it holds the own update.
        refused: the newest round in which it refused the link, and `reason` why.
        foreign: why it is not listened to at all.
    """

    t: int = -1
    silent: float = 0.0
    misses: int = 0
    update: Parcel | None = None
    updated: int = -1
    held: int = -1
    refused: int = -1
    reason: str = ""
    foreign: str | None = None


class Neighbours:
    """Reads what a node's neighbours say, and remembers it.

    Args:
        mailbox: their post.
        names: of the neighbours, by id.
        terms: what all nodes must agree in, by name; `run` is the digest of it that every parcel has.
        run: see `terms`.
        rounds: of the whole run.
        patience: how long they are waited for.
        clock: in seconds, as `time.monotonic`.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        names: Mapping[int, str],
        terms: Mapping[str, str],
        run: str,
        rounds: int,
        patience: Patience,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.names, self._terms, self._run, self._rounds = names, terms, run, rounds
        self._mailbox, self._patience, self._clock = mailbox, patience, clock
        self._known = {k: _Known() for k in names}

    # --- what was heard ----------------------------------------------------------------------------------------------

    def newest(self) -> int:
        """Returns the newest round that any of them was heard in; -1 before the first word."""
        return max((known.t for known in self._known.values()), default=-1)

    def next_round(self, t: int) -> int:
        """Returns the round to go on with: t, or the newest one, with a warning that names who is there already."""
        if (newest := self.newest()) <= t:
            return t
        ahead = [self.names[k] for k, known in self._known.items() if known.t == newest]
        logger.warning("goes on with round %s in place of %s: peer %s says that it is there", newest, t, ", ".join(ahead))
        return newest

    def update(self, k: int, t: int) -> Parcel | None:
        """Returns the update of neighbour k for round t, if it is there."""
        known = self._known[k]
        return known.update if known.updated == t else None

    def holds(self, k: int, t: int) -> bool:
        """Returns whether neighbour k has said that it holds this node's update of round t."""
        return self._known[k].held == t

    def refusal(self, k: int, t: int) -> str | None:
        """Returns why neighbour k does not take part in the link in round t, if it has said so."""
        known = self._known[k]
        return known.reason if known.refused == t else None

    def unheard(self) -> dict[int, str | None]:
        """Returns the neighbours that have not been heard yet, by id, with the reason where they are not listened to."""
        return {k: known.foreign for k, known in self._known.items() if known.t < 0}

    def is_gone(self, k: int) -> bool:
        """Returns whether nothing has been heard of neighbour k for as long as `Patience.silence`."""
        return self._known[k].silent >= self._patience.silence

    def awaits(self, k: int, t: int) -> bool:
        """Returns whether something that neighbour k has not said yet of round t may still come, and is waited for."""
        known = self._known[k]
        is_past = known.t > t or known.refused == t  # who is in a later round sends nothing of this one any more
        return not is_past and not self.is_gone(k) and known.misses < ENOUGH and known.foreign is None

    def settle(self, t: int, ids: Iterable[int], linked: Collection[int]) -> None:
        """Ends round t: remembers whose links counted, of those that were asked, and lets go of the updates."""
        for k in ids:
            known = self._known[k]
            known.misses = 0 if k in linked else known.misses + 1
            if known.updated <= t:  # a newer one is for the next round
                known.update, known.updated = None, -1

    # --- listening ---------------------------------------------------------------------------------------------------

    def listen(self, until: Callable[[], bool], seconds: float | None = None) -> float:
        """Reads parcels until a condition holds, or time is up; returns the seconds that it listened.

        Args:
            until: looked at after each parcel.
            seconds: at most so many; `Patience.deadline` by default.
        """
        limit, spent = self._patience.deadline if seconds is None else seconds, 0.0
        while (arrived := self._mailbox.take(0)) is not None:
            self._hear(*arrived)
        while not until() and spent < limit:
            began = self._clock()
            arrived = self._mailbox.take(min(STEP, limit - spent))
            passed = min(self._clock() - began, STEP)
            spent += passed
            for known in self._known.values():
                known.silent += passed
            if arrived is not None:
                self._hear(*arrived)
        return spent

    def gather(self, t: int) -> None:
        """Waits at the start until all neighbours are heard; one that comes back to a run goes on with those that answer.

        Args:
            t: the round that this node would begin with.

        Raises:
            TimeoutError: if no neighbour at all is heard.
        """
        spent = 0.0
        while self.unheard() and spent < self._patience.deadline:
            is_back = max(t, self.newest()) > 0
            spent += self.listen(lambda: not self.unheard(), self._patience.silence if is_back else self._patience.every)
            if self.unheard():
                logger.warning("still waiting for %s", self._reasons())
            if max(t, self.newest()) > 0 and len(self.unheard()) < len(self.names):
                break  # the others are on their way, and take in who comes later
        if self.names and len(self.unheard()) == len(self.names):
            raise TimeoutError(f"no neighbour was heard in {spent:.0f} seconds: {self._reasons()}")

    def _reasons(self) -> str:
        advice = (
            "look whether it runs, whether its endpoint in the roster can be reached, and whether its certificate is of the "
            "same authority"
        )
        silent = [self.names[k] for k, foreign in self.unheard().items() if foreign is None]
        foreign = [f"{self.names[k]}, which {reason}" for k, reason in self.unheard().items() if reason is not None]
        return "; ".join([*foreign, *([f"{', '.join(silent)}, not heard: {advice}"] if silent else [])])

    def _hear(self, sender: int, parcel: Parcel) -> None:
        known = self._known.get(sender)
        if known is None:
            return
        if (reason := self._objection(sender, parcel)) is not None:
            if known.foreign is None or (parcel.kind == "hello" and known.foreign != reason):  # a hello says most
                logger.warning("peer %s is refused: it %s", self.names[sender], reason)
                known.foreign = reason
            return
        if known.foreign is not None:
            logger.warning("peer %s is taken in again", self.names[sender])
        known.foreign, known.silent, known.t = None, 0.0, parcel.header["t"]
        match parcel.kind:
            case "update":
                known.update, known.updated, known.misses = parcel, known.t, 0
            case "held":
                known.held, known.misses = known.t, 0
            case "refusal":
                known.refused, known.reason = known.t, one_line(str(parcel.header.get("reason")))
            case _:
                pass

    def _objection(self, sender: int, parcel: Parcel) -> str | None:
        """Returns why a parcel is not listened to."""
        header: Mapping[str, Any] = parcel.header
        claimed, t = header.get("sender"), header.get("t")
        if claimed != sender:
            return f"sent a message in the name of {claimed!r:.40}, where its own id is {sender}"
        if header.get("run") != self._run:
            different = ", ".join(_differences(self._terms, header.get("terms")))
            return f"is in another run, with another {one_line(different)}"
        if type(t) is not int or not 0 <= t <= self._rounds:
            return f"says that it is in round {t!r:.40} of {self._rounds}"
        return None


def _differences(own: Mapping[str, str], theirs: Any) -> Sequence[str]:
    """Returns the names of the terms in which two nodes differ, as far as the other has told its own."""
    if not isinstance(theirs, Mapping):
        return ["set of terms"]
    return [name for name in sorted({*own, *map(str, theirs)}) if own.get(name) != theirs.get(name)] or ["set of terms"]
