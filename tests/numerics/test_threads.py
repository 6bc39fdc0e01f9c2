"""Layers on threads: the same results in the same order, and torch's number of threads as it was."""

import threading

import pytest
import torch

import fedelta
from fedelta import merging
from fedelta.lowrank import LoRA
from fedelta.numerics import threads
from fedelta.tree import Adapter


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_several_names_at_a_time_come_back_in_order(two_threads) -> None:
    both = threading.Barrier(2, timeout=10)

    def work(name: str) -> tuple[str, int]:
        if name in "ab":
            both.wait()  # passes only if the two are worked on at once
        return name * 2, torch.get_num_threads()

    found = threads.ordered(work, list("abc"))
    assert list(found.items()) == [("a", ("aa", 1)), ("b", ("bb", 1)), ("c", ("cc", 1))]
    assert torch.get_num_threads() == 2


def test_in_turn_each_has_all_threads(two_threads) -> None:
    assert threads.ordered(lambda name: torch.get_num_threads(), ["a", "b"], 1) == {"a": 2, "b": 2}


def test_the_first_error_in_order_is_raised(two_threads) -> None:
    def work(name: str) -> None:
        raise ValueError(name)

    with pytest.raises(ValueError, match="a"):
        threads.ordered(work, ["a", "b", "c"])
    assert torch.get_num_threads() == 2


def test_one_thread_is_given_back(two_threads) -> None:
    with threads.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("name", ["flexlora", "fedavg", "fedex_lora"])
def test_a_merge_gives_the_same_bits_with_any_number_of_threads(name: str, monkeypatch, two_threads) -> None:
    monkeypatch.setattr(merging, "FEW", 0)
    generator = torch.Generator().manual_seed(0)

    def adapter() -> Adapter:
        draw = [(torch.randn(300, 8, generator=generator), torch.randn(8, 260, generator=generator)) for _ in range(5)]
        return Adapter({f"layer {k}": LoRA(B, A) for k, (B, A) in enumerate(draw)})

    given, results = [adapter() for _ in range(4)], []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(fedelta.aggregate(given, method=name)[0])
    for other in results[1:]:
        for layer, x in results[0].layers.items():
            assert torch.equal(x.B, other.layers[layer].B)
            assert torch.equal(x.A, other.layers[layer].A)
