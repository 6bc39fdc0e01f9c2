"""A checkpoint survives a death at any write, and a resumed run ends with the bytes of one that never stopped."""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedelta import sampling
from fedelta.client import LocalClient, Training
from fedelta.engines import checkpoint, manifests
from fedelta.engines.guards import Size
from fedelta.engines.rounds import Snapshot
from fedelta.engines.server import federate
from fedelta.engines.tables import Table
from fedelta.exchange import files, wire
from fedelta.method import Client, ClientState, Method
from fedelta.methods.fedavg import FedAvg
from fedelta.methods.flora import FLoRA
from fedelta.methods.local_only import LocalOnly
from fedelta.models.toy import random_adapter, toy_federation
from fedelta.optim import SGD
from fedelta.tree import Message

ROUNDS = 3
SHORT = Training(local_steps=1, batch_size=4, learning_rate=0.05, optimizer=SGD())


@dataclass(frozen=True, kw_only=True)
class Forgetful(FedAvg):
    """FedAvg whose clients remember their last adapter, and forget it in every other round."""

    def local_update(self, t: int, down: Message, client_state: ClientState, client: Client) -> tuple[Message, ClientState]:
        up, _ = super().local_update(t, down, {}, client)
        kept = {"last": up["adapter"], "count": client_state.get("count", 0) + 1}
        return up, kept if t % 2 == 0 else {}


METHODS: dict[str, tuple[Method, tuple[int, ...]]] = {
    "client states": (Forgetful(), (2, 2, 2)),
    "a moving base": (FLoRA(), (1, 1)),  # small enough that clients are sent the steps that they missed, not the sum
    "personal adapters": (LocalOnly(), (1, 2, 2)),
}


def play(folder: Path, name: str, rounds: int = ROUNDS) -> None:
    """A run that goes on from its checkpoint, in a process that has just begun."""
    method, ranks = METHODS[name]
    start = checkpoint.load(folder) if checkpoint.exists(folder) else None
    cohort = sampling.uniform(2)
    for done in federate(method, toy_federation(ranks, training=SHORT), rounds=rounds, cohort=cohort, start=start, debug=True):
        checkpoint.save(folder, done.snapshot)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Killed(BaseException):
    """Stands for SIGKILL."""


