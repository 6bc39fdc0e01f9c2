"""The account of a base that moves: versions, steps for those who are nearly up to date, the whole sum for the others."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from fedelta import tree
from fedelta.engines.server import federate
from fedelta.lowrank import LoRA
from fedelta.method import State
from fedelta.methods import get_method
from fedelta.methods._shared.base_delta import advance, base_for, open_base
from fedelta.models.toy import toy_federation
from fedelta.peers import Peer
from fedelta.tree import BaseDelta

SHAPE = (40, 30)  # factors are smaller than the matrix up to rank 17


def step(rank: int, seed: int) -> Mapping[str, LoRA]:
    generator = torch.Generator().manual_seed(seed)
    return {"w": LoRA(torch.randn(SHAPE[0], rank, generator=generator), torch.randn(rank, SHAPE[1], generator=generator))}


def after(ranks: list[int]) -> State:
    state = open_base({})
    for k, rank in enumerate(ranks):
        state = advance(state, step(rank, k))
    return state


def bits(base: BaseDelta) -> torch.Tensor:
    return tree.dense(tree.total(base)["w"])


def size(base: BaseDelta) -> int:
    return sum(t.numel() for _, t in tree.named_tensors(base))


def test_nothing_has_version_0() -> None:
    state = open_base({"w": LoRA(torch.zeros(3, 2), torch.randn(2, 4))})
    assert state["base"].version == 0
    assert state["base"].terms == {}
    assert base_for(state, Peer(0, 2)) is state["base"]


def test_a_start_that_is_not_zero_has_version_1() -> None:
    start = step(2, seed=0)
    state = open_base(start)
    assert state["base"].version == 1
    assert torch.equal(bits(state["base"]), start["w"].dense())


@pytest.mark.parametrize("ranks", [[1, 2, 3, 2], [5, 6, 7, 5, 4, 3], [20, 1, 1, 1]])
def test_a_client_that_replays_steps_has_the_bits_of_the_server(ranks: list[int]) -> None:
    for missed in range(len(ranks) + 1):
        held = BaseDelta(0, {})
        for t in range(len(ranks) + 1):
            if t <= len(ranks) - missed or t == len(ranks):
                state = after(ranks[:t])
                held = tree.catch_up(held, base_for(state, Peer(0, 2, base_version=held.version)))
        assert held.version == len(ranks)
        assert torch.equal(bits(held), bits(state["base"]))


def test_steps_travel_while_they_are_smaller() -> None:
    state = after([8, 8, 2, 1])  # the sum is dense, 1200 numbers; a component has 70
    one, two, three = (base_for(state, Peer(0, 2, base_version=v)) for v in (3, 2, 1))
    assert (one.since, size(one)) == (3, 70)
    assert (two.since, size(two)) == (2, 210)
    assert (three.since, size(three)) == (1, 770)
    assert [len(b.terms["w"]) for b in (one, two, three)] == [1, 2, 3]
    whole = base_for(state, Peer(0, 2))
    assert (whole.since, size(whole)) == (0, 1200)


def test_a_client_that_is_up_to_date_gets_nothing() -> None:
    base = base_for(after([2, 2]), Peer(0, 2, base_version=2))
    assert (base.version, base.since, base.terms) == (2, 2, {})


def test_steps_that_can_never_pay_again_are_dropped() -> None:
    state = after([8] * 5)
    assert len(state["steps"]) == 2  # three of 560 numbers are more than the matrix of 1200
    assert base_for(state, Peer(0, 2, base_version=2)) is state["base"]
    assert base_for(state, Peer(0, 2, base_version=3)).since == 3


def test_a_version_that_never_was_gets_the_whole() -> None:
    state = after([2, 2])
    assert base_for(state, Peer(0, 2, base_version=7)) is state["base"]


def test_a_step_larger_than_the_matrix_travels_as_the_matrix() -> None:
    state = after([25])
    assert isinstance(state["base"].terms["w"][0], torch.Tensor)
    assert size(state["base"]) == 1200


@pytest.mark.parametrize("name", ["flora", "fedex_lora"])
def test_absent_clients_catch_up_in_an_engine(name: str) -> None:
    method, clients = get_method(name), toy_federation((2, 3, 2), lora_alpha=4.0)
    cohorts = {0: [0, 1], 1: [0], 2: [0, 1], 3: [1, 2]}
    for done in federate(method, clients, rounds=4, cohort=lambda t, peers, seed: cohorts[t]):
        assert not done.dropped
    versions = {p.id: p.base_version for p in done.peers}
    assert versions == {0: 2, 1: 3, 2: 3}
    for k in (0, 1, 2):
        held = base_for(done.before, replace(done.peers[k], base_version=0))
        assert held.version == 3
