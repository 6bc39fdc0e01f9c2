"""The board on which work says what it is doing."""

import threading

import pytest

import fedelta
from fedelta.activity import Board, board, watched
from fedelta.models.toy import toy_federation


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


@pytest.mark.parametrize("engine", ["sequential", "batched"])
def test_engines_say_who_trains_and_how_many_have(engine: str):
    clients, seen = toy_federation(), set[tuple[int | None, int]]()

    class Watched(Board):
        """A board that remembers what was written on it."""

        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "step" and value:
                seen.add((self.client, self.training))

    with watched() as own:
        own.__class__ = Watched
        for done in fedelta.federate(fedelta.get_method("fedavg"), clients_of_one_rank(), rounds=2, engine=engine):
            assert own.t == done.t
            assert own.trained == own.cohort == 3
            assert own.share() == 1.0
    assert seen == ({(k, 1) for k in range(3)} if engine == "sequential" else {(None, 3)})
    assert len(clients) == 3


def clients_of_one_rank():
    return toy_federation(ranks=[2, 2, 2])


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
