"""Messages survive the wire bit for bit, what is no message is refused by name, and files are never half written."""

import json
import os
import pickle
import struct
from hashlib import blake2b
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from fedelta.exchange import wire
from fedelta.lowrank import LoRA
from fedelta.models.toy import random_adapter
from fedelta.tree import Adapter, BaseDelta, named_tensors


def rich_message() -> dict:
    shared = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    return {
        "adapter": random_adapter(2, seed=3, scale=1 / 3, dtype=torch.bfloat16),
        "base": BaseDelta(4, {"hidden": (LoRA(shared, shared.mT), torch.zeros(3, 3))}, since=2),
        "aliases": [shared, shared.mT, shared[1:], shared[0]],
        "odd": {"scalar": torch.tensor(7), "empty": torch.zeros(0, 5), "flags": torch.tensor([True, False, True])},
        "plain": [0.1, 1e-320, -0.0, 1 << 80, True, None, "α\ud800", ("a", 1)],
    }


def assert_same(a: object, b: object) -> None:
    mine, others = dict(named_tensors(a)), dict(named_tensors(b))
    assert mine.keys() == others.keys()
    for name, tensor in mine.items():
        assert (tensor.dtype, tensor.shape) == (others[name].dtype, others[name].shape), name
        assert torch.equal(tensor, others[name]), name


def test_a_message_of_everything_comes_back_bit_for_bit() -> None:
    message = rich_message()
    again = wire.decode(wire.encode(message))
    assert_same(message, again)
    assert again["plain"] == message["plain"]
    assert str(again["plain"][2]) == "-0.0"
    assert isinstance(again["plain"][-1], tuple)
    assert isinstance(again["adapter"], Adapter)
    assert again["adapter"].layers["hidden"].scale == 1 / 3
    assert (again["base"].version, again["base"].since) == (4, 2)


def test_the_bytes_are_a_safetensors_file_with_one_entry_of_metadata(tmp_path: Path) -> None:
    wire.write_file(tmp_path / "m", rich_message())
    with safe_open(tmp_path / "m", "pt") as file:
        assert list(file.metadata()) == [wire.KEY]
        assert any(file.get_tensor(k).dtype == torch.bfloat16 for k in file.keys())  # noqa: SIM118 - not a mapping


def test_equal_messages_have_equal_bytes() -> None:
    assert wire.encode(rich_message()) == wire.encode(wire.decode(wire.encode(rich_message())))


def test_tensors_start_aligned_to_their_width() -> None:
    data = wire.encode({"flags": torch.ones(3, dtype=torch.bool), "wide": torch.ones(2, dtype=torch.float64)})
    length = int.from_bytes(data[:8], "little")
    offsets = {v["dtype"]: v["data_offsets"][0] for k, v in json.loads(data[8 : 8 + length]).items() if "dtype" in v}
    assert length % 8 == 0
    assert offsets == {"F64": 0, "BOOL": 16}


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from([torch.zeros(2, 0), torch.tensor(1.5), torch.arange(5, dtype=torch.int16), torch.ones(3).bfloat16()])
)
messages = st.dictionaries(st.text(), st.recursive(leaves, lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=8))


@settings(max_examples=60, deadline=None)
@given(messages)
def test_size_is_the_length_of_the_bytes(message: dict) -> None:
    data = wire.encode(message)
    assert wire.size(message) == len(data)
    assert wire.encode(wire.decode(data)) == data


def test_what_is_decoded_owns_its_memory() -> None:
    data = bytearray(wire.encode({"x": torch.ones(3)}))
    x = wire.decode(bytes(data))["x"]
    x += 1
    assert torch.equal(wire.decode(bytes(data))["x"], torch.ones(3))


def test_what_a_view_of_a_conjugate_means_travels() -> None:
    x = torch.tensor([1 + 2j]).conj().imag  # a view with torch's negative bit set
    assert torch.equal(wire.decode(wire.encode({"x": x}))["x"], torch.tensor([-2.0]))


