"""A site as a long-lived process: a Unix socket in its state folder, which the owner of the folder alone can reach.

The model, the rows and the base stay in memory between rounds; whoever speaks with the server passes parcels to the socket by
`ask`, which loads no torch. One parcel is answered at a time. What a client of the socket does (hang up, send what is no
parcel, announce more than is read) ends its own connection and nothing else.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import FrameType
from typing import Any

from fedelta.exchange import files, parcels
from fedelta.exchange.parcels import FRAME_SIZE, Parcel

logger = logging.getLogger("fedelta.site")

SOCKET = "site.sock"
"""The socket's name in the state folder."""

LOG = "site.log"
"""The log's name in the state folder."""

LONGEST_PATH = 100
"""Bytes that the path of a Unix socket may have on every system."""

SILENCE = 30.0
"""Seconds that a client of the socket may say nothing in the middle of a parcel, or not read its answer."""

SLOWEST = 1e6
"""Bytes in a second that a client of the socket sends at least: a whole parcel has `SILENCE` and the time that they give it."""

CHUNK = 1 << 20
"""Bytes that are read at once; no more memory is taken than has arrived."""

Handle = Callable[[Parcel], Parcel]


class Stopped(BaseException):
    """The worker was told to end, by Ctrl-C or SIGTERM."""


class Deadline:
    """The moment by which a parcel has arrived.

    Args:
        seconds: from now; None waits as long as it takes.
        silence: seconds that may pass without a byte; None allows any number.
    """

    def __init__(self, seconds: float | None, silence: float | None = None) -> None:
        self.until = None if seconds is None else time.monotonic() + seconds
        self.silence = silence

    def left(self) -> float | None:
        """Returns the seconds to wait for the next bytes; raises TimeoutError if none are left."""
        if self.until is None:
            return self.silence
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the parcel took longer than it was given")
        return left if self.silence is None else min(left, self.silence)

    def extend(self, seconds: float) -> None:
        """Puts off the moment."""
        if self.until is not None:
            self.until += seconds


# --- the client ------------------------------------------------------------------------------------------------------


def ask(path: str | Path, parcel: Parcel, timeout: float | None = None) -> Parcel:
    """Sends a parcel to a worker and returns its answer.

    Args:
        path: of its socket.
        parcel: what is asked.
        timeout: seconds for the whole of it; None waits as long as the answer takes.

    Raises:
        ConnectionError: if no worker is there, or it ended before it answered.
        TimeoutError: if the answer took longer.
        ValueError: for an answer that is no parcel.
    """
    try:
        return _asked(path, parcel, timeout)
    except TimeoutError:
        raise TimeoutError(
            f"the site at {path} gave no answer within {timeout:g} s: it hangs or has other work, which its log says"
        ) from None


def _asked(path: str | Path, parcel: Parcel, timeout: float | None) -> Parcel:
    deadline = Deadline(timeout)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.settimeout(deadline.left())
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise ConnectionError(f"no site is running at {path}: start it by `fedelta site`") from error
        with suppress(ConnectionError):  # of a worker that answers before it has read all: its answer says why
            connection.sendall(parcels.encode(parcel))
        found = _read(connection, None, deadline)
    if found is None:
        raise ConnectionError(f"the site at {path} ended the connection without an answer: its log says why")
    return found


# --- the worker ------------------------------------------------------------------------------------------------------


def serve(handle: Handle, folder: Path, *, name: str, most_body: int) -> None:
    """Answers parcels on the socket of a state folder until the process is told to end.

    Args:
        handle: answers one parcel.
        folder: of the site's state; made for its owner alone if it is not there.
        name: of the site, for messages.
        most_body: bytes of the largest message that is read.

    Raises:
        BlockingIOError: if another worker runs on the folder.
        ValueError: for a folder whose path is too long for a socket.
        OSError: on a system without Unix sockets.
    """
    with _listening(folder, name) as listener, _until_told():
        logger.info("site %s is ready at %s", name, folder / SOCKET)
        try:
            while True:
                connection, _ = listener.accept()
                with connection:
                    _answer(connection, handle, most_body)
        except Stopped:
            logger.info("site %s ends, as it was told to", name)


