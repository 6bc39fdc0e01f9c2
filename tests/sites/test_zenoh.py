"""Gossip over zenoh with mutual TLS on this machine: the bits of `gossip`; deaths, cuts, and strangers, who are named."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("zenoh", reason='gossip over a network needs pip install "fedelta[gossip]"')
pytest.importorskip("cryptography")

from fedelta import topology
from fedelta.engines.gossip import gossip
from fedelta.engines.mailbox import Queue
from fedelta.engines.runners.sites.certificates import make_certificates
from fedelta.engines.runners.zenoh import session
from fedelta.engines.runners.zenoh.session import Post, words_for
from fedelta.engines.runners.zenoh.settings import Certificates, addresses, direct
from fedelta.exchange import parcels, wire
from fedelta.exchange.parcels import Parcel
from fedelta.lowrank import dist2
from fedelta.methods import get_method
from fedelta.runs.peers_here import free_ports

PEER = Path(__file__).with_name("peer.py")


def peer_module() -> Any:
    spec = spec_from_file_location("peer", PEER)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Ring:
    """Peers a, b, c, ... of one plan, and the processes that run them."""

    folder: Path
    plan: dict[str, Any]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path, count: int = 4, **plan: Any) -> "Ring":
        names = list("abcdefgh"[:count])
        make_certificates(folder / "certs", [*names, "relay"])
        endpoints = [f"tls/127.0.0.1:{port}" for port in free_ports(count)]
        given = {
            "names": names,
            "endpoints": endpoints,
            "relay": None,
            "certificates": str(folder / "certs"),
            "folder": str(folder),
        }
        return cls(folder, {**given, "method": "fedavg", "rounds": 6, "silence": 60.0, **plan})

    def start(self, *names: str) -> None:
        file = self.folder / "plan.json"
        file.write_text(json.dumps(self.plan))
        for name in names or self.plan["names"]:
            with (self.folder / f"{name}.log").open("ab") as log:
                self.running[name] = subprocess.Popen([sys.executable, str(PEER), str(file), name], stderr=log, stdout=log)

    def kill(self, name: str) -> None:
        self.running[name].kill()
        self.running[name].wait()

    def wait(self, *names: str, seconds: float = 120) -> None:
        for name in names or self.plan["names"]:
            assert self.running[name].wait(seconds) == 0, self.log(name)

    def end(self) -> None:
        for process in self.running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def rounds(self, name: str) -> list[dict[str, Any]]:
        file = self.folder / name / "rounds.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [record for line in lines if "t" in (record := json.loads(line))]

    def at(self, name: str) -> int:
        return max((record["t"] for record in self.rounds(name)), default=-1)

    def starts(self, name: str) -> int:
        return (self.folder / name / "rounds.jsonl").read_text().count("start")

    def until(self, is_so: Callable[[], bool], seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < end, {name: (self.at(name), self.log(name)[-600:]) for name in self.running}
            time.sleep(0.05)

    def states(self, names: Sequence[str] = ()) -> list[bytes]:
        return [(self.folder / name / "state.bin").read_bytes() for name in names or self.plan["names"]]

    def spread(self) -> float:
        adapters = [wire.decode(state)["adapter"] for state in self.states()]
        return sum(float(dist2(a.layers[n], adapters[0].layers[n])) for a in adapters for n in a.layers)


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Callable[..., Ring]]:
    made: list[Ring] = []

    def make(**plan: Any) -> Ring:
        made.append(Ring.make(tmp_path, **plan))
        return made[-1]

    yield make
    for each in made:
        each.end()


def expected(method: str, rounds: int, count: int = 4) -> list[bytes]:
    clients = peer_module().clients_for(method, count)
    *_, last = gossip(get_method(method), clients, rounds=rounds, mixing=topology.ring(count), engine="sequential")
    return [wire.encode(last.state[str(k)]) for k in range(count)]


@pytest.mark.parametrize("method", ["tad_lora", "flexlora"])
def test_four_processes_over_mutual_tls_are_gossip_to_the_last_bit_eng_8(method: str, ring: Callable[..., Ring]) -> None:
    peers = ring(method=method)
    peers.start()
    peers.wait()
    assert peers.states() == expected(method, 6)
    assert all(len(record["linked"]) == 2 for name in "abcd" for record in peers.rounds(name))
    assert not any("refused" in peers.log(name) for name in "abcd")


def test_words_of_zenoh_on_whom_it_refuses_are_understood() -> None:
    start = "2026-11-29T21:34:32.509776Z TRACE rx-0 ThreadId(09) zenoh::net::routing::interceptor::access_control: fec8"
    denied = f"{start} on Interface(lo)+CertCommonName(c)+Transport(Tls)+fec8 is unauthorized to Put (ingress) on gossip/a/b"
    assert words_for(denied) == "peer c is refused: it sent a message to a in the name of b"
    assert words_for(denied.replace("unauthorized", "authorized")) is None
    assert words_for(denied.replace("a/b", "a/*")) is None, "what is looked up for a pattern, which nobody sent"
    tls = "WARN acc-0 zenoh_link_tls::unicast: invalid peer certificate: BadSignature. Hint: increase the file limit."
    assert "a connection is refused: invalid peer certificate: BadSignature;" in str(words_for(tls))


def test_a_message_beyond_what_a_node_allows_is_refused_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_certificates(tmp_path, ["a", "b"])
    a, b = (f"tls/127.0.0.1:{port}" for port in free_ports(2))

    def post(me: str, other: str, k: int, **bound: int) -> Post:
        at = addresses(1 - k, {0: a, 1: b}, [k])
        return Post(me, {k: other}, direct(me, [other], at, Certificates.of(tmp_path, me)), every=0.1, **bound)

    reader, writer = post("a", "b", 1, most=1000), post("b", "a", 0)
    try:
        writer.announce(Parcel("hello", {"t": 0}))
        assert reader.take(20) is not None
        writer.send(0, Parcel("update", {"t": 1}, b"x" * 2_000_000))
        writer.send(0, Parcel("held", {"t": 1}))
        while (found := reader.take(20)) is not None and found[1].kind == "hello":
            continue
        assert found == (1, Parcel("held", {"t": 1}))
        assert "what peer b sent is no parcel: ValueError: it has 20000" in caplog.text
        assert "this node allows 1000 (allow.max_memory)" in caplog.text
    finally:
        reader.close()
        writer.close()


def test_what_is_announced_last_is_what_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repetition that begins before an announcement and ends after it must not bring the old one back."""

    class Slow(Queue):
        def put(self, other: int, parcel: Parcel) -> None:
            time.sleep(0.002)
            super().put(other, parcel)

    class Session:
        def declare_subscriber(self, *_: Any) -> None: ...
        def declare_publisher(self, *_: Any, **__: Any) -> Any:
            return self

        def put(self, data: bytes) -> None:
            sent.append(parcels.decode(data).header["t"])

        def close(self) -> None: ...

    sent: list[int] = []
    monkeypatch.setattr(session, "opened", lambda _: Session())
    monkeypatch.setattr(session, "Queue", Slow)
    post = Post("a", {1: "b"}, {}, every=0.001)
    for t in range(200):
        post.announce(Parcel("hello", {"t": t}))
    time.sleep(0.1)
    post.close()
    assert sent == sorted(sent)
    assert sent[-1] == 199


