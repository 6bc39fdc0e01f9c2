import json

import pytest

from fedelta.exchange import parcels
from fedelta.exchange.parcels import Parcel


def test_a_parcel_comes_back_as_it_was():
    parcel = Parcel("train", {"t": 3, "terms": {"seed": 0}, "remembered": None}, b"\x00\xffbody")
    assert parcels.decode(parcels.encode(parcel)) == parcel


def test_header_and_body_may_be_carried_apart():
    parcel = Parcel("census", {"run": "ab"}, b"x")
    assert parcels.decode_parts(parcels.encode_header(parcel), parcel.body) == parcel


@pytest.mark.parametrize("cut", [0, 3, 15, 20, -1])
def test_a_parcel_that_is_cut_off_is_refused(cut: int):
    data = parcels.encode(Parcel("train", {"t": 3}, b"body"))
    with pytest.raises(ValueError, match="parcel"):
        parcels.decode(data[:cut])


def test_a_parcel_with_something_behind_it_is_refused():
    with pytest.raises(ValueError, match="announced"):
        parcels.decode(parcels.encode(Parcel("train", {}, b"body")) + b"more")


@pytest.mark.parametrize(
    "header",
    [
        b"\xff\xfe",
        b"[1]",
        b'{"t": 1}',
        b'{"kind": "run", "t": 1}',
        b'{"kind": "train", "t": NaN}',
        b'{"kind": "train", "x": 1e999}',
        b"[" * 100_000,
    ],
)
def test_a_header_that_is_none_is_refused(header: bytes):
    with pytest.raises(ValueError, match=r"parcel|JSON|Expecting"):
        parcels.decode_parts(header, b"")


def test_a_header_that_is_too_long_is_refused_before_it_is_read():
    frame = parcels.encode(Parcel("train"))[: parcels.FRAME_SIZE]
    assert parcels.lengths(frame) == (len(json.dumps({"kind": "train"}, separators=(",", ":"))), 0)
    with pytest.raises(ValueError, match="the most"):
        parcels.decode_parts(b"{" + b" " * parcels.MAX_HEADER + b"}", b"")


def test_a_header_takes_plain_numbers_only():
    with pytest.raises(ValueError, match="JSON"):
        parcels.encode(Parcel("train", {"loss": float("nan")}))
