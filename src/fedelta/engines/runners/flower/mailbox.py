"""Messages over a Flower grid: sent in lists, fetched as they arrive, few at a time, with a deadline of our own.

`Grid.send_and_receive` waits three seconds between looks and returns everything at once, and a deadline of Flower's own
leaves nobody told. A message is known by the id that it was given when it was pushed: an error in place of an answer comes from
the SuperLink, not from the node.
"""

# An extra need not be installed where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from fedelta.engines.guards import one_line, reason_of
from fedelta.engines.runners.flower.faults import FlowerError, fault
from fedelta.engines.runners.flower.packing import GRACE, pack, unpack
from fedelta.exchange.parcels import Parcel

logger = logging.getLogger("fedelta.sites")

TYPES = {"census": "query", "train": "train", "evaluate": "evaluate"}
"""The type of Flower's message by the kind of a parcel."""

IN_HAND = 64 << 20
"""Bytes of bodies that are pushed or fetched in one call, or one body if it is larger: what a server holds beside its spool."""

Answer = Parcel | Exception


@dataclass(eq=False)
class Mailbox:
    """A way to send parcels to the nodes of a grid and to hear what they answer.

    Args:
        grid: of a ServerApp.
        poll: seconds from one look for answers to the next.

    Attributes:
        late: answers that came after their deadline, or after enough others had come; they were dropped.
        sent, received: bytes of bodies that were handed to Flower, and that came from it, late ones among them.
    """

    grid: Grid
    poll: float = 0.2
    late: int = 0
    sent: int = 0
    received: int = 0
    _given_up: dict[str, float] = field(default_factory=dict[str, float])

    def nodes(self) -> list[int]:
        """Returns the ids of the nodes that are connected now, ascending."""
        return sorted(self.grid.get_node_ids())

    def gather(self, count: int, seconds: float) -> list[int]:
        """Returns the nodes that are connected, once there are so many.

        Raises:
            TimeoutError: if there are fewer when the time is over.
        """
        end = time.monotonic() + seconds
        while len(found := self.nodes()) < count:
            if time.monotonic() >= end:
                raise TimeoutError(
                    f"{len(found)} of {count} sites are connected after {seconds:g} s: start the SuperNodes that are missing "
                    "(`flwr supernode ls` lists those that are there), or ask for fewer sites"
                )
            time.sleep(self.poll)
        return found

    def exchange(self, parcels: Iterable[tuple[int, Parcel]], seconds: float) -> Generator[tuple[int, Answer]]:
        """Sends parcels and yields each answer as it arrives, by node; at the deadline a TimeoutError for each that is missing.

        An answer that comes later is counted and dropped, as are all that come after the caller has left the loop.

        Args:
            parcels: (node, parcel), at most one for each node. Made and sent in turn: all of them need not fit into memory.
            seconds: until the deadline, from when the last one is sent.
        """
        waiting: dict[str, int] = {}
        refused: list[int] = []
        largest = 1
        for batch in _batches(parcels):
            largest = max(largest, *(len(parcel.body) for _, parcel in batch))
            refused += self._push(batch, seconds, waiting)
            batch.clear()  # or the bodies would stay until the last answer
        end = time.monotonic() + seconds
        try:
            for node in refused:
                yield node, FlowerError("the SuperLink did not take the message: the node is unknown to it", passing=True)
            while waiting:
                yield from self._arrived(waiting, max(1, IN_HAND // largest))
                if waiting and time.monotonic() >= end:
                    break
                if waiting:
                    time.sleep(self.poll)
            for node in waiting.values():
                yield node, TimeoutError(f"no answer within {seconds:g} s")
        finally:
            self._given_up |= dict.fromkeys(waiting, end + GRACE)

    def ask(self, parcels: Mapping[int, Parcel], seconds: float, pause: float = 2.0) -> dict[int, Answer]:
        """Sends all parcels at once and returns the answers; asks again, until the time is over, where a fault may pass.

        Args:
            parcels: by node; small ones, since all answers are held.
            seconds: for all tries together.
            pause: seconds before another try.
        """
        end = time.monotonic() + seconds
        found: dict[int, Answer] = {}
        left = dict(parcels)
        while left:
            found |= dict(self.exchange(left.items(), max(end - time.monotonic(), self.poll)))
            left = {node: parcel for node, parcel in left.items() if _may_pass(found[node])}
            if not left or time.monotonic() + pause >= end:
                break
            logger.warning("asking %s again: %s", _listed(list(left)), _reason(found[next(iter(left))]))
            time.sleep(pause)
        return found

    def _push(self, batch: Sequence[tuple[int, Parcel]], seconds: float, waiting: dict[str, int]) -> list[int]:
        """Sends some parcels and notes the ids under which answers are awaited; returns the nodes that nothing was sent to."""
        messages = [
            Message(pack(parcel), node, TYPES[parcel.kind], ttl=seconds + GRACE, group_id=str(parcel.header.get("t", "")))
            for node, parcel in batch
        ]
        ids: Sequence[str | None] = list(self.grid.push_messages(messages))  # a generator would send nothing
        ids = [*ids, *[None] * (len(batch) - len(ids))]
        waiting |= {i: node for i, (node, _) in zip(ids, batch, strict=True) if i}
        self.sent += sum(len(parcel.body) for i, (_, parcel) in zip(ids, batch, strict=True) if i)
        return [node for i, (node, _) in zip(ids, batch, strict=True) if not i]

    def _arrived(self, waiting: dict[str, int], count: int) -> Iterator[tuple[int, Answer]]:
        """Yields the answers that are there, fetched a few at a time; takes them off what is awaited."""
        self._drop_late()
        ids = list(waiting)
        for start in range(0, len(ids), count):
            messages = list(self.grid.pull_messages(ids[start : start + count]))
            try:
                while messages:
                    node = waiting.pop(messages[0].metadata.reply_to_message_id, None)
                    if node is None:
                        del messages[0]
                    else:  # not by a name, which would hold the answer while the next one is fetched
                        yield node, self._read(messages.pop(0))
            finally:  # the caller has enough
                for message in messages:
                    waiting.pop(message.metadata.reply_to_message_id, None)
                    self.late += message.has_content()

    def _drop_late(self) -> None:
        if not self._given_up:
            return
        for message in self.grid.pull_messages(list(self._given_up)[:8]):
            self._given_up.pop(message.metadata.reply_to_message_id, None)
            if message.has_content():
                self.late += 1
                self._read(message)
                logger.info("a late answer of node %s is dropped", message.metadata.src_node_id)
        now = time.monotonic()
        # The next look begins with others, so that some that never come do not hide the rest.
        kept = [(i, until) for i, until in self._given_up.items() if until > now]
        self._given_up = dict(kept[8:] + kept[:8])

    def _read(self, message: Message) -> Answer:
        if message.has_error():
            return fault(message.error)
        try:
            parcel = unpack(message.content)
        except ValueError as error:
            return error
        self.received += len(parcel.body)
        return parcel


def _batches(parcels: Iterable[tuple[int, Parcel]]) -> Iterator[list[tuple[int, Parcel]]]:
    """Parcels in lists whose different bodies have `IN_HAND` bytes together, or hold one that is larger."""
    batch: list[tuple[int, Parcel]] = []
    bodies: dict[int, int] = {}
    for node, parcel in parcels:
        size = 0 if id(parcel.body) in bodies else len(parcel.body)  # equal bodies are one object, and Flower stores them once
        if batch and size and sum(bodies.values()) + size > IN_HAND:
            yield batch
            batch, bodies = [], {}  # the caller may have emptied the list
        batch.append((node, parcel))
        bodies[id(parcel.body)] = len(parcel.body)
    if batch:
        yield batch


def _may_pass(answer: Answer) -> bool:
    """Tells whether asking again makes sense: a node that was away, or a site that is still starting."""
    if isinstance(answer, Parcel):
        return answer.kind == "refusal" and answer.header.get("again") is True
    return isinstance(answer, FlowerError) and answer.passing


def _reason(answer: Answer) -> str:
    """Returns why a node is asked again, on one line of limited length."""
    return reason_of(answer) if isinstance(answer, Exception) else one_line(str(answer.header.get("reason")))


def _listed(nodes: Sequence[int]) -> str:
    return f"{len(nodes)} nodes" if len(nodes) > 5 else ", ".join(f"node {node}" for node in nodes)
