"""A worker outlives whatever its clients do, is its owner's alone, and ends when it is told to."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import pytest

from fedelta.engines.runners.sites import worker
from fedelta.engines.runners.sites.worker import LOG, SOCKET, ask
from fedelta.exchange import parcels
from fedelta.exchange.parcels import Parcel

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="a site needs Unix sockets")

WORKER = dedent("""
    import logging, os, sys, time
    from pathlib import Path
    from fedelta.engines.runners.sites.worker import PrivateLog, serve
    from fedelta.exchange.parcels import Parcel
    folder = Path(sys.argv[1])
    log = logging.getLogger("fedelta")
    log.addHandler(PrivateLog(folder))
    log.setLevel(logging.INFO)

    def handle(parcel):
        if parcel.header.get("raise"):
            raise RuntimeError("no such luck")
        if parcel.header.get("slow"):
            (folder / "begun").touch()
            time.sleep(60)
        return Parcel(parcel.kind, {"pid": os.getpid(), **parcel.header}, parcel.body[::-1])

    serve(handle, folder, name="north", most_body=1000)
""")


class Worker:
    """A worker in a process of its own, with a folder whose path is short enough for a socket."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / SOCKET
        self.process = self.start()
        self.wait()

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WORKER, str(self.folder)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def wait(self) -> None:
        """Waits until it says that it is ready, or has ended."""
        while self.process.poll() is None and not (self.path.exists() and self.ready()):
            threading.Event().wait(0.02)

    def ready(self) -> bool:
        try:
            return ask(self.path, Parcel("census")).header["pid"] == self.process.pid
        except ConnectionError:
            return False

    def log(self) -> str:
        return (self.folder / LOG).read_text(encoding="utf-8")

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def raw(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(20)
        connection.connect(str(self.path))
        return connection


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="site") as found:
        yield Path(found) / "state"


@pytest.fixture
def running(folder: Path) -> Iterator[Worker]:
    started = Worker(folder)
    yield started
    started.end()


def answers(running: Worker) -> None:
    up = ask(running.path, Parcel("train", {"t": 3}, b"abc"), timeout=20)
    assert (up.kind, up.header["t"], up.body) == ("train", 3, b"cba")
    assert up.header["pid"] == running.process.pid


def test_a_parcel_is_answered_and_the_next_one_too(running: Worker) -> None:
    answers(running)
    answers(running)


def test_socket_and_log_are_their_owners_alone(running: Worker) -> None:
    modes = {name: stat.S_IMODE((running.folder / name).stat().st_mode) for name in (SOCKET, LOG)}
    assert modes == {SOCKET: 0o600, LOG: 0o600}
    assert stat.S_IMODE(running.folder.stat().st_mode) == 0o700


def reply(connection: socket.socket) -> Parcel:
    """Reads one parcel; the end may be a reset, since the worker has not read all that was sent."""
    frame = connection.recv(parcels.FRAME_SIZE, socket.MSG_WAITALL)
    header, body = (connection.recv(size, socket.MSG_WAITALL) if size else b"" for size in parcels.lengths(frame))
    return parcels.decode_parts(header, body)


GARBAGE = [
    (b"GET / HTTP/1.1\r\nHost: site\r\n\r\n", "do not begin a parcel"),
    (struct.pack("<4sIQ", b"fdp1", 2**31, 0), "header of 2147483648 bytes is announced"),
    (struct.pack("<4sIQ", b"fdp1", 2, 2**62) + b"{}", "4611686018427387904 bytes is announced, where 1000 are the most"),
    (struct.pack("<4sIQ", b"fdp1", 2, 0) + b"{}", "kind 'None' is not known"),
    (struct.pack("<4sIQ", b"fdp1", 2, 0) + b"\xff\xfe", "no JSON"),
    (struct.pack("<4sIQ", b"fdp1", 3, 0) + b"\x80\x04.", "no JSON"),
]


@pytest.mark.parametrize(("data", "reason"), GARBAGE)
def test_what_is_no_parcel_is_refused_and_logged(data: bytes, reason: str, running: Worker) -> None:
    with running.raw() as connection:
        connection.sendall(data)
        up = reply(connection)
    assert up.kind == "refusal"
    assert reason in up.header["reason"]
    assert reason in running.log()
    answers(running)


def test_clients_that_hang_up_are_survived(running: Worker) -> None:
    whole = parcels.encode(Parcel("train", {"t": 1}, b"x" * 900))
    for sent in (b"", whole[:5], whole[:40], whole[:-1], whole):
        with running.raw() as connection:
            connection.sendall(sent)
    answers(running)
    assert "hung up" in running.log()


