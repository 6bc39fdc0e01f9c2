"""A store keeps finished cells whatever kills its writers, and refuses what is none."""

import gzip
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from fedelta.runs.suite import store as stores
from fedelta.runs.suite.store import Store

RECORD = {
    "t": 0,
    "cohort": [0],
    "dropped": {},
    "bytes": {"down": 1, "up": 1},
    "seconds": {"round": 0.5},
    "train_loss": 1.0,
}


def line(digest: str, **changes: Any) -> dict[str, Any]:
    cell = {
        "kind": "cell",
        "digest": digest,
        "code": {"fedelta": "1", "commit": ""},
        "config": {},
        "files": {},
        "facts": {},
        "split": None,
    }
    return {**cell, "records": [RECORD], "clients": None, **changes}


def read(path: Path) -> dict[str, Any]:
    store = Store(path)
    store.refresh()
    return store.lines


def filled(path: Path, *digests: str) -> Path:
    store = Store(path)
    for digest in digests:
        store.add(line(digest))
    return path


def test_lines_come_back_and_equal_cells_give_equal_bytes(tmp_path: Path):
    one, other = filled(tmp_path / "a.jsonl.gz", "x", "y"), filled(tmp_path / "deep" / "b.jsonl.gz", "x", "y")
    assert read(one) == {"x": line("x"), "y": line("y")}
    assert one.read_bytes() == other.read_bytes()
    assert gzip.decompress(one.read_bytes()).count(b"\n") == 2


def test_a_line_is_not_repeated_and_those_of_others_are_seen(tmp_path: Path):
    path = filled(tmp_path / "a.jsonl.gz", "x")
    mine = Store(path)
    mine.refresh()
    filled(path, "y")
    size = path.stat().st_size
    mine.add(line("y"))
    mine.add(line("x"))
    assert path.stat().st_size == size
    assert set(mine.lines) == {"x", "y"}


@pytest.mark.parametrize("cut", [1, 5, 12, 40])
def test_a_member_that_breaks_off_is_cut_and_nothing_before_it_is_lost(tmp_path: Path, cut: int):
    path = filled(tmp_path / "a.jsonl.gz", "x", "y")
    whole = len(filled(tmp_path / "b.jsonl.gz", "x").read_bytes())
    path.write_bytes(path.read_bytes()[: whole + cut])
    assert set(read(path)) == {"x"}
    filled(path, "z")
    assert set(read(path)) == {"x", "z"}
    assert path.read_bytes() == filled(tmp_path / "c.jsonl.gz", "x", "z").read_bytes()


def test_zeros_that_a_power_cut_left_are_cut_too(tmp_path: Path):
    path = filled(tmp_path / "a.jsonl.gz", "x")
    path.write_bytes(path.read_bytes() + bytes(100))
    assert set(read(path)) == {"x"}
    assert set(read(filled(path, "y"))) == {"x", "y"}


def test_damage_before_the_end_is_refused(tmp_path: Path):
    path = filled(tmp_path / "a.jsonl.gz", "x", "y")
    content = bytearray(path.read_bytes())
    content[30] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="is damaged"):
        read(path)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{", "line 2: is no JSON"),
        (b"[" * 100_000, "line 2: is no JSON"),
        (b"NaN", "line 2: is no JSON"),
        (b"[]", "line 2: is no finished run"),
        (json.dumps(line("y", kind="other")).encode(), "line 2: is no finished run"),
        (json.dumps(line("y", records=[{"t": 0}])).encode(), "line 2: has records that are none"),
        (json.dumps(line("y", records=[])).encode(), "line 2: has records that are none"),
        (json.dumps(line("y", clients=[{"t": "0"}])).encode(), "line 2: has lines of clients that are none"),
        (json.dumps(line("y", facts=3)).encode(), "line 2: has no 'facts'"),
        (json.dumps(line("y", files={"data.source": 3})).encode(), "line 2: has digests of files that are none"),
        (json.dumps(line("y", records=[{**RECORD, "t": 7}])).encode(), "line 2: has records of other rounds"),
        (json.dumps(line("y", code={"fedelta": "1", "commit": "\x1b[31m"})).encode(), "line 2: does not say by which code"),
        (json.dumps(line("y", code={})).encode(), "line 2: does not say by which code"),
        (json.dumps({"kind": "untrained", "digest": "u", "scores": {"test": 3}}).encode(), "line 2: has scores that are none"),
    ],
)
def test_a_line_that_is_none_is_refused_by_its_number(tmp_path: Path, raw: bytes, message: str):
    path = filled(tmp_path / "a.jsonl.gz", "x")
    path.write_bytes(path.read_bytes() + gzip.compress(raw + b"\n"))
    with pytest.raises(ValueError, match=message):
        read(path)


def test_a_line_that_unpacks_to_more_than_any_cell_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stores, "LONGEST_LINE", 1 << 20)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(bytes(5 << 20)))
    with pytest.raises(ValueError, match="a line has more than 1 MiB"):
        read(path)


def test_lines_that_were_packed_together_are_read_one_by_one(tmp_path: Path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(json.dumps(line(d)).encode() + b"\n" for d in ("x", "y", "z"))))
    assert set(read(filled(path, "w"))) == {"x", "y", "z", "w"}


def _fill(path: Path, name: str) -> None:
    store = Store(path)
    for i in range(20):
        store.add(line(f"{name}{i}"))


def test_two_processes_write_to_one_store(tmp_path: Path):
    path = tmp_path / "a.jsonl.gz"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_fill, args=(path, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert len(read(path)) == 40


@pytest.mark.parametrize("content", [b"garbage", b'{"kind": "cell"}\n', b"\n"])
def test_a_file_that_is_no_gzip_is_refused_and_stays_as_it_is(content: bytes, tmp_path: Path):
    path = tmp_path / "cells.jsonl.gz"
    path.write_bytes(content)
    store = Store(path)
    with pytest.raises(ValueError, match="is no gzip file where a line should begin"):
        store.refresh()
    with pytest.raises(ValueError, match="is no gzip file where a line should begin"):
        Store(path).add(line("a"))
    assert path.read_bytes() == content