# --- faults; each starts four processes ------------------------------------------------------------------------------

FAULTY: dict[str, Any] = {"rounds": 40, "silence": 2.0, "pause": 0.15}


class Cable:
    """A line to a port, which can be cut without either end being told, and healed."""

    def __init__(self, port: int) -> None:
        self._port, self._cut = port, threading.Event()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tls/127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._cut.set()

    def heal(self) -> None:
        self._cut.clear()
        for each in self._sockets:
            each.close()  # both ends notice now, and dial again
        self._sockets.clear()

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            try:
                far = socket.create_connection(("127.0.0.1", self._port))
            except OSError:  # nobody listens there yet, which the one who dials is to notice
                near.close()
                continue
            self._sockets += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(1 << 16):
                while self._cut.is_set():
                    time.sleep(0.05)
                other.sendall(data)
        except OSError:
            pass
        for each in (one, other):
            each.close()


def port_of(endpoint: str) -> int:
    return int(endpoint.rsplit(":", 1)[1])


@pytest.mark.deployed
def test_a_peer_that_is_killed_and_started_again_joins_and_all_agree_eng_9(ring: Callable[..., Ring]) -> None:
    peers = ring(method="tad_lora", hold=18, **FAULTY)
    peers.start()
    peers.until(lambda: peers.at("a") >= 8)
    peers.kill("c")
    was = peers.at("c")
    peers.until(lambda: peers.at("a") >= 18)
    peers.start("c")
    peers.until(lambda: peers.starts("c") == 2)  # however long a process takes to begin, the others are still there
    (peers.folder / "go").touch()
    peers.wait()
    seen = [record["t"] for record in peers.rounds("c")]
    assert seen[-1] == 39
    assert set(range(was + 2, 15)).isdisjoint(seen), "it did not jump to the round of the others"
    assert peers.rounds("b")[-1]["linked"] == [0, 2]
    undisturbed = ring_spread(expected("tad_lora", 40))
    assert peers.spread() < 10 * undisturbed