class DyingSystem:
    """The calls of `os` that change the disk; the n-th kills the process, after which none works any more."""

    CHANGES = ("open", "write", "fsync", "close", "replace", "unlink")

    def __init__(self, last: int | None = None) -> None:
        self.calls: list[str] = []
        self.last = last

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return (lambda *args: self._call(name, real, *args)) if name in self.CHANGES else real

    def _call(self, name: str, real: Any, *args: Any) -> Any:
        if self.last is not None and len(self.calls) >= self.last:
            if len(self.calls) == self.last and name == "write":
                real(args[0], args[1][: len(args[1]) // 2])  # half of it reaches the disk
            self.calls.append(f"refused {name}")
            raise Killed
        self.calls.append(name)
        return real(*args)


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def install(last: int | None = None) -> DyingSystem:
        dying = DyingSystem(last)
        monkeypatch.setattr(files, "os", dying)
        monkeypatch.setattr(checkpoint, "os", dying)
        return dying

    yield install
    monkeypatch.undo()


@pytest.mark.parametrize("name", METHODS)
def test_a_death_at_any_write_leaves_a_run_that_ends_alike(name: str, tmp_path: Path, system: Any) -> None:
    play(tmp_path / "whole", name)
    expected = contents(tmp_path / "whole")
    counter = system()
    play(tmp_path / "counted", name)
    assert len(counter.calls) > 7 * ROUNDS
    for last in range(len(counter.calls)):
        folder = tmp_path / f"killed-{last}"
        system(last)
        with pytest.raises(Killed):
            play(folder, name)
        system()
        play(folder, name)
        assert contents(folder) == expected, f"killed at call {last}, {counter.calls[last]}"


def test_two_deaths_in_one_round(tmp_path: Path, system: Any) -> None:
    name = "client states"
    play(tmp_path / "whole", name)
    for last in range(8, 40, 5):
        folder = tmp_path / f"killed-{last}"
        for again in (last, last // 2):
            system(again)
            with pytest.raises(Killed):
                play(folder, name)
        system()
        play(folder, name)
        assert contents(folder) == contents(tmp_path / "whole")


def test_what_a_checkpoint_names_is_on_the_disk_before_it(tmp_path: Path, system: Any) -> None:
    log = system()
    checkpoint.save(tmp_path, Snapshot(1, 0, {"x": torch.ones(2)}, {3: {"y": 1}}, {3: 0}))
    memory = ["open", "write", "close", "open", "fsync", "close", "open", "fsync", "close"]  # its bytes, then its name
    one_file = ["open", "write", "fsync", "close", "replace", "open", "fsync", "close"]
    assert log.calls == memory + one_file * 2  # the state, the manifest
    for t, removed in ((2, 0), (3, 3)):
        log.calls.clear()
        checkpoint.save(tmp_path, Snapshot(t, 0, {"x": torch.ones(2)}))
        assert log.calls == one_file * 2 + ["unlink"] * removed


def test_a_death_while_a_snapshot_is_saved_anew_leaves_its_old_or_its_new_notes(tmp_path: Path, system: Any) -> None:
    name = "client states"
    play(tmp_path / "first", name, rounds=1)  # no snapshot before it could serve in its place
    old = checkpoint.load(tmp_path / "first")
    new, seen = replace(old, notes={"best": 1}), list[Any]()
    shutil.copytree(tmp_path / "first", tmp_path / "counted")
    counter = system()
    checkpoint.save(tmp_path / "counted", new)
    for last in range(len(counter.calls)):
        folder = Path(shutil.copytree(tmp_path / "first", tmp_path / f"killed-{last}"))
        system(last)
        with pytest.raises(Killed):
            checkpoint.save(folder, new)
        system()
        seen.append(checkpoint.load(folder).notes)
        checkpoint.save(folder, new)
        checkpoint.save(folder, new)
        assert checkpoint.load(folder).notes == new.notes
        assert len(list(folder.glob("state-*"))) == 1
    assert seen[0] == old.notes
    assert seen[-1] == new.notes
    assert all(notes in (old.notes, new.notes) for notes in seen)


def test_a_finished_run_can_be_extended(tmp_path: Path) -> None:
    for name in METHODS:
        play(tmp_path / name, name, rounds=2)
        play(tmp_path / name, name, rounds=ROUNDS)
        play(tmp_path / "whole" / name, name)
        assert contents(tmp_path / name) == contents(tmp_path / "whole" / name)


def test_a_snapshot_comes_back_whole(tmp_path: Path) -> None:
    snapshot = Snapshot(
        t=3,
        seed=2**40,
        state={"adapter": random_adapter(2, seed=1, dtype=torch.bfloat16), "rates": [0.1, 2]},
        client_states={12: {"m": torch.arange(3)}, 5: {"n": 4}},
        client_rounds={12: 2, 5: 0},
        base_versions={5: 2},
        notes={"best": {"t": 1, "value": 0.1}},
        sizes={-1: [Size(0.1, 2.0), Size()], 3: []},
    )
    checkpoint.save(tmp_path, snapshot)
    again = checkpoint.load(tmp_path)
    assert (again.t, again.seed, again.notes) == (3, 2**40, {"best": {"t": 1, "value": 0.1}})
    assert (again.client_rounds, again.base_versions) == ({12: 2, 5: 0}, {5: 2})
    assert wire.encode(again.state) == wire.encode(snapshot.state)
    assert torch.equal(again.client_states[12]["m"], torch.arange(3))
    assert again.sizes == snapshot.sizes


def test_equal_snapshots_have_equal_bytes_whatever_the_order_of_clients(tmp_path: Path) -> None:
    states = {k: {"x": k} for k in (4, 11, 2)}
    for folder, order in (("a", (4, 11, 2)), ("b", (2, 4, 11))):
        table = dict.fromkeys(order, 0)
        checkpoint.save(tmp_path / folder, Snapshot(1, 0, {}, {k: states[k] for k in order}, table, table))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_only_what_changed_is_written(tmp_path: Path, system: Any) -> None:
    states = {k: {"x": k} for k in range(100)}
    checkpoint.save(tmp_path, Snapshot(1, 0, {}, states, dict.fromkeys(range(100), 0)))
    log = system()
    states = {**states, 7: {"x": -1}}
    checkpoint.save(tmp_path, Snapshot(2, 0, {}, states, {**dict.fromkeys(range(100), 0), 7: 1}))
    assert log.calls.count("write") == 3
    assert checkpoint.load(tmp_path).client_states == states


def three(t: int, peers: Any, seed: int) -> range:
    """Everyone at first, then three clients of each round."""
    return range(len(peers)) if t == 0 else range(3 * t, 3 * t + 3)


def rounds_of(clients: int, rounds: int = 4) -> list[Snapshot]:
    """The snapshots of a run in which every client remembers something and three take part."""
    one = toy_federation((2,))[0]
    peers: list[Any] = [SimpleNamespace(peer=replace(one.peer, id=k), template=one.template) for k in range(clients)]
    run = federate(Remembering(), peers, rounds=rounds, cohort=three, engine="sequential")
    return [done.snapshot for done in run]


@dataclass(frozen=True, kw_only=True)
class Remembering(FedAvg):
    """Does not train, and remembers in how many rounds it took part; every third client forgets it after the first."""

    def local_update(self, t: int, down: Message, client_state: ClientState, client: Client) -> tuple[Message, ClientState]:
        forgets = t > 0 and client.peer.id % 3 == 0
        return {"adapter": down["adapter"]}, {} if forgets else {"count": client_state.get("count", 0) + 1}


class Listed:
    """A module `os` that counts all calls and all bytes."""

    def __init__(self, real: Any) -> None:
        self._real, self.calls, self.bytes = real, 0, 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        if not callable(real) or name == "PathLike":
            return real

        def call(*args: Any) -> Any:
            self.calls += 1
            self.bytes += len(args[1]) if name == "write" else 0
            result = real(*args)
            self.bytes += len(result) if name == "listdir" else 0
            return result

        return call


def test_a_round_costs_its_cohort_however_many_clients_remember(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    costs: list[tuple[int, int, int]] = []
    for clients in (20, 500):
        folder = tmp_path / str(clients)
        first, *later = rounds_of(clients)
        checkpoint.save(folder, first)
        read: list[Path] = []
        with monkeypatch.context() as patch:
            real = Path.read_bytes
            patch.setattr(Path, "read_bytes", lambda path, read=read, real=real: (read.append(path), real(path))[1])
            patch.setattr(checkpoint, "os", checkpoint_os := Listed(os))
            patch.setattr(files, "os", files_os := Listed(os))
            for snapshot in later:
                checkpoint.save(folder, snapshot)
        costs.append((len(read), checkpoint_os.calls + files_os.calls, checkpoint_os.bytes + files_os.bytes))
        assert len(checkpoint.load(folder).client_states) == clients - 3
    assert costs[0][:2] == costs[1][:2]
    assert costs[1][2] - costs[0][2] < 100, "a few digits"


def test_a_snapshot_reads_no_table_of_all_clients() -> None:
    """What a round hands out costs its cohort, too: the tables of one round are those of the next, but for what changed."""
    for before, after in pairwise(rounds_of(50)):
        assert after.before is not None
        assert len(after.before) == 3
        assert before.client_states[40] is after.client_states[40]
        assert isinstance(after.client_states, Table)
        assert isinstance(after.touched, Table)


def test_a_round_that_is_added_has_the_bytes_of_one_for_which_all_files_are_looked_at(tmp_path: Path) -> None:
    for snapshot in rounds_of(20):
        checkpoint.save(tmp_path / "added", snapshot)
        checkpoint.save(tmp_path / "whole", replace(snapshot, before=None))
        assert contents(tmp_path / "added") == contents(tmp_path / "whole")


def test_a_round_left_out_and_one_done_again_end_alike(tmp_path: Path) -> None:
    first, second, third, fourth = rounds_of(20)
    for snapshot in (first, third, fourth):
        checkpoint.save(tmp_path / "left out", snapshot)
    for snapshot in (first, second, third, second, third, fourth, fourth):
        checkpoint.save(tmp_path / "again", snapshot)
    for folder in ("left out", "again"):
        found = checkpoint.load(tmp_path / folder)
        assert (found.t, found.client_states, found.touched) == (4, fourth.client_states, fourth.touched)


def test_what_rots_before_it_is_replaced_spoils_nothing(tmp_path: Path) -> None:
    first, second, third, _ = rounds_of(20)
    checkpoint.save(tmp_path, first)
    (tmp_path / "clients/3-0.memory").write_bytes(b"rotten")  # of the cohort: replaced by the next save
    checkpoint.save(tmp_path, second)
    checkpoint.save(tmp_path, third)
    assert checkpoint.load(tmp_path).client_states == third.client_states


def test_a_file_too_many_one_too_few_and_an_old_one_are_seen(tmp_path: Path) -> None:
    first, second = rounds_of(6, rounds=2)
    checkpoint.save(tmp_path, first)
    file = tmp_path / "clients/4-0.memory"
    data = file.read_bytes()
    file.unlink()
    with pytest.raises(ValueError, match=r"1\.json has 6 clients' files, and the 5 that are here"):
        checkpoint.load(tmp_path)
    file.write_bytes(data)
    (tmp_path / "clients/9-0.memory").write_bytes(data)
    with pytest.raises(ValueError, match=r"9-0\.memory was cut or altered: it is the file of client 4, round 0"):
        checkpoint.load(tmp_path)
    (tmp_path / "clients/9-0.memory").unlink()
    checkpoint.save(tmp_path, second)
    checkpoint.save(tmp_path / "other", replace(first, client_states={k: {"count": 7} for k in range(6)}))
    (tmp_path / "other/clients/1-0.memory").replace(tmp_path / "clients/1-0.memory")
    with pytest.raises(ValueError, match="are not all of them the same"):
        checkpoint.load(tmp_path)


def test_a_memory_that_was_forgotten_stays_so_after_a_death_before_its_file_was_removed(tmp_path: Path) -> None:
    _, second, third, fourth = rounds_of(20)  # the second forgets client 3
    checkpoint.save(tmp_path, second)
    second_files = contents(tmp_path)
    checkpoint.save(tmp_path, third)
    checkpoint.save(tmp_path, fourth)
    whole = contents(tmp_path)
    for name in set(second_files) - set(whole):
        (tmp_path / name).write_bytes(second_files[name])
    assert checkpoint.load(tmp_path).t == 4
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("memories", [{}, {4: {"count": 9}}])
def test_a_death_in_a_round_that_is_done_again_with_another_result_leaves_no_mixture(
    memories: dict[int, ClientState], tmp_path: Path, system: Any
) -> None:
    first, second, _, _ = rounds_of(20)
    other = replace(second, client_states={**second.client_states, **memories}, state={"x": 1})
    whole = [(x.t, dict(x.client_states), x.state.keys()) for x in (first, second, other)]
    for last in range(100):
        folder = tmp_path / str(last)
        system()
        for snapshot in (first, second):
            checkpoint.save(folder, snapshot)
        system(last)
        try:
            checkpoint.save(folder, other)
        except Killed:
            system()
            found = checkpoint.load(folder)
            assert (found.t, found.client_states, found.state.keys()) in whole
        else:
            break
    assert last > 10


def test_a_round_done_again_without_a_client_leaves_nothing_of_it(tmp_path: Path) -> None:
    first, second, _, _ = rounds_of(20)
    checkpoint.save(tmp_path, first)
    checkpoint.save(tmp_path, second)
    (tmp_path / "2.json").write_bytes(b"damaged")
    client_4 = {"client_states": {"count": 1}, "client_rounds": 0, "touched": 0}
    tables: Any = {name: {**getattr(second, name), 4: value} for name, value in client_4.items()}
    other = replace(second, **tables, before={3: 0, 5: 0})
    checkpoint.save(tmp_path, other)
    assert checkpoint.load(tmp_path).client_states == other.client_states


def test_many_files_are_confirmed_together_and_before_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(files, "_sync_file_system", lambda folder: (log.append(folder.name), True)[1])
    monkeypatch.setattr(files, "commit", lambda path, data: log.append(path.name))
    checkpoint.save(tmp_path, Snapshot(1, 0, {}, {k: {"x": k} for k in range(files.MANY + 1)}))
    assert log == ["clients", "state-1.safetensors", "1.json"]


def test_what_a_round_changed_is_written_over_what_lies_there(tmp_path: Path) -> None:
    for value in (1, 2):
        checkpoint.save(tmp_path, Snapshot(1, 0, {}, {0: {"x": value}}, {0: 0}))
    assert checkpoint.load(tmp_path).client_states == {0: {"x": 2}}


def test_leftovers_are_removed_on_load(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, Snapshot(1, 0, {}, {0: {"x": 1}}, {0: 0}))
    before = contents(tmp_path)
    for name in ("clients/0-1.memory", "clients/5-1.memory", "state-2.safetensors", ".state-2.safetensors.tmp"):
        (tmp_path / name).write_bytes(b"half")
    checkpoint.load(tmp_path)
    assert contents(tmp_path) == before


def test_what_a_person_put_beside_the_files_stays_and_is_not_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "clients/.mine").mkdir(parents=True)
    mine = (".notes.tmp", "clients/notes", "clients/.mine/notes")
    for name in mine:
        (tmp_path / name).write_bytes(b"mine")
    two_rounds(tmp_path)
    checkpoint.load(tmp_path)
    assert contents(tmp_path).keys() > {*mine}


@pytest.mark.parametrize("name", ["2.json", "state-2.safetensors", "clients/6-1.memory"])
def test_a_folder_in_the_place_of_a_file_is_named(name: str, tmp_path: Path) -> None:
    two_rounds(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(IsADirectoryError, match=rf"{name} is a folder, where a checkpoint has a file: move it elsewhere"):
        checkpoint.load(tmp_path)


def two_rounds(folder: Path) -> None:
    """Two checkpoints of a client that trained in both rounds and one that trained in the first."""
    checkpoint.save(folder, Snapshot(1, 0, {"x": torch.ones(2)}, {6: {"y": 1}, 7: {"y": 1}}, {6: 0, 7: 0}))
    checkpoint.save(folder, Snapshot(2, 0, {"x": torch.zeros(2)}, {6: {"y": 2}, 7: {"y": 1}}, {6: 1, 7: 0}))


def one_bit_later(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a flipped bit": one_bit_later,
    "cut": lambda data: data[:-3],
    "pickle": lambda data: pickle.dumps({"t": 1}),
    "empty": lambda data: b"",
    "another message": lambda data: wire.encode({"adapter": random_adapter(1, seed=0)}),
}


@pytest.mark.parametrize("file", ["state-2.safetensors", "clients/6-1.memory", "2.json"])
@pytest.mark.parametrize("kind", DAMAGES)
def test_the_checkpoint_before_serves_where_the_last_is_damaged(
    kind: str, file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    two_rounds(tmp_path)
    whole = contents(tmp_path)
    (tmp_path / file).write_bytes(DAMAGES[kind](whole[file])[: None if file != "2.json" else -9])
    again = checkpoint.load(tmp_path)
    assert (again.t, again.client_states) == (1, {6: {"y": 1}, 7: {"y": 1}})
    assert torch.equal(again.state["x"], torch.ones(2))
    assert f"{file} was cut or altered" in caplog.text
    assert "going on after round 0" in caplog.text
    checkpoint.save(tmp_path, Snapshot(2, 0, {"x": torch.zeros(2)}, {6: {"y": 2}, 7: {"y": 1}}, {6: 1, 7: 0}))
    assert contents(tmp_path) == whole, "the round done again mends the folder"


@pytest.mark.parametrize("file", ["state-2.safetensors", "clients/6-1.memory", "2.json"])
def test_a_link_that_leads_in_circles_is_a_damage_like_others(
    file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    two_rounds(tmp_path)
    whole = contents(tmp_path)
    (tmp_path / file).unlink()
    (tmp_path / file).symlink_to(tmp_path / file)
    again = checkpoint.load(tmp_path)
    assert again.t == 1
    assert f"{file} was cut or altered" in caplog.text
    checkpoint.save(tmp_path, Snapshot(2, 0, {"x": torch.zeros(2)}, {6: {"y": 2}, 7: {"y": 1}}, {6: 1, 7: 0}))
    assert contents(tmp_path) == whole
    assert not (tmp_path / file).is_symlink()


@pytest.mark.parametrize("file", ["state-1.safetensors", "clients/6-0.memory", "1.json"])
def test_a_link_that_leads_in_circles_in_the_only_checkpoint_is_named(file: str, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, Snapshot(1, 0, {"x": torch.ones(2)}, {6: {"y": 1}}, {6: 0}))
    (tmp_path / file).unlink()
    (tmp_path / file).symlink_to(tmp_path / file)
    with pytest.raises(ValueError, match=rf"no checkpoint of .* can be read: .*{file} was cut or altered"):
        checkpoint.load(tmp_path)


def signed(**content: Any) -> bytes:
    """A manifest with the right digest of its content."""
    digest = manifests._digest(content)
    return (json.dumps({**content, "sha256": digest}, indent=1) + "\n").encode()


ODD_MANIFESTS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "deep nesting": lambda content: b"[" * 200_000,
    "no version": lambda content: signed(**{key: value for key, value in content.items() if key != "version"}),
    "no files": lambda content: signed(version=manifests.VERSION),
    "rounds in words": lambda content: signed(**content | {"t": "2"}),
    "a digest that is none": lambda content: signed(**content | {"digest": "x"}),
    "names that are lists": lambda content: signed(**content | {"replaced": [[]]}),
    "names that lead out of the folder": lambda content: signed(**content | {"replaced": ["../../6-0.memory"]}),
}


@pytest.mark.parametrize("kind", ODD_MANIFESTS)
def test_the_checkpoint_before_serves_where_a_manifest_is_odd(kind: str, tmp_path: Path) -> None:
    two_rounds(tmp_path)
    content = json.loads((tmp_path / "2.json").read_bytes())
    del content["sha256"]
    (tmp_path / "2.json").write_bytes(ODD_MANIFESTS[kind](content))
    assert checkpoint.load(tmp_path).t == 1


def test_every_byte_of_a_checkpoint_is_covered(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, Snapshot(1, 0, {"x": torch.ones(2)}, {6: {"y": 1}}, {6: 0}))
    for name, data in contents(tmp_path).items():
        for at in range(0, len(data), 7):
            (tmp_path / name).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            with pytest.raises((ValueError, FileNotFoundError)):
                checkpoint.load(tmp_path)
        (tmp_path / name).write_bytes(data)


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    two_rounds(tmp_path)
    checkpoint.save(tmp_path, Snapshot(3, 0, {"x": torch.ones(2)}, {7: {"y": 1}}, {7: 0}))
    assert sorted(contents(tmp_path)) == [
        "2.json",
        "3.json",
        "clients/6-1.memory",
        "clients/7-0.memory",
        "state-2.safetensors",
        "state-3.safetensors",
    ]


def test_a_checkpoint_without_a_whole_one_before_is_named(tmp_path: Path) -> None:
    two_rounds(tmp_path)
    (tmp_path / "clients/7-0.memory").write_bytes(b"")  # in both
    with pytest.raises(ValueError, match=r"no checkpoint of .* can be read: .*7-0\.memory was cut or altered"):
        checkpoint.load(tmp_path)
    (tmp_path / "clients/7-0.memory").unlink()
    with pytest.raises(ValueError, match=r"no checkpoint of .* can be read: .*clients was cut or altered: 2\.json has 2 "):
        checkpoint.load(tmp_path)


def test_the_checkpoint_of_another_release_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.setattr(manifests, "VERSION", 9)
        checkpoint.save(tmp_path / "later", Snapshot(1, 0, {"x": torch.ones(2)}))
    with pytest.raises(
        ValueError, match=r"1\.json: version 2 of a checkpoint was expected, found 9; .*the release that wrote it"
    ):
        checkpoint.load(tmp_path / "later")
    wire.write_file(tmp_path / "earlier/state.safetensors", {"version": 1})
    assert checkpoint.exists(tmp_path / "earlier")
    with pytest.raises(ValueError, match=r"state\.safetensors: version 2 of a checkpoint was expected, found 1"):
        checkpoint.load(tmp_path / "earlier")


def test_no_checkpoint(tmp_path: Path) -> None:
    assert not checkpoint.exists(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*: resume needs a run that finished a round"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("name", METHODS)
def test_a_snapshot_in_memory_resumes_with_the_bits_and_bytes_of_the_whole_run(name: str) -> None:
    method, ranks = METHODS[name]
    options: Any = {"rounds": ROUNDS, "cohort": sampling.uniform(2), "debug": True}
    whole = list(federate(method, toy_federation(ranks, training=SHORT), **options))
    if name == "a moving base":
        assert any(p.base_version for p in whole[-2].peers)
        assert method.broadcast(ROUNDS - 1, whole[-1].before, whole[-2].peers[0])["base"].since > 0
    for done in whole[:-1]:
        later = list(federate(method, toy_federation(ranks, training=SHORT), start=done.snapshot, **options))
        assert [r.t for r in later] == list(range(done.t + 1, ROUNDS))
        assert wire.encode(later[-1].state) == wire.encode(whole[-1].state)
        assert [r.bytes for r in later] == [r.bytes for r in whole[done.t + 1 :]]


def test_a_client_that_cannot_be_given_its_base_back_is_sent_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    method, ranks = METHODS["a moving base"]
    options: Any = {"rounds": ROUNDS, "cohort": sampling.uniform(2), "debug": True}
    whole = list(federate(method, toy_federation(ranks, training=SHORT), **options))
    monkeypatch.delattr(LocalClient, "restore")
    later = list(federate(method, toy_federation(ranks, training=SHORT), start=whole[1].snapshot, **options))
    assert wire.encode(later[-1].state) == wire.encode(whole[-1].state)
    assert later[0].bytes.down != whole[2].bytes.down


def test_the_snapshot_of_another_run_is_refused() -> None:
    clients = toy_federation((2, 2))
    done = next(iter(federate(LocalOnly(), clients, rounds=1)))
    with pytest.raises(ValueError, match="run with seed 0, this one has seed 1"):
        federate(LocalOnly(), clients, rounds=2, start=done.snapshot, seed=1)
    with pytest.raises(ValueError, match=r"remembers clients \[1\], which are not here"):
        federate(LocalOnly(), clients[:1], rounds=2, start=done.snapshot)


def test_a_state_that_cannot_be_written_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    good = Snapshot(1, 0, {"x": 1})
    checkpoint.save(tmp_path, good)
    with pytest.raises(TypeError, match="message/state/x: a SimpleNamespace cannot travel"):
        checkpoint.save(tmp_path, replace(good, t=2, state={"x": SimpleNamespace()}))
    assert checkpoint.load(tmp_path).t == 1