def _answer(connection: socket.socket, handle: Handle, most_body: int) -> None:
    """Answers the one parcel of a connection; whatever its client does ends here."""
    try:
        parcel = _read(connection, most_body, Deadline(SILENCE, SILENCE))
        if parcel is None:
            return  # somebody looked whether the site is there
        began = time.monotonic()
        answer = _handled(handle, parcel)
        _say(connection, answer)
        logger.info("answered %s by %s in %.1f s", parcel.kind, answer.kind, time.monotonic() - began)
    except ValueError as error:
        logger.warning("refused what is no parcel: %s", error)
        with suppress(OSError):
            _say(connection, parcels.refusal(str(error)))
    except OSError as error:  # it hung up, or fell silent
        logger.warning("a client of the socket was lost: %s", error)


def _say(connection: socket.socket, parcel: Parcel) -> None:
    connection.settimeout(SILENCE)
    connection.sendall(parcels.encode(parcel))


def _handled(handle: Handle, parcel: Parcel) -> Parcel:
    try:
        return handle(parcel)
    except Exception as error:  # no parcel ends the worker
        logger.exception("cannot answer a %s", parcel.kind)
        return parcels.refusal(f"{type(error).__name__}: {error}")


def _read(connection: socket.socket, most_body: int | None, deadline: Deadline) -> Parcel | None:
    """Returns the parcel that arrives; None if the other end says nothing.

    Where the bytes of a message are bounded, the deadline is put off by the time that the announced ones need.

    Raises:
        ValueError: for what is no parcel, or announces more than is read.
        OSError: if the other end falls silent, is too slow, or hangs up in the middle.
    """
    frame = _receive(connection, FRAME_SIZE, deadline)
    if not frame:
        return None
    header_size, body_size = parcels.lengths(frame)
    if most_body is not None:
        if body_size > most_body:
            raise ValueError(
                f"a message of {body_size} bytes is announced, where {most_body} are the most that this site reads"
            )
        deadline.extend((header_size + body_size) / SLOWEST)
    header = _receive(connection, header_size, deadline, whole=True)
    return parcels.decode_parts(header, _receive(connection, body_size, deadline, whole=True))


def _receive(connection: socket.socket, size: int, deadline: Deadline, *, whole: bool = False) -> bytes:
    """Returns so many bytes; nothing if the other end hung up before the first of them, unless all are needed."""
    found = bytearray()
    while len(found) < size:
        connection.settimeout(deadline.left())
        part = connection.recv(min(CHUNK, size - len(found)))
        if not part:
            if found or whole:
                raise ConnectionResetError(f"hung up after {len(found)} of {size} bytes")
            break
        found += part
    return bytes(found)


# --- its folder ------------------------------------------------------------------------------------------------------


@contextmanager
def _listening(folder: Path, name: str) -> Generator[socket.socket]:
    """Gives a socket that listens in a folder which is this worker's alone."""
    if not hasattr(socket, "AF_UNIX"):
        raise OSError("a site needs Unix sockets, which this system does not have: run it on Linux or macOS")
    path = folder / SOCKET
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise ValueError(f"{path} is longer than the {LONGEST_PATH} bytes of a socket's path: set a shorter `state`")
    files.private_folder(folder)
    try:
        with files.locked(folder):
            path.unlink(missing_ok=True)  # of a worker that died: nobody else holds the lock
            with _bound(path) as listener:
                yield listener
    except BlockingIOError:
        raise BlockingIOError(
            f"site {name!r} is running already on {folder}: end that worker, or give this one another `state`"
        ) from None


@contextmanager
def _bound(path: Path) -> Generator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        mask = os.umask(0o177)  # the socket is its owner's alone from its first moment
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        try:
            listener.listen()
            yield listener
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _until_told() -> Generator[None]:
    """Turns Ctrl-C and SIGTERM into `Stopped`: memories are written whole, so that nothing is lost at any moment."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class PrivateLog(RotatingFileHandler):
    """A log of up to 10 MB, and the one before it, that its owner alone may read.

    Args:
        folder: of the site's state; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        files.private_folder(folder)
        super().__init__(folder / LOG, maxBytes=10**7, backupCount=1, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(asctime)s  %(levelname)-7s  %(message)s"))

    def _open(self) -> Any:
        return open(self.baseFilename, self.mode, encoding=self.encoding, opener=_private)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