def ring_spread(states: Sequence[bytes]) -> float:
    adapters = [wire.decode(state)["adapter"] for state in states]
    return sum(float(dist2(a.layers[n], adapters[0].layers[n])) for a in adapters for n in a.layers)


@pytest.mark.deployed
def test_a_peer_that_is_stopped_for_a_while_goes_on_eng_9(ring: Callable[..., Ring]) -> None:
    peers = ring(**FAULTY)
    peers.start()
    peers.until(lambda: peers.at("a") >= 6)
    peers.running["c"].send_signal(signal.SIGSTOP)
    was = peers.at("a")
    peers.until(lambda: peers.at("a") >= was + 12)
    peers.running["c"].send_signal(signal.SIGCONT)
    peers.wait()
    assert peers.rounds("c")[-1]["t"] == 39
    assert peers.rounds("b")[-1]["linked"] == [0, 2]
    assert [record["t"] for record in peers.rounds("a")] == list(range(40)), "who is no neighbour of it went on"
    assert peers.spread() < 10 * ring_spread(expected("fedavg", 40))


@pytest.mark.deployed
def test_two_halves_that_were_cut_apart_come_together_eng_9(ring: Callable[..., Ring]) -> None:
    peers = ring(**{**FAULTY, "rounds": 150})
    ports = [port_of(endpoint) for endpoint in peers.plan["endpoints"]]
    cables = [Cable(ports[1]), Cable(ports[0])]  # c dials b, d dials a
    peers.plan["detours"] = {"c": {"1": cables[0].endpoint}, "d": {"0": cables[1].endpoint}}
    peers.start()
    peers.until(lambda: peers.at("a") >= 6)
    for cable in cables:
        cable.cut()
    was = peers.at("a")
    peers.until(lambda: min(peers.at("a"), peers.at("c")) >= was + 16)
    assert [peers.rounds(name)[-1]["linked"] for name in "abcd"] == [[1], [0], [3], [2]]
    for cable in cables:
        cable.heal()
    peers.wait()
    whole = [[record["t"] for record in peers.rounds(name) if len(record["linked"]) == 2] for name in "abcd"]
    assert min(ts[-1] for ts in whole) > was + 16, "a link did not come back"
    assert peers.spread() < 10 * ring_spread(expected("fedavg", 150))


@pytest.mark.deployed
def test_a_certificate_of_another_authority_is_refused_and_said_eng_9(ring: Callable[..., Ring], tmp_path: Path) -> None:
    peers = ring(rounds=3, silence=2.0, deadline=12.0)
    make_certificates(tmp_path / "others", ["c"])
    peers.plan["authority"] = {"c": str(tmp_path / "others")}
    peers.start()
    peers.wait("a", "b", "d", seconds=150)
    assert peers.running["c"].wait(60) != 0
    assert "no neighbour was heard" in peers.log("c")
    assert "a connection is refused" in peers.log("b") + peers.log("d")
    assert "still waiting for c, not heard: look whether it runs" in peers.log("b")
    assert all(2 not in record["linked"] for record in peers.rounds("b"))


@pytest.mark.deployed
def test_who_speaks_in_anothers_name_is_refused_by_name_eng_9(ring: Callable[..., Ring]) -> None:
    peers = ring(rounds=3, silence=2.0, deadline=12.0)
    peers.plan["speaks_as"] = {"d": "b"}
    peers.start()
    peers.wait("a", "b", "c", seconds=150)
    assert "peer d is refused: it sent a message to a in the name of b" in peers.log("a")
    assert all(record["linked"] == [1] for record in peers.rounds("a"))


@pytest.mark.deployed
def test_peers_that_only_dial_out_meet_at_a_relay_and_are_gossip_eng_9(ring: Callable[..., Ring], tmp_path: Path) -> None:
    peers = ring(method="decaf", rounds=12, pause=0.2)
    endpoint = f"tls/127.0.0.1:{free_ports(1)[0]}"
    peers.plan |= {"endpoints": [None] * 4, "relay": endpoint}
    relay = [
        "import time",
        "from pathlib import Path",
        "from fedelta.engines.runners.zenoh.session import opened",
        "from fedelta.engines.runners.zenoh.settings import Certificates, relay",
        f"session = opened(relay(list('abcd'), {endpoint!r}, Certificates.of(Path({peers.plan['certificates']!r}), 'relay')))",
        "time.sleep(600)",
    ]
    process = subprocess.Popen([sys.executable, "-c", "\n".join(relay)])
    try:
        peers.start()
        peers.until(lambda: peers.at("a") >= 3)
        peers.wait()
    finally:
        process.kill()
        process.wait()
    assert peers.states() == expected("decaf", 12)
