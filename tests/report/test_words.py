"""Numbers and rounds in words."""

from collections.abc import Callable
from typing import Any

import pytest

from fedelta.report import words

Record = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3.5 * 2**20, "3.5 MiB"), (2**40, "1.0 TiB")]
)
def test_sizes(count: float, text: str):
    assert words.size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s")])
def test_durations(seconds: float, text: str):
    assert words.duration(seconds) == text


def test_majority_is_the_share_of_the_commonest_label():
    assert words.majority(["a", "b", "a", "a"]) == 0.75
    assert words.majority([None, None]) is None
    assert words.majority([]) is None


def test_a_round_in_one_line(record: Record):
    line = words.round_line(record(3, dropped={"2": "NaN"}), 8 * 2**20)
    assert line == "round   3  loss 1.2000  accuracy: validation 0.8000, test 0.8000  8.0 MiB  left out: 2"
    bare = {k: v for k, v in record(3, train_loss=None).items() if k not in ("test", "validation")}
    assert words.round_line(bare, 0) == "round   3  loss –  0 B"


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (40, "model.layers.10.attention.query"),
        (30, "…layers.10.attention.query"),
        (20, "…10.attention.query"),
        (10, "…10…query"),
        (6, "…query"),
        (1, "…"),
        (0, ""),
    ],
)
def test_a_long_name_keeps_what_tells_it_from_others(width: int, shown: str):
    found = words.folded("model.layers.10.attention.query", width)
    assert len(found) <= width
    assert found == shown


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.0, "0.0%"), (0.0523, "5.2%"), (1.0, "100.0%"), (2.83, "283.0%"), (3.2e-8, "3e-08")]
)
def test_shares(value: float | None, text: str):
    assert words.percent(value) == text
