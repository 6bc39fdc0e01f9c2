"""Peers as columns: what they give is what a list of the same peers gives, and columns that do not fit are refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedelta.models.toy import toy_federation, toy_population, toy_template
from fedelta.peers import Peer, kinds_of, largest, with_distinct_ranks
from fedelta.population import ClientsOnDemand, Population

KINDS = [Peer(0, 2, lora_alpha=4.0), Peer(0, 4, lora_alpha=8.0), Peer(0, 2, lora_alpha=4.0, rank_pattern={"hidden": 3})]


def some() -> Population:
    return Population(KINDS, [10, 20, 30, 40], kind=[2, 1, 2, 1], ids=[3, 5, 8, 13])


def test_columns_are_peers_in_the_order_of_ids() -> None:
    peers = some()
    expected = [
        replace(KINDS[kind], id=k, num_examples=n)
        for kind, k, n in zip((2, 1, 2, 1), (3, 5, 8, 13), (10, 20, 30, 40), strict=True)
    ]
    assert list(peers) == expected
    assert [*peers[1:3]] == expected[1:3]
    assert (peers[-1], peers.peer(8), len(peers)) == (expected[3], expected[2], 4)
    assert isinstance(peers[0].num_examples, int)
    for stranger in (0, 4, 14):
        with pytest.raises(KeyError):
            peers.peer(stranger)


def test_the_kinds_of_columns_are_those_of_the_list() -> None:
    peers = some()
    assert [*peers.kinds] == [*kinds_of(list(peers))] == [peers[0], peers[1]]
    assert with_distinct_ranks(peers) == with_distinct_ranks(list(peers))
    assert largest(toy_template(4), peers) == largest(toy_template(4), list(peers))


def test_a_million_peers_take_nine_bytes_each() -> None:
    peers = Population(KINDS, np.full(10**6, 7), kind=np.arange(10**6) % 3)
    assert isinstance(peers.ids, range)
    assert peers.examples.nbytes + peers._model_of.nbytes == 9 * 10**6
    assert (peers[123_456].rank, peers[-1].id) == (KINDS[123_456 % 3].rank, 10**6 - 1)


def test_columns_are_the_populations_own() -> None:
    sizes = np.array([1, 2])
    peers = Population(KINDS[0], sizes)
    sizes[0] = 99
    assert peers[0].num_examples == 1


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"num_examples": [1.5, 2.0]}, "num_examples is of shape .* float64"),
        ({"num_examples": [[1, 2]]}, "num_examples is of shape"),
        ({"kind": [0]}, "2 num_examples and 1 positions"),
        ({"kind": [0, 3]}, "positions from 0 to 3, where there are 3 kinds"),
        ({"kind": [0, -1]}, "positions from -1 to 0"),
        ({"ids": [1]}, "2 num_examples and 1 ids"),
        ({"ids": [1, 1]}, "must differ and ascend"),
        ({"ids": [2, 1]}, "must differ and ascend"),
    ],
)
def test_columns_that_do_not_fit_together_are_refused(columns: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Population(KINDS, **{"num_examples": [1, 2], **columns})


def test_clients_on_demand_are_those_of_the_list() -> None:
    made, listed = toy_population(Population(Peer(0, 2), [12, 16, 20])), toy_federation((2, 2, 2))
    assert len(made) == len(listed)
    for one, other in zip(made, listed, strict=True):
        assert one.peer == other.peer
        assert [e["x"].tolist() for e in one.examples] == [e["x"].tolist() for e in other.examples]  # type: ignore[attr-defined]
    assert [c.peer.id for c in made[1:]] == [1, 2]


def test_a_client_that_was_made_for_another_is_refused() -> None:
    listed = toy_federation((2, 2))
    with pytest.raises(ValueError, match="give each the peer that it is made for"):
        ClientsOnDemand(Population(Peer(0, 2), [12, 12]), lambda peer: listed[0])[1]


def test_samples_have_each_kind_and_the_last() -> None:
    clients = toy_population(Population([Peer(0, 2), Peer(0, 4)], np.full(9, 12), kind=[0, 0, 1, 0, 1, 0, 1, 1, 0]))
    assert [c.peer.id for c in clients.samples()] == [0, 2, 8]
