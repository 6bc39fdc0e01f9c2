"""Parcels: what the two ends of a run at real sites say to each other, whatever carries it.

A `Parcel` is a kind, a header of plain values and a body of bytes. The body is what the ledger counts: a message in the form of
`exchange.wire`. The header is JSON and small. Flower, a Unix socket and zenoh all carry the same parcels.

| kind | header down | body down | header up | body up |
|---|---|---|---|---|
| "census" | run, terms, want_template | - | who the site is (`engines.census`) | the template, if it was asked for |
| "train" | run, terms, t, remembered, base_version | the letter's message | run, t, metrics, base_version | the content |
| "evaluate" | run, terms, t, remembered | the method's message | run, t, scores, examples | - |
| "refusal" | | | reason: what a site answers in place of any of them | - |

Nodes without a server, which are equals, say:

| kind | header | body |
|---|---|---|
| "hello" | sender, run, t, terms: now and again, that a node is there, in which round and under which terms | - |
| "update" | sender, run, t, metrics | the content of its update |
| "held" | sender, run, t: that it holds the receiver's update of this round | - |
| "refusal" | sender, run, t, reason: why the link does not count in this round | - |
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedelta.exchange import strict_json

KINDS = ("census", "train", "evaluate", "refusal", "hello", "update", "held")
"""All kinds of parcels."""

VERSION = 1
"""Of the parcels; two ends that speak different ones refuse each other."""

MAX_HEADER = 1 << 20
"""Bytes of the longest header that is read: a header holds settings and metrics, never tensors."""

_FRAME = struct.Struct("<4sIQ")
_MAGIC = b"fdp1"


@dataclass(frozen=True)
class Parcel:
    """One message between a server, or a peer, and a site.

    Attributes:
        kind: one of `KINDS`.
        header: plain values that JSON can hold.
        body: a message in the form of `exchange.wire`, or nothing.
    """

    kind: str
    header: Mapping[str, Any] = field(default_factory=dict[str, Any])
    body: bytes = b""


def refusal(reason: str) -> Parcel:
    """Returns the parcel by which a site says why it does not do what it was asked."""
    return Parcel("refusal", {"reason": reason})


def encode(parcel: Parcel) -> bytes:
    """Returns a parcel as bytes: its lengths, the header as JSON, the body."""
    header = encode_header(parcel)
    return _FRAME.pack(_MAGIC, len(header), len(parcel.body)) + header + parcel.body


def encode_header(parcel: Parcel) -> bytes:
    """Returns kind and header as JSON, for a carrier that takes the body by itself.

    Raises:
        ValueError: for a header with a value that JSON does not have, such as NaN.
    """
    return json.dumps({"kind": parcel.kind, **parcel.header}, allow_nan=False, separators=(",", ":")).encode()


def decode(data: bytes | memoryview) -> Parcel:
    """Returns the parcel that some bytes hold.

    Raises:
        ValueError: for bytes that are no parcel, are cut off, or have something behind them.
    """
    if len(data) < _FRAME.size:
        raise ValueError(f"a parcel has at least {_FRAME.size} bytes, these are {len(data)}")
    header_size, body_size = lengths(bytes(data[: _FRAME.size]))
    end = _FRAME.size + header_size + body_size
    if len(data) != end:
        raise ValueError(f"a parcel of {end} bytes was announced, {len(data)} are there")
    header = bytes(data[_FRAME.size : _FRAME.size + header_size])
    return decode_parts(header, bytes(data[_FRAME.size + header_size :]))


FRAME_SIZE = _FRAME.size
"""Bytes of the frame before the header, from which `lengths` reads how much follows."""


def lengths(frame: bytes) -> tuple[int, int]:
    """Returns the lengths of header and body that the first `FRAME_SIZE` bytes of a parcel announce.

    Raises:
        ValueError: for bytes that do not begin a parcel, or announce a header that is too long.
    """
    magic, header_size, body_size = _FRAME.unpack(frame)
    if magic != _MAGIC:
        raise ValueError(f"these bytes do not begin a parcel of version {VERSION}")
    if header_size > MAX_HEADER:
        raise ValueError(f"a parcel's header of {header_size} bytes is announced, where {MAX_HEADER} are the most")
    return header_size, body_size


def decode_parts(header: bytes, body: bytes) -> Parcel:
    """Returns the parcel of a header as `encode_header` writes it, and a body.

    Raises:
        ValueError: for a header that is too long, is no JSON object, or is of an unknown kind.
    """
    if len(header) > MAX_HEADER:
        raise ValueError(f"a parcel's header has {len(header)} bytes, where {MAX_HEADER} are the most")
    try:
        values = strict_json.read(header)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the header of a parcel is no JSON: {error}") from None
    kind = values.pop("kind", None) if isinstance(values, dict) else None
    if kind not in KINDS:
        raise ValueError(f"a parcel of kind {str(kind)[:40]!r} is not known; there are {', '.join(KINDS)}")
    return Parcel(kind, values, body)
