"""The board on which work says what it is doing."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

import fedelta
from fedelta.activity import Board, board, watched
from fedelta.models.toy import toy_federation
from fedelta.runs.runner import rounds


def test_a_board_is_read_in_its_block_alone():
    unread = board()
    with watched() as own:
        assert board() is own
        with watched() as inner:
            assert board() is inner
        assert board() is own
    assert board() is unread


@pytest.mark.parametrize(
    ("trained", "training", "step", "steps", "share"),
    [(0, 0, 0, 0, 0.0), (2, 0, 0, 0, 0.5), (1, 2, 1, 4, 0.375), (4, 4, 1, 1, 1.0)],
)
def test_the_share_of_a_round_counts_clients_and_the_steps_of_those_that_train(
    trained: int, training: int, step: int, steps: int, share: float
):
    assert Board(cohort=4, trained=trained, training=training, step=step, steps=steps).share() == share


def test_without_a_cohort_nothing_is_done():
    assert Board(trained=3).share() == 0.0


class Remembering(Board):
    """A board that remembers who took steps: the client's id, and how many trained at once."""

    seen: ClassVar[set[tuple[int | None, int]]]

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "step" and value and self.training:
            self.seen.add((self.client, self.training))


@pytest.fixture
def remembering() -> Iterator[Remembering]:
    with watched() as own:
        Remembering.seen = set()
        own.__class__ = Remembering
        yield cast("Remembering", own)


@pytest.mark.parametrize(
    ("engine", "seen"), [("sequential", {(0, 1), (1, 1), (2, 1)}), ("batched", {(None, 3)})], ids=["sequential", "batched"]
)
def test_a_run_says_who_trains_how_many_have_and_what_comes_then(
    engine: str, seen: set[Any], remembering: Remembering, tiny_config: dict[str, Any], tmp_path: Path
):
    given = tiny_config | {"federation": {"rounds": 2, "engine": engine}, "output": str(tmp_path / "run")}
    for record in rounds(given):
        assert (remembering.t, remembering.trained, remembering.cohort) == (record["t"], 3, 3)
        assert remembering.share() == 1.0
        assert remembering.doing == "saving"
    assert remembering.seen == seen


def test_numbers_are_the_same_whether_somebody_looks_or_not():
    def last() -> str:
        *_, done = fedelta.federate(fedelta.get_method("flexlora"), toy_federation(), rounds=2)
        return str({n: x.B.tolist() for n, x in done.state["adapter"].layers.items()})

    unwatched = last()
    stop = threading.Event()
    with watched() as own:
        reader = threading.Thread(target=lambda: [own.share() for _ in iter(stop.is_set, True)])
        reader.start()
        assert last() == unwatched
        stop.set()
        reader.join()
