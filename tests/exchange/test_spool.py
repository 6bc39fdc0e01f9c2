"""Updates on disk: the same bits as in memory for every method, one layer in memory at a time, and nothing left behind."""

import gc
import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch

import fedelta
from fedelta import topology, tree
from fedelta.engines.gossip import gossip
from fedelta.engines.rounds import Round
from fedelta.engines.server import federate
from fedelta.exchange import spool as spooling
from fedelta.exchange import wire
from fedelta.exchange.spool import Spool
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate
from fedelta.methods import get_method, method_class
from fedelta.models.toy import random_adapter, toy_federation
from fedelta.peers import Peer
from fedelta.tree import Adapter

HYPER = {"replication": {"low_rank": 1}}


def update(content, sender: int = 3) -> ClientUpdate:
    return ClientUpdate(Peer(sender, 2), 0.5, content, {"loss": 1.0})


def rounds(name: str, spool: spooling.Spooling) -> list[Round]:
    clients = toy_federation((1, 3, 2) if method_class(name).hetero_rank else (2, 2, 2))
    score = lambda adapter, base: {"loss": sum(float(x.B.norm()) for x in adapter.layers.values())}  # noqa: E731
    return list(federate(get_method(name, **HYPER.get(name, {})), clients, rounds=3, spool=spool, score=score, debug=True))


@pytest.mark.parametrize("name", fedelta.list_methods())
def test_every_method_gives_the_same_bits(name: str) -> None:
    for one, other in zip(rounds(name, True), rounds(name, False), strict=True):
        assert wire.encode({"state": one.state}) == wire.encode({"state": other.state})
        assert one.bytes == other.bytes
        assert [wire.encode(u.content) for u in one.updates] == [wire.encode(u.content) for u in other.updates]
        assert fedelta.diagnose(one) == fedelta.diagnose(other)


def test_nodes_without_a_server_give_the_same_bits() -> None:
    def play(spool: bool) -> bytes:
        method, clients = get_method("tad_lora", interval=1), toy_federation((2, 2, 2, 2))
        return wire.encode(list(gossip(method, clients, rounds=2, mixing=topology.ring(4), spool=spool, debug=True))[-1].state)

    assert play(True) == play(False)


MESSAGES = {
    "an adapter": {"adapter": random_adapter(2, seed=1)},
    "half precision": {"adapter": random_adapter(2, seed=1, dtype=torch.bfloat16), "note": None, "n": 3},
    "bare factors": {"B": {"hidden": torch.randn(6, 2), "output": torch.randn(4, 2).T}, "kept": {"hidden": [0, 1]}},
    "odd sizes": {
        "x": {"a": torch.arange(3, dtype=torch.int8), "b": torch.randn(5), "none": torch.empty(0, 4), "one": torch.ones(())}
    },
    "nothing": {},
}


@pytest.mark.parametrize("content", MESSAGES.values(), ids=list(MESSAGES))
def test_a_message_comes_back_as_it_was(content) -> None:
    spool = Spool(True)
    spool.keep(update({"adapter": random_adapter(1, seed=5)}))  # something before it
    kept = spool.keep(update(content))
    assert (kept.sender, kept.weight, kept.metrics) == (Peer(3, 2), 0.5, {"loss": 1.0})
    assert wire.encode(kept.content) == wire.encode(content)
    for _, x in tree.named_tensors(kept.content):
        assert x.data_ptr() % 64 == 0  # as torch's own, or a product of matrices may round otherwise


def test_an_item_is_read_when_asked_for_and_not_kept() -> None:
    given = random_adapter(2, seed=1)
    kept = Spool(True).keep(update({"adapter": given})).content["adapter"]
    assert isinstance(kept, Adapter)
    one, other = kept.layers["hidden"], kept.layers["hidden"]
    assert one.B.data_ptr() != other.B.data_ptr()
    one.B.zero_()  # a private copy: what a method writes is not in the file
    assert torch.equal(kept.layers["hidden"].B, given.layers["hidden"].B)


