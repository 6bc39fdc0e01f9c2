"""Processes of one run, by rank: messages from rank 0 to the others and back, over gloo.

Only bytes travel, from one rank to another; nothing is pickled, and no GPU is needed for it, since updates are on the CPU. This
is the only module that imports torch.distributed.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from datetime import timedelta
from queue import Empty, SimpleQueue
from threading import Thread
from types import FrameType, TracebackType
from typing import Any, TypeAlias

import torch
import torch.distributed as dist

from fedelta.exchange import wire
from fedelta.tree import Message

JOINING = timedelta(minutes=5)
"""The time for all ranks to start."""

LASTING = timedelta(days=365)
"""The time for anything later: a round may take hours, and a process that dies is known by its connection, not by a clock."""

RESUME = "the rounds that are done are on disk: go on with --resume, over any number of processes"

Heard: TypeAlias = tuple[int, Message]
"""A rank, and its message."""


class LostRankError(ConnectionError):
    """A process of the run has ended before the run did."""


def joined() -> Any:
    """Returns the group of all ranks, once all have started; rank, size and address come from the environment.

    Raises:
        LostRankError: if some do not start in time, or cannot reach each other.
    """
    try:
        dist.init_process_group("gloo", timeout=JOINING)
        return dist.new_group(backend="gloo", timeout=LASTING)
    except RuntimeError as error:
        raise LostRankError(f"the processes of the run did not find each other: {_first_line(error)}") from error


def left() -> None:
    """Closes the connections of this process."""
    if dist.is_initialized():
        dist.destroy_process_group()


def send(group: Any, message: Message, to: int) -> None:
    """Sends a message to a rank; returns once that rank takes it. Raises RuntimeError if it has ended."""
    data = bytearray(wire.encode(message))
    dist.send(torch.tensor([len(data)]), to, group=group)
    dist.send(torch.frombuffer(data, dtype=torch.uint8), to, group=group)


def receive(group: Any, source: int) -> Message:
    """Returns the next message of a rank, and waits for it. Raises RuntimeError if that rank has ended."""
    size = torch.zeros(1, dtype=torch.int64)
    dist.recv(size, source, group=group)
    data = torch.empty(int(size), dtype=torch.uint8)
    dist.recv(data, source, group=group)
    return wire.decode(data.numpy().tobytes())


class Leader:
    """Rank 0, as another rank knows it."""

    def __init__(self) -> None:
        self._group = joined()
        self.own_rank = dist.get_rank()

    def hear(self) -> Message:
        """Returns the next message of rank 0, and waits for it."""
        try:
            return receive(self._group, 0)
        except RuntimeError as error:
            raise self._alone() from error

    def tell(self, message: Message) -> None:
        """Sends a message to rank 0."""
        try:
            send(self._group, message, 0)
        except RuntimeError as error:
            raise self._alone() from error

    def _alone(self) -> LostRankError:
        return LostRankError(f"rank 0 has ended, and with it rank {self.own_rank}")


class Crew:
    """The other ranks, as rank 0 knows them; inside a `with` block, at whose end they end, too.

    Each has a thread here that waits for what it says. So it never waits itself to be heard, and its death is known at once,
    even while this process trains.

    Attributes:
        ranks: the ids of the others, from 1.
    """

    def __init__(self) -> None:
        self._group = joined()
        self.ranks: Sequence[int] = range(1, dist.get_world_size())
        self._arrived: SimpleQueue[Heard | None] = SimpleQueue()
        self._failure: str | None = None
        self._busy: set[int] = set()
        self._gone: set[int] = set()
        self._listeners = [Thread(target=self._listen, args=(r,), name=f"rank {r}", daemon=True) for r in self.ranks]

    def __enter__(self) -> Crew:
        signal.signal(signal.SIGTERM, self._on_signal)
        for listener in self._listeners:
            listener.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is left to do is to end
        self._dismiss()
        left()

    def tell(self, rank: int, message: Message) -> None:
        """Sends a message to a rank. Raises LostRankError if one has ended."""
        self._busy.add(rank)
        try:
            send(self._group, message, rank)
        except RuntimeError as error:
            self._fail(rank, None)
            raise self._lost() from error

    def settle(self, settings: str) -> dict[int, Any]:
        """Gives all ranks the run's settings; returns by rank what each says of itself, once all are ready.

        Raises:
            LostRankError: for a rank that cannot take part, with its reason.
        """
        for rank in self.ranks:
            self.tell(rank, {"kind": "settle", "settings": settings})
        ready = dict(self.hear() for _ in self.ranks)
        self._busy.clear()
        return {rank: message["facts"] for rank, message in sorted(ready.items())}

    def rest(self, rank: int) -> None:
        """Notes that a rank has said all that it was asked for."""
        self._busy.discard(rank)

    def hear(self) -> Heard:
        """Returns the next message of any rank, and waits for it. Raises LostRankError if one has ended."""
        return self._known(self._arrived.get())

    def heard(self) -> Heard | None:
        """Returns the next message of any rank if one is there. Raises LostRankError if one has ended."""
        try:
            return self._known(self._arrived.get_nowait())
        except Empty:
            return None

    def _known(self, arrived: Heard | None) -> Heard:
        if arrived is None:
            raise self._lost()
        return arrived

    def _listen(self, rank: int) -> None:
        """Takes in what a rank says, until it ends."""
        try:
            while (message := receive(self._group, rank))["kind"] not in ("end", "failed"):
                self._arrived.put((rank, message))
        except Exception:
            message = {"kind": "failed", "reason": None}
        if message["kind"] == "failed":
            self._fail(rank, message["reason"])
            self._arrived.put(None)

    def _fail(self, rank: int, reason: str | None) -> None:
        """Keeps the first failure: once a rank has died, its launcher ends the others."""
        self._gone.add(rank)
        said = "it has ended: killed, out of memory, or its machine is gone" if reason is None else reason
        self._failure = self._failure or f"rank {rank}: {said}"

    def _lost(self) -> LostRankError:
        return LostRankError(f"{self._failure}; {RESUME}")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Ends the run in order when the launcher ends it, which is mostly for another rank's death."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._failure = self._failure or "the run was ended from outside (SIGTERM)"
        raise self._lost()

    def _dismiss(self) -> None:
        """Ends the ranks that wait for work; one that works notices at its end that nobody is here."""
        for rank in self.ranks:
            if rank in self._busy | self._gone:
                continue
            try:
                send(self._group, {"kind": "end"}, rank)
            except RuntimeError:  # it has just ended by itself
                continue
            self._listeners[rank - 1].join()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
