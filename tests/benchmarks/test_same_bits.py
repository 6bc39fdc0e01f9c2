"""The script that compares two commits finds what differs, names it, and fails for it unless it is expected."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import pytest

FACTS = {"round 0/train_loss": "0.5", "round 0/diagnostics/effective_rank": "2.0", "adapters/last/x": "abc"}
KEY = ("toy", "fedavg", "", "equal", "sequential")


@pytest.fixture
def same_bits(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("same_bits.py")


@pytest.mark.parametrize(
    ("there", "first"),
    [
        (FACTS | {"adapters/last/x": "abd"}, "adapters/last/x: abc here, abd there"),
        (FACTS | {"round 1/train_loss": "0.4"}, "round 1/train_loss: nothing here, 0.4 there"),
        ({"refused": "ValueError: no"}, "round 0/train_loss: 0.5 here, nothing there"),
    ],
)
def test_the_first_difference_is_named_with_both_values(same_bits: ModuleType, there: dict[str, str], first: str):
    assert same_bits.compare(FACTS, there) == same_bits.Verdict("differs", first)


def test_equal_facts_refusals_and_runs_of_one_side_have_their_own_words(same_bits: ModuleType):
    refused = {"refused": "ValueError: no"}
    assert same_bits.compare(FACTS, dict(FACTS)).word == "same"
    assert same_bits.compare(refused, dict(refused)).word == "refused alike"
    assert same_bits.compare(refused, {"refused": "ValueError: never"}).word == "differs"
    assert (same_bits.compare(FACTS, None).word, same_bits.compare(None, FACTS).word) == ("new", "gone")


def test_parts_of_the_records_can_be_left_out(same_bits: ModuleType):
    renamed = {name.replace("effective_rank", "rank"): value for name, value in FACTS.items()}
    assert same_bits.compare(FACTS, renamed).word == "differs"
    assert same_bits.compare(FACTS, renamed, ["diagnostics"]).word == "same"


@pytest.mark.parametrize(
    ("there", "options", "status"),
    [
        ({KEY: FACTS}, [], 0),
        ({KEY: FACTS | {"round 0/train_loss": "0.25"}}, [], 1),
        ({KEY: FACTS | {"round 0/train_loss": "0.25"}}, ["--expect", "fedavg"], 0),
        ({KEY: FACTS | {"round 0/train_loss": "0.25"}}, ["--expect", "flexlora"], 1),
        ({}, [], 0),
        ({KEY: FACTS, ("toy", "flora", "", "equal", "batched"): FACTS}, [], 1),
    ],
)
def test_it_fails_for_differences_that_are_not_expected(
    same_bits: ModuleType,
    there: Any,
    options: list[str],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """A method that only this checkout has is no difference; one that it lost is."""
    monkeypatch.setattr(same_bits, "checked_out", lambda commit: nullcontext(commit))
    monkeypatch.setattr(same_bits, "left_by", lambda tree, toy: there if tree == "abc123" else {KEY: FACTS})
    assert same_bits.main(["abc123", "--toy", *options]) == status
    assert "fedavg" in capsys.readouterr().out
    assert same_bits.main(["abc123", "--json", *options]) == status
    json.loads(capsys.readouterr().out)
