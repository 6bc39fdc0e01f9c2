"""The reader of GGUF files: numbers by hand, the package `gguf` where it is installed, and refusals."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedelta.models.fetched.gguf import READERS, Gguf

DRAWN = np.random.default_rng(0)


def eighths(*shape: int) -> np.ndarray:
    """Values that all kinds hold exactly."""
    return DRAWN.integers(-8, 8, shape).astype(np.float32) / 8


def test_facts_and_tensors_come_back_as_they_were_written(tmp_path: Path, write_gguf: Callable[..., None]):
    facts = {"a.number": 7, "a.fraction": 0.5, "a.text": "wörd", "a.list": ["x", "y"]}
    tensors = {"plain": (eighths(3), "F32"), "coarse": (eighths(4, 64), "Q4_1"), "fine": (eighths(2, 3, 32), "Q8_0")}
    write_gguf(tmp_path / "x.gguf", facts, tensors)
    read = Gguf(tmp_path / "x.gguf")
    assert read.facts == facts
    for name, (values, _) in tensors.items():
        np.testing.assert_array_equal(read.tensor(name), values)


def test_a_block_by_hand():
    """Step 2 and least value 1; the first byte's low half is value 0, its high half value 16."""
    head = np.array([2, 1], dtype="<f2").tobytes()
    block = np.frombuffer(head + bytes([0xF3, *[0] * 15]), dtype=np.uint8).reshape(1, 20)
    values = READERS["Q4_1"](block)[0]
    assert (values[0], values[1], values[16], values[17]) == (7, 1, 31, 1)


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_blocks_are_read_as_the_package_gguf_reads_them(kind: str):
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    sort = gguf.GGMLQuantizationType[kind]
    values = DRAWN.normal(size=(64, 32)).astype(np.float32)
    blocks = gguf.quants.quantize(values, sort)
    np.testing.assert_array_equal(READERS[kind](blocks), gguf.quants.dequantize(blocks, sort))


def test_files_that_are_not_read_are_refused(tmp_path: Path, write_gguf: Callable[..., None]):
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF\x02\0\0\0" + bytes(16))
    with pytest.raises(ValueError, match=r"x\.gguf is not a GGUF file of version 3"):
        Gguf(file)
    write_gguf(file, {"a": 1}, {"odd": (eighths(32), "Q4_1")})
    content = bytearray(file.read_bytes())
    place = content.index(b"odd") + 3 + 4 + 8
    content[place] = 14
    file.write_bytes(content)
    with pytest.raises(ValueError, match="tensor 'odd' is of type 14, and only F32, Q4_1, Q8_0 are read"):
        Gguf(file)
