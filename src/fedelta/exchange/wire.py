"""Turns messages into bytes and back: safetensors for tensors, JSON for the rest, never pickle; and counts what travelled.

An encoded message is a safetensors file whose metadata hold one entry, `fedelta`: the format's version and the structure of
`tree.flatten`. Any safetensors reader opens it. The header is written here and not by the library, for three reasons: equal
messages give equal bytes under every version of it, the size is known without the bytes, and tensors may share memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from fedelta import tree
from fedelta.exchange import files, strict_json
from fedelta.tree import Message

FORMAT = 1
"""Version of the layout; a reader refuses any other."""

KEY = "fedelta"
"""The metadata entry that marks a safetensors file as a message."""

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The types that a tensor of a message may have, with their names in safetensors."""


class MalformedError(ValueError):
    """Bytes or a file that were cut or altered, or are a pickle, or of another form. Nothing of them was used."""


# --- bytes -----------------------------------------------------------------------------------------------------------


def encode(message: Message) -> bytes:
    """Returns the bytes of a message; equal messages have equal bytes.

    Tensors may have any strides and device, and may share memory; each is written out in full.

    Raises:
        TypeError: for an entry that cannot travel, saying where it is.
        ValueError: for a plain number that is NaN or Inf, which JSON cannot hold; send it as a tensor.
    """
    header, tensors = _header(message)
    return b"".join([header, *(raw(x) for x in tensors)])


def size(message: Message) -> int:
    """Returns `len(encode(message))`, without writing out the tensors."""
    header, tensors = _header(message)
    return len(header) + sum(x.nbytes for x in tensors)


def digest(message: Message) -> bytes:
    """Returns 16 bytes that stand for `encode(message)`, which is never there in whole: equal ones for equal messages."""
    header, tensors = _header(message)
    found = blake2b(header, digest_size=16)
    for x in tensors:
        found.update(raw(x))
    return found.digest()


def decode(data: bytes) -> Message:
    """Returns the message in some bytes, the inverse of `encode`; its tensors are on the CPU and own their memory.

    Raises:
        MalformedError: for bytes that were cut or altered, a pickle, safetensors that are no message of ours, or a message of
            another version of the format. No bytes, whoever wrote them, raise anything else.
    """
    head = _read_header(data)
    if KEY not in head:
        raise MalformedError(
            f"a safetensors file without the entry {KEY!r}: not a message of fedelta; an adapter folder is read by load_adapter"
        )
    content = _parse(head[KEY])
    if content.get("format") != FORMAT:
        raise MalformedError(
            f"the message has format {content.get('format')!r:.40}, this version reads {FORMAT}: use the one that wrote it"
        )
    try:
        tensors = _known_types(load(data))
        message = tree.unflatten(tensors, content.get("message"))
        _demand_each_once(message, len(tensors))
    except UNREADABLE as error:
        raise MalformedError(f"the message was cut or altered ({len(data)} bytes): {error}") from error
    if not isinstance(message, dict):
        raise MalformedError(f"a message has entries by name, this is a {type(message).__name__}")
    return cast("Message", message)


def _header(message: Message) -> tuple[bytes, list[Tensor]]:
    """Returns the safetensors header with its length in front, and the tensors in the order in which they follow."""
    tensors, structure = tree.flatten(message)
    # The widest first, so that each tensor starts at a multiple of its own entries' size, as readers expect.
    names = sorted(tensors, key=lambda n: -tensors[n].element_size())
    head: dict[str, Any] = {"__metadata__": {KEY: _json({"format": FORMAT, "message": structure})}}
    offset = 0
    for name in names:
        x = tensors[name]
        head[name] = {"dtype": _dtype(x), "shape": list(x.shape), "data_offsets": [offset, offset + x.nbytes]}
        offset += x.nbytes
    text = _json(head).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of 8, as safetensors asks
    return len(text).to_bytes(8, "little") + text, [tensors[n] for n in names]


def _dtype(x: Tensor) -> str:
    if x.dtype not in DTYPES or x.layout != torch.strided:
        raise TypeError(f"a tensor of {x.dtype} and layout {x.layout} cannot travel; send a dense one of {list(DTYPES)}")
    return DTYPES[x.dtype]


def raw(x: Tensor) -> memoryview:
    """Returns the bytes of a tensor, row after row: its own memory where that lies so on the CPU, else a copy."""
    x = x.detach().cpu().resolve_neg().contiguous()
    x = x.as_strided((x.numel(),), (1,))  # a contiguous tensor of one entry may have any stride, which `view` refuses
    return x.view(torch.uint8).numpy().data