def test_what_was_checked_on_arrival_is_not_checked_again() -> None:
    poisoned = random_adapter(2, seed=1)
    poisoned.layers["hidden"].B[0, 0] = float("nan")
    tree.check_finite(Spool(True).keep(update({"adapter": poisoned})).content, "client 3")
    with pytest.raises(ValueError, match="client 3: adapter/hidden/B holds 1 NaN or Inf"):
        tree.check_finite({"adapter": poisoned}, "client 3")


def test_a_poisoned_update_is_left_out_before_it_is_spooled() -> None:
    clients = toy_federation((2, 2, 2))
    train = clients[1].train

    def poisoned(*args, **kwargs):
        result = train(*args, **kwargs)
        result.adapter.layers["hidden"].B.fill_(float("inf"))
        return result

    clients[1].train = poisoned
    (done,) = federate(get_method("flexlora"), clients, rounds=1, spool=True)
    assert list(done.dropped) == [1]
    assert "NaN or Inf" in done.dropped[1]


def test_auto_keeps_the_first_bytes_of_a_round_in_memory(monkeypatch) -> None:
    content = {"x": {"a": torch.ones(100)}}
    monkeypatch.setattr(spooling, "IN_MEMORY", 1000)
    spool = Spool("auto")
    for _ in range(2):
        spool.begin()
        first, second, third = (spool.keep(update(content)).content for _ in range(3))
        assert first is content
        assert second is content
        assert isinstance(third["x"], tree.Checked)
    assert Spool(False).keep(update(content)).content is content


def test_the_updates_of_a_round_stay_while_somebody_has_them() -> None:
    spool = Spool(True)
    old = spool.keep(update({"x": {"a": torch.ones(3)}}))
    spool.begin()
    spool.keep(update({"x": {"a": torch.zeros(3)}}))
    assert old.content["x"]["a"].tolist() == [1, 1, 1]


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    opened = set(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else set()
    run = federate(get_method("flexlora"), toy_federation((2, 2, 2)), rounds=3, spool=True)
    done = next(run)
    assert list(tmp_path.iterdir()) == []  # no name even while it is used: a killed run leaves nothing either
    del run, done
    gc.collect()
    if opened:
        assert len(set(os.listdir("/proc/self/fd"))) <= len(opened)


def test_a_cut_file_is_named_so() -> None:
    kept = Spool(True).keep(update({"adapter": random_adapter(2, seed=1)}))
    kept.content["adapter"].layers._stored.file.truncate(0)
    with pytest.raises(OSError, match=r"a spooled update cannot be read back: .*; its file was cut or closed"):
        kept.content["adapter"].layers["hidden"]


def test_a_disk_that_cannot_be_written_ends_the_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    run = federate(get_method("flexlora"), toy_federation((2, 2)), rounds=1, spool=True)
    with pytest.raises(OSError, match=r"the update of client 0 cannot be written to .*missing.*set TMPDIR"):
        next(run)


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="spool must be True, False or 'auto', got 'maybe'"):
        federate(get_method("flexlora"), toy_federation((2, 2)), rounds=1, spool="maybe")  # type: ignore[arg-type]


def test_layouts_are_shared_between_clients_of_equal_ranks() -> None:
    spool = Spool(True)
    kept = [spool.keep(update({"adapter": random_adapter(r, seed=k)})) for k, r in enumerate((2, 2, 3))]
    layouts = [u.content["adapter"].layers._stored.layout for u in kept]
    assert layouts[0] is layouts[1]
    assert layouts[0] is not layouts[2]


def test_a_delta_is_a_delta() -> None:
    kept = Spool(True).keep(update({"one": LoRA(torch.ones(3, 1), torch.ones(1, 2), 4.0)})).content
    assert kept["one"].scale == 4.0
    assert kept["one"].dense().sum() == 24


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such limit, and cannot read at a place")
@pytest.mark.parametrize("width", [10, spooling.SMALL], ids=["small", "large"])
def test_a_layer_of_more_updates_than_there_are_handles_is_read(width: int) -> None:
    import resource

    spool = Spool(True)
    kept = [spool.keep(update({"x": {"a": torch.full((width,), float(k))}})) for k in range(100)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 20, hard))
    try:
        tensors = [u.content["x"]["a"] for u in kept]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for k, x in enumerate(tensors):
        assert torch.equal(x, torch.full((width,), float(k)))
        assert x.data_ptr() % 64 == 0