def test_a_client_that_falls_silent_does_not_keep_others_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, with a second of patience."""
    monkeypatch.setattr(worker, "SILENCE", 1.0)
    monkeypatch.setattr(worker, "_until_told", lambda: threading.Lock())
    done = threading.Event()

    def handle(parcel: Parcel) -> Parcel:
        if parcel.header.get("last"):
            done.set()
            raise worker.Stopped
        return parcel

    thread = threading.Thread(target=worker.serve, args=(handle, folder), kwargs={"name": "x", "most_body": 10}, daemon=True)
    thread.start()
    while not (folder / SOCKET).exists():
        threading.Event().wait(0.02)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(folder / SOCKET))
        silent.sendall(b"fdp1")
        assert ask(folder / SOCKET, Parcel("census"), timeout=20).kind == "census"
    with pytest.raises(ConnectionError, match="without an answer"):
        ask(folder / SOCKET, Parcel("census", {"last": True}), timeout=20)
    thread.join(20)
    assert done.is_set()
    assert not (folder / SOCKET).exists()


def test_two_clients_at_once_are_answered_one_after_the_other(running: Worker) -> None:
    found: list[Parcel] = []
    threads = [
        threading.Thread(target=lambda k=k: found.append(ask(running.path, Parcel("train", {"t": k}), timeout=20)))
        for k in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(up.header["t"] for up in found) == list(range(8))


def test_an_error_of_the_site_is_a_refusal_and_a_trace_in_the_log(running: Worker) -> None:
    up = ask(running.path, Parcel("train", {"raise": True}), timeout=20)
    assert up.kind == "refusal"
    assert "no such luck" in up.header["reason"]
    assert "Traceback" in running.log()
    answers(running)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_cleanly_when_told_idle_or_at_work(number: signal.Signals, running: Worker) -> None:
    gone: list[Exception] = []

    def wait() -> None:
        try:
            ask(running.path, Parcel("train", {"slow": True}), timeout=60)
        except ConnectionError as error:
            gone.append(error)

    if number == signal.SIGTERM:
        thread = threading.Thread(target=wait)
        thread.start()
        while not (running.folder / "begun").exists():
            threading.Event().wait(0.02)
        running.process.send_signal(number)
        thread.join(30)
        assert len(gone) == 1
    else:
        running.process.send_signal(number)
    assert running.process.wait(20) == 0
    assert not running.path.exists()
    assert "ends, as it was told to" in running.log()


def test_a_second_worker_on_the_same_state_is_refused_by_name(running: Worker) -> None:
    second = running.start()
    _, said = second.communicate(timeout=60)
    assert second.returncode != 0
    assert "site 'north' is running already on" in said
    answers(running)


def test_the_socket_of_a_dead_worker_is_replaced(running: Worker) -> None:
    running.process.kill()
    running.process.communicate()
    assert running.path.exists()
    with pytest.raises(ConnectionError, match="no site is running at"):
        ask(running.path, Parcel("census"), timeout=5)
    running.process = running.start()
    running.wait()
    answers(running)


def test_a_site_that_takes_too_long_is_waited_for_no_longer(running: Worker) -> None:
    with pytest.raises(TimeoutError):
        ask(running.path, Parcel("train", {"slow": True}), timeout=1)


def test_a_path_too_long_for_a_socket_is_refused_with_the_remedy(folder: Path) -> None:
    with pytest.raises(ValueError, match="set a shorter `state`"):
        worker.serve(lambda parcel: parcel, folder / ("x" * 90), name="x", most_body=1)
    assert not folder.exists()


def test_whoever_asks_a_site_loads_no_torch() -> None:
    code = (
        "import sys, json\n"
        "from fedelta.engines.runners.sites.worker import ask\n"
        "from fedelta.exchange.parcels import Parcel\n"
        "try:\n"
        "    ask('/nowhere/site.sock', Parcel('census'), timeout=1)\n"
        "except ConnectionError:\n"
        "    print(json.dumps([m for m in ('torch', 'numpy', 'transformers', 'pydantic') if m in sys.modules]))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert json.loads(found.stdout) == []


class Drip:
    """A connection of which one byte arrives at a time, each after so many seconds of its own clock."""

    def __init__(self, data: bytes, seconds: float) -> None:
        self.data, self.seconds = data, seconds
        self.now, self.taken, self.said, self.patience = 0.0, 0, b"", 0.0

    def __enter__(self) -> Drip:
        return self

    def __exit__(self, *error: object) -> None: ...

    def settimeout(self, seconds: float) -> None:
        self.patience = seconds

    def recv(self, size: int) -> bytes:
        if self.seconds > self.patience:
            raise TimeoutError("timed out")
        self.now, self.taken = self.now + self.seconds, self.taken + 1
        return self.data[self.taken - 1 : self.taken]

    def sendall(self, data: bytes) -> None:
        self.said += data

    def is_served(self, monkeypatch: pytest.MonkeyPatch) -> bool:
        """Serves this connection alone, by its clock; returns True if its parcel was read whole."""
        monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(worker, "_until_told", nullcontext)
        connections = [(self, None)]

        def accept() -> tuple[Drip, None]:
            if not connections:
                raise worker.Stopped
            return connections.pop()

        monkeypatch.setattr(worker, "_listening", lambda folder, name: nullcontext(SimpleNamespace(accept=accept)))
        read: list[Parcel] = []
        worker.serve(lambda parcel: read.append(parcel) or parcel, Path("state"), name="x", most_body=10**9)
        return len(read) == 1


def test_a_client_that_drips_bytes_is_waited_for_no_longer_than_its_parcel_deserves(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = parcels.encode(Parcel("train", {"t": 1}, b"x" * 900))
    slow = Drip(whole, worker.SILENCE / 10)
    assert not slow.is_served(monkeypatch)
    assert slow.said == b""
    assert slow.now <= worker.SILENCE + slow.seconds


def test_a_parcel_has_the_time_that_its_announced_bytes_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "SLOWEST", 1.0)
    whole = parcels.encode(Parcel("train", {"t": 1}, b"x" * 900))
    steady = Drip(whole, 1.0)
    assert steady.is_served(monkeypatch)
    assert steady.now > 10 * worker.SILENCE
    assert parcels.decode(steady.said).kind == "train"
    assert not Drip(whole, 2.0).is_served(monkeypatch)


def test_silence_ends_a_long_parcel_before_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "SLOWEST", 1.0)
    silent = Drip(parcels.encode(Parcel("train", {"t": 1}, b"x" * 900)), 1.0)
    silent.seconds = worker.SILENCE + 1
    assert not silent.is_served(monkeypatch)
    assert silent.now == 0.0
