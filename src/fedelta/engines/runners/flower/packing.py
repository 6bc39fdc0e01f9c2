"""Parcels as Flower's records: the body as one array of bytes, so that equal bodies are stored once, the header as JSON."""

# An extra need not be installed where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedelta.exchange.parcels import Parcel, decode_parts, encode_header

HEADER, BODY = "header", "body"

GRACE = 60.0
"""Seconds after its deadline in which a late answer still reaches the SuperLink, to be counted."""


def pack(parcel: Parcel) -> RecordDict:
    """Returns a parcel as the content of one of Flower's messages."""
    content = RecordDict({HEADER: ConfigRecord({HEADER: encode_header(parcel).decode()})})
    if parcel.body:
        array = Array(dtype="uint8", shape=(len(parcel.body),), stype="fedelta.wire", data=parcel.body)
        content[BODY] = ArrayRecord({BODY: array})
    return content


def unpack(content: RecordDict) -> Parcel:
    """Returns the parcel in the content of a message, which anybody may have written.

    Raises:
        ValueError: for content that holds no parcel.
    """
    # By name, and not from `content.array_records`: that leaves a circle of references, which keeps the body until Python looks
    # for such circles, and so the bodies of many clients together.
    head, array = content.get(HEADER), content.get(BODY)
    header = head.get(HEADER) if isinstance(head, ConfigRecord) else None
    if not isinstance(header, str):
        raise ValueError(f"the message holds no parcel: {HEADER!r} is {header!r:.40}, where a text is expected")
    body = array.get(BODY) if isinstance(array, ArrayRecord) else None
    return decode_parts(header.encode(), b"" if body is None else body.data)
