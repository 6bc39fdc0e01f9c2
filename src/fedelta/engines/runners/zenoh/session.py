"""Opens sessions of zenoh, for the post of a node and for a relay; the only module that imports it (extra `gossip`)."""

# An extra need not be installed where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager

import zenoh

from fedelta.engines.guards import reason_of
from fedelta.engines.mailbox import Queue
from fedelta.engines.runners.zenoh.settings import Settings
from fedelta.exchange import parcels
from fedelta.exchange.parcels import Parcel

logger = logging.getLogger("fedelta.engines")

EVERY = 1.0
"""Seconds from one hello to the next."""

LAST_WORDS = 5.0
"""Seconds in which what is still to be sent must have left when a post is closed."""

MOST = 1 << 30
"""Bytes of the largest body that is read where nothing else is said; zenoh itself puts no longer messages together."""

LOG = "error,zenoh_link_tls=warn,zenoh::net::routing::interceptor::access_control=trace"
"""Chooses what zenoh logs: connections that TLS refuses, and messages that access rules deny, which only this level has."""

MOST_REFUSALS = 1000
"""Different refusals that are logged: each may bear a name that somebody made up, and all are remembered."""

_DENIED = re.compile(
    r"CertCommonName\((?P<who>[^)]*)\).* is unauthorized to Put \(ingress\) on gossip/(?P<to>[\w.-]+)/(?P<name>[\w.-]+)"
)
_REFUSED = re.compile(r"zenoh_link_tls\S* (?P<reason>(invalid peer cert|received fatal alert|peer sent no cert)[^.]*)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Post:
    """Carries the post of one node (`engines.mailbox.Mailbox`) over zenoh.

    Each neighbour has a thread that sends to it: one that is frozen holds up nobody else. What is sent reliably, and in order,
    waits in a `Queue` until zenoh takes it.

    Args:
        name: of this node.
        neighbours: their names, by id.
        settings: from `settings.direct` or `settings.through_relay`.
        every: seconds from one hello to the next.
        most: bytes of the largest body that is read.
    """

    def __init__(
        self, name: str, neighbours: Mapping[int, str], settings: Settings, every: float = EVERY, most: int = MOST
    ) -> None:
        self._ids, self._most = {other: k for k, other in neighbours.items()}, most
        self._inbox, self._outboxes = Queue(), {k: Queue() for k in neighbours}
        self._hello: Parcel | None = None
        self._announcing = threading.Lock()
        self._every, self._closing = every, threading.Event()
        self._session = opened({**settings, "transport/link/rx/max_message_size": max(most, MOST) + parcels.MAX_HEADER})
        self._subscriber = self._session.declare_subscriber(f"gossip/{name}/*", self._arrived)
        for k, other in neighbours.items():
            publisher = self._session.declare_publisher(
                f"gossip/{other}/{name}",
                congestion_control=zenoh.CongestionControl.BLOCK,  # else a full queue loses messages without a word
                reliability=zenoh.Reliability.RELIABLE,
            )
            threading.Thread(target=self._sends, args=(self._outboxes[k], publisher, other), daemon=True).start()
        threading.Thread(target=self._repeats, daemon=True).start()

    def send(self, to: int, parcel: Parcel) -> None:
        """Hands over a parcel for a neighbour; returns at once."""
        self._outboxes[to].put(to, parcel)

    def announce(self, parcel: Parcel) -> None:
        """Tells every neighbour this parcel, at once and every so often."""
        with self._announcing:
            self._hello = parcel
            self._send_hello()

    def take(self, seconds: float) -> tuple[int, Parcel] | None:
        """Returns the sender's id and the parcel that has waited longest; None if none comes in time."""
        return self._inbox.take(seconds)

    def close(self) -> None:
        """Ends the session once what is still to be sent has left, or seems unable to."""
        for outbox in self._outboxes.values():
            outbox.wait_until_empty(LAST_WORDS / len(self._outboxes))
        self._closing.set()
        self._closing.wait(0.2)  # what zenoh has taken last leaves in the background
        self._session.close()

    def _arrived(self, sample: zenoh.Sample) -> None:
        sender = str(sample.key_expr).rsplit("/", 1)[-1]
        if sender not in self._ids:  # access rules have no others, unless a relay has lost its own
            return
        try:
            parcel = parcels.decode(read(sample.payload, self._most))
        except ValueError as error:
            logger.warning("what peer %s sent is no parcel: %s", sender, reason_of(error))
            return
        self._inbox.put(self._ids[sender], parcel)

    def _sends(self, outbox: Queue, publisher: zenoh.Publisher, other: str) -> None:
        while not self._closing.is_set():
            waiting = outbox.take(1.0)
            if waiting is None:
                continue
            try:
                publisher.put(parcels.encode(waiting[1]))
            except zenoh.ZError as error:
                if not self._closing.is_set():
                    logger.warning("a message to peer %s could not be sent: %s", other, reason_of(error))

    def _repeats(self) -> None:
        while not self._closing.wait(self._every):
            with self._announcing:
                self._send_hello()

    def _send_hello(self) -> None:
        if self._hello is not None:
            for k in self._outboxes:
                self.send(k, self._hello)


def read(payload: zenoh.ZBytes, most: int) -> bytes:
    """Returns the bytes of a message; raises ValueError, before they are copied, if its body is larger than `most`."""
    if len(payload) > most + parcels.MAX_HEADER:
        raise ValueError(f"it has {len(payload)} bytes, this node allows {most} (allow.max_memory)")
    return bytes(payload)


def opened(settings: Settings) -> zenoh.Session:
    """Opens a session with these settings.

    Raises:
        OSError: for an address at which it cannot listen, or certificates that it cannot read.
    """
    config = zenoh.Config()
    for key, value in settings.items():
        config.insert_json5(key, json.dumps(value))
    try:
        return zenoh.open(config)
    except zenoh.ZError as error:
        raise OSError(f"the session cannot be opened at {settings['listen/endpoints']}: {reason_of(error)}") from error


@contextmanager
def refusals_logged() -> Generator[None]:
    """Names on fedelta's log whom zenoh refuses, which zenoh itself tells only standard output; for a whole process.

    Python's own output still goes where it went.
    """
    reader, writer = os.pipe()
    stdout = os.dup(1)
    sys.stdout.flush()
    ours = sys.stdout
    sys.stdout = os.fdopen(os.dup(stdout), "w", buffering=1, encoding="utf-8")
    os.dup2(writer, 1)
    os.close(writer)
    zenoh.init_log_from_env_or(LOG)
    thread = threading.Thread(target=_read_log, args=(reader,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        sys.stdout.close()
        sys.stdout = ours
        os.dup2(stdout, 1)  # closes the last writer, which ends the thread
        os.close(stdout)
        thread.join(1)


def _read_log(reader: int) -> None:
    said: set[str] = set()
    with os.fdopen(reader, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            message = words_for(_COLOUR.sub("", line))
            if message is not None and message not in said and len(said) < MOST_REFUSALS:  # it tries again every second
                said.add(message)
                logger.warning("%s", message)


def words_for(line: str) -> str | None:
    """Returns what a line of zenoh's log says of somebody who was refused; None for any other line."""
    if (found := _DENIED.search(line)) is not None:
        return f"peer {found['who']} is refused: it sent a message to {found['to']} in the name of {found['name']}"
    if (found := _REFUSED.search(line)) is not None:
        return f"a connection is refused: {found['reason'].strip()}; one end has no certificate of this roster's authority"
    return None