def test_one_entry_of_a_strided_tensor_travels() -> None:
    x = torch.arange(6.0).reshape(3, 2)[1:2, 1]
    assert x.stride() == (2,)
    assert torch.equal(wire.decode(wire.encode({"x": x}))["x"], torch.tensor([3.0]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_plain_nan_is_refused_with_its_place(value: float) -> None:
    with pytest.raises(ValueError, match=r"message/a\[1\]/b is NaN or Inf"):
        wire.encode({"a": [1, {"b": value}]})
    with pytest.raises(ValueError, match="message/x/version is NaN"):
        wire.size({"x": BaseDelta(value, {})})  # type: ignore[arg-type]


@pytest.mark.parametrize("number", ["1e999", "-1e999", "Infinity", "NaN"])
def test_a_plain_number_that_cannot_be_sent_is_not_taken_either(number: str) -> None:
    data = wire.encode({"x": 1.2345678901234567})
    header = data[8:].replace(b"1.2345678901234567", number.encode().ljust(18))
    with pytest.raises(wire.MalformedError, match=f"{number} is"):
        wire.decode(data[:8] + header)


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        (object(), "message/x: a object cannot travel"),
        (torch.zeros(2, dtype=torch.complex128), "complex128"),
        (torch.eye(2).to_sparse(), "sparse"),
    ],
)
def test_what_cannot_travel_is_named(entry: object, what: str) -> None:
    with pytest.raises(TypeError, match=what):
        wire.encode({"x": entry})


def renamed_format(number: int) -> bytes:
    return wire.encode({"x": torch.ones(2)}).replace(b'\\"format\\":1', b'\\"format\\":%d' % number)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "an empty file"),
        (b"PK\x03\x04 and so on", "zip archive"),
        (pickle.dumps({"x": 1}), "a pickle"),
        (b"weights, honestly", "17 bytes that begin with b'weights,'"),
        (struct.pack("<Q", 4) + b"{abc", "damaged"),
        (safetensors.torch.save({"x": torch.ones(2)}), "without the entry 'fedelta'"),
        (safetensors.torch.save({"x": torch.ones(2)}, {"format": "pt"}), "without the entry 'fedelta'"),
        (renamed_format(9), "has format 9, this version reads 1"),
    ],
)
def test_what_is_no_message_is_refused(data: bytes, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        wire.decode(data)


@pytest.mark.parametrize("entries", [[["x", {"t": "t0"}], ["y", {"t": "t0"}]], []])
def test_a_tensor_that_is_named_twice_or_not_at_all_is_refused(entries: list) -> None:
    """A few bytes could otherwise stand for gigabytes wherever the message is written again."""
    content = json.dumps({"format": wire.FORMAT, "message": {"m": entries}})
    data = safetensors.torch.save({"t0": torch.zeros(2)}, metadata={wire.KEY: content})
    with pytest.raises(wire.MalformedError, match="of the 1 that it carries"):
        wire.decode(data)


def test_a_message_cut_anywhere_is_refused() -> None:
    data = wire.encode({"x": torch.ones(2), "note": "hello"})
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"cut|not a message"):
            wire.decode(data[:length])


def test_a_pickle_on_disk_is_refused_and_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "boom"),)

    torch.save({"x": Bomb()}, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(pickle.dumps(Bomb()))
    for name in ("a.safetensors", "b.safetensors"):
        with pytest.raises(ValueError, match=f"{name}.*pickle"):
            wire.read_file(tmp_path / name)
    assert not (tmp_path / "boom").exists()


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "m.safetensors"
    wire.write_file(path, {"x": 1})

    def full(handle: int, data: memoryview) -> int:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="no space"):
            wire.write_file(path, {"x": 2})
    assert wire.read_file(path) == {"x": 1}


def test_a_write_that_takes_a_part_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, data: write(handle, data[:7]))
        wire.write_file(tmp_path / "m", {"x": torch.arange(9)})
    assert torch.equal(wire.read_file(tmp_path / "m")["x"], torch.arange(9))


def test_the_ledger_adds_up() -> None:
    ledger = wire.Ledger({0: 5, 3: 7}, {3: 11})
    assert (ledger.total_down, ledger.total_up, ledger.total) == (12, 11, 23)


def test_a_digest_is_that_of_the_bytes() -> None:
    assert wire.digest(rich_message()) == blake2b(wire.encode(rich_message()), digest_size=16).digest()