def _json(value: Any) -> str:
    """Returns compact JSON, with floats to their last bit; refuses NaN and Inf, which JSON does not have."""
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        found = next(_not_finite(value["message"], "message"), "a plain number")
        raise ValueError(f"{found} is NaN or Inf and cannot travel as a plain number; send it as a tensor, or None") from error


def _not_finite(structure: Any, where: str) -> Iterator[str]:
    """Yields the paths of the plain numbers that JSON refuses, in a structure of `tree.flatten`."""
    match structure:
        case {"v": float(value)} if not math.isfinite(value):
            yield where
        case {"m": items}:
            for key, inner in items:
                yield from _not_finite(inner, f"{where}/{key}")
        case {"l": items} | {"p": items}:
            for k, inner in enumerate(items):
                yield from _not_finite(inner, f"{where}[{k}]")
        case {"f": inner}:
            yield from _not_finite(inner, where)
        case _:
            return


UNREADABLE = (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RuntimeError)
"""The errors of safetensors, torch and `tree.unflatten` on bytes that are no message; RecursionError is a RuntimeError."""


def _parse(text: str | bytes) -> dict[str, Any]:
    """Returns the object in a JSON text.

    Raises:
        MalformedError: for a text that holds anything else.
    """
    try:
        value = strict_json.read(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise MalformedError(f"the header of the message is damaged: {error}") from error
    if not isinstance(value, dict):
        raise MalformedError(f"the header of the message is damaged: it holds a {type(value).__name__}, not entries by name")
    return cast("dict[str, Any]", value)


def _known_types(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the same tensors; raises ValueError if one is of a type that no message holds."""
    if odd := [x.dtype for x in tensors.values() if x.dtype not in DTYPES]:
        raise ValueError(f"no message holds a tensor of {odd[0]}")
    return tensors


def _demand_each_once(message: Any, count: int) -> None:
    """Raises ValueError unless a message holds each of the tensors that came with it once.

    A structure of a few bytes could otherwise name one tensor a thousand times, and whoever writes the message again, to a
    spool or a disk, would write a thousand tensors.
    """
    named = [id(x) for _, x in tree.named_tensors(message)]
    if len(named) != count or len(set(named)) != count:
        raise ValueError(f"it names tensors {len(named)} times, {len(set(named))} of the {count} that it carries")


def _read_header(data: bytes) -> Mapping[str, Any]:
    """Returns the metadata of a safetensors file.

    Raises:
        MalformedError: saying what the bytes are instead.
    """
    length = int.from_bytes(data[:8], "little")
    if data[8:9] == b"{" and length > len(data) - 8:
        raise MalformedError(f"the message was cut: its header takes {length + 8} bytes, only {len(data)} are here")
    if data[8:9] != b"{" or len(data) < 8:
        raise MalformedError(f"not a message: {_kind(data)}, where safetensors bytes were expected")
    metadata = _parse(data[8 : 8 + length]).get("__metadata__")
    return cast("dict[str, Any]", metadata) if isinstance(metadata, dict) else {}


def _kind(data: bytes) -> str:
    if not data:
        return "an empty file"
    if data[:1] == b"\x80":
        return "a pickle, which may run code when it is opened and is never read"
    if data[:2] == b"PK":
        return "a zip archive, such as torch.save writes (a pickle inside, which is never read)"
    return f"{len(data)} bytes that begin with {data[:8]!r}"


# --- files -----------------------------------------------------------------------------------------------------------


def write_file(path: Path, message: Message) -> None:
    """Writes a message so that after a crash at any moment `path` holds the old content or the new, whole.

    Raises:
        OSError: for a disk that cannot be written; the old content stands.
    """
    files.commit(path, encode(message))


def read_file(path: Path) -> Message:
    """Returns the message in a file.

    Raises:
        MalformedError: as `decode`, naming the file.
        FileNotFoundError: if there is none.
    """
    try:
        return decode(path.read_bytes())
    except MalformedError as error:
        raise MalformedError(f"{path}: {error}") from error


# --- the ledger ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ledger:
    """The bytes of a round, by direction and client id.

    Attributes:
        down: to each client that was sent something.
        up: from each client whose message arrived, used or not.
    """

    down: Mapping[int, int] = field(default_factory=dict[int, int])
    up: Mapping[int, int] = field(default_factory=dict[int, int])

    @property
    def total_down(self) -> int:
        return sum(self.down.values())

    @property
    def total_up(self) -> int:
        return sum(self.up.values())

    @property
    def total(self) -> int:
        """Both directions."""
        return self.total_down + self.total_up
