"""Parcels as Flower's records: the body as one array of bytes, so that equal bodies are stored once, the header as JSON."""

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
    try:
        header = content.config_records[HEADER][HEADER]
        arrays = content.array_records
        body = arrays[BODY][BODY].data if BODY in arrays else b""
    except KeyError as error:
        raise ValueError(f"the message holds no parcel: it has no {error}") from None
    if not isinstance(header, str):
        raise ValueError(f"the message holds no parcel: its header is a {type(header).__name__}")
    return decode_parts(header.encode(), body)
