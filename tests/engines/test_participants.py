"""Clients on demand: the same run as with a list of them, to the bit, and none is made but whom a round needs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedelta import sampling
from fedelta.client import LocalClient, Training
from fedelta.diagnostics import diagnose
from fedelta.engines import checkpoint
from fedelta.engines.gossip import gossip
from fedelta.engines.participants import Doors
from fedelta.engines.rounds import Round
from fedelta.engines.server import federate
from fedelta.exchange import wire
from fedelta.method import Method
from fedelta.methods import get_method, list_methods
from fedelta.methods.fedavg import FedAvg
from fedelta.models.toy import random_adapter, toy_federation, toy_population
from fedelta.optim import SGD
from fedelta.peers import Peer, template_for
from fedelta.population import ClientsOnDemand, Population
from fedelta.topology import ring

SIZES, SHORT = (12, 16, 20, 24), Training(local_steps=1, batch_size=4, learning_rate=0.05, optimizer=SGD())
MANY = 1_000_000


def built(name: str) -> Method:
    return get_method(name, local=["fedprox", "scaffold"], optimizer="fedavgm") if name == "compose" else get_method(name)


def both(method: Method) -> tuple[list[LocalClient], ClientsOnDemand]:
    """Four clients as a list and on demand, at unequal ranks where the method allows them."""
    ranks = (2, 4, 3, 4) if method.hetero_rank else (3, 3, 3, 3)
    kinds = [Peer(0, rank, lora_alpha=8.0) for rank in ranks]
    on_demand = toy_population(Population(kinds, SIZES, kind=range(4)), seed=5, training=SHORT)
    return toy_federation(ranks, num_examples=SIZES, lora_alpha=8.0, seed=5, training=SHORT), on_demand


def run(method: Method, clients: Any, **settings: Any) -> list[Round]:
    options = {
        "rounds": 3,
        "seed": 3,
        "cohort": sampling.uniform(2),
        "score": lambda adapter, base: {"accuracy": 0.5, "loss": 1.0},
    }
    return list(federate(method, clients, debug=True, **(options | settings)))


def same(x: Round, y: Round) -> None:
    assert wire.encode({"state": x.state}) == wire.encode({"state": y.state})
    for table in ("client_rounds", "base_versions", "touched"):
        assert dict(getattr(x.snapshot, table)) == dict(getattr(y.snapshot, table))
    assert (x.bytes, list(x.peers), diagnose(x)) == (y.bytes, list(y.peers), diagnose(y))
    if not x.personal:
        assert wire.encode(x.global_model()) == wire.encode(y.global_model())
    for peer in y.peers:
        assert wire.encode(x.participant_model(peer)) == wire.encode(y.participant_model(peer))


@pytest.mark.parametrize("name", list_methods())
def test_clients_on_demand_run_as_a_list_of_them_does(name: str) -> None:
    listed, on_demand = both(built(name))
    settings: dict[str, Any] = {"cohort": sampling.everyone} if name == "centralised" else {}
    for x, y in zip(run(built(name), listed, **settings), run(built(name), on_demand, **settings), strict=True):
        same(x, y)


@pytest.mark.parametrize("name", ["flora", "scaffold", "fedsa_lora"])
def test_a_run_with_clients_on_demand_goes_on_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    whole = run(built(name), both(built(name))[0], rounds=4)
    for done in run(built(name), both(built(name))[1], rounds=2):
        checkpoint.save(tmp_path, done.snapshot)
    for x, y in zip(whole[2:], run(built(name), both(built(name))[1], rounds=4, start=checkpoint.load(tmp_path)), strict=True):
        same(x, y)


def test_nodes_of_a_graph_may_be_made_on_demand() -> None:
    listed, on_demand = both(get_method("zeropad"))
    options: dict[str, Any] = {"rounds": 2, "mixing": ring(4), "seed": 3}
    runs = [gossip(get_method("zeropad"), clients, **options) for clients in (listed, on_demand)]
    for x, y in zip(*runs, strict=True):
        assert wire.encode({"state": x.state}) == wire.encode({"state": y.state})


# --- a million -------------------------------------------------------------------------------------------------------


class Counted(Population):
    """A population that counts the peers that are made of it."""

    made = 0

    def _at(self, at: int) -> Peer:
        self.made += 1
        return super()._at(at)


@dataclass
class Maker:
    """Makes toy clients, and counts them."""

    clients: ClientsOnDemand
    made: int = 0

    def __call__(self, peer: Peer) -> Any:
        self.made += 1
        return self.clients.client(peer.id)


def a_million(*, ranks: tuple[int, ...] = (2,)) -> tuple[Counted, Maker, ClientsOnDemand]:
    kinds = [Peer(0, rank) for rank in ranks]
    columns: dict[str, Any] = {"num_examples": np.full(MANY, 4), "kind": np.arange(MANY) % len(kinds)}
    counted = Counted(kinds, **columns)
    maker = Maker(toy_population(Population(kinds, **columns), training=SHORT))
    return counted, maker, ClientsOnDemand(counted, maker)


@pytest.mark.parametrize("name", ["fedavg", "flexlora", "flora", "fedex_lora", "replication", "scaffold", "feddyn", "fedsvd"])
def test_a_round_of_a_hundred_in_a_million_makes_under_a_thousand_peers(name: str, tmp_path: Path) -> None:
    method = built(name)
    counted, maker, clients = a_million(ranks=(2, 4) if method.hetero_rank else (2,))
    for done in run(method, clients, rounds=2, cohort=sampling.uniform(100)):
        diagnose(done)
        done.global_model()
        checkpoint.save(tmp_path, done.snapshot)
        assert len(done.bytes.up) == 100
    assert counted.made < 1000
    assert maker.made < 300


def test_a_run_in_a_million_goes_on_without_listing_them(tmp_path: Path) -> None:
    counted, maker, clients = a_million()
    options: dict[str, Any] = {"cohort": sampling.round_robin(50), "debug": True}
    for done in federate(get_method("flora"), clients, rounds=1, **options):
        checkpoint.save(tmp_path, done.snapshot)
    counted.made = maker.made = 0
    (done,) = federate(get_method("flora"), clients, rounds=2, start=checkpoint.load(tmp_path), **options)
    assert sorted(done.bytes.up) == [*range(50, 100)]
    assert counted.made < 500
    assert maker.made < 60


def test_a_rule_of_a_users_own_sees_all_peers_and_pays_for_those_that_it_reads() -> None:
    counted, _, clients = a_million()
    rounds = federate(FedAvg(), clients, rounds=1, cohort=lambda t, peers, seed: [peers[7].id, peers[-1].id])
    assert sorted(next(iter(rounds)).bytes.up) == [7, MANY - 1]
    assert counted.made < 20


# --- refusals --------------------------------------------------------------------------------------------------------


def refused(words: str, kinds: Any, sizes: Any, method: Method | None = None, **columns: Any) -> None:
    clients = toy_population(Population(kinds, sizes, **columns), training=SHORT)
    with pytest.raises(ValueError, match=words):
        federate(method or FedAvg(), clients, rounds=1)


def test_a_population_that_cannot_run_is_refused_as_a_list_is() -> None:
    sizes = np.full(MANY, 4)
    sizes[[17, 900_000]] = 0
    refused(r"clients \[17, 900000\] have no training examples", Peer(0, 2), sizes)
    sizes[[17, 900_000]] = 10**13
    refused("client 17 claims 10000000000000 examples", Peer(0, 2), sizes)
    with pytest.raises(ValueError, match="at least one client"):
        federate(FedAvg(), ClientsOnDemand(Population(Peer(0, 2), []), lambda peer: toy_federation((2,))[0]), rounds=1)
    refused("ids start at 0", Peer(0, 2), [4, 4], ids=[-1, 3])
    kinds: dict[str, Any] = {"kinds": [Peer(0, 2), Peer(0, 4)], "kind": np.arange(MANY) % 2}
    refused(r"has ranks \{0: 2, 1: 4\} by client", sizes=np.full(MANY, 4), **kinds)
    scales: dict[str, Any] = {"kinds": [Peer(0, 2, lora_alpha=4.0), Peer(0, 2)], "kind": np.arange(MANY) % 2}
    refused("needs one scale", sizes=np.full(MANY, 4), method=get_method("scaffold"), **scales)


def test_a_claim_of_far_more_examples_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    sizes = np.full(MANY, 4)
    sizes[5] = 10**11
    federate(FedAvg(), toy_population(Population(Peer(0, 2), sizes), training=SHORT), rounds=1)
    assert "client 5 claims 100000000000 examples, 1 of all, where half of the others have 4 or fewer" in caplog.text


def test_a_cohort_of_strangers_is_refused_without_naming_a_million() -> None:
    clients = a_million()[2]
    with pytest.raises(ValueError, match="must name one or more of the 1000000 clients") as error:
        next(iter(federate(FedAvg(), clients, rounds=1, cohort=lambda *_: [MANY])))
    assert len(str(error.value)) < 200


def test_a_client_that_begins_from_another_template_is_refused_when_it_is_made() -> None:
    _, on_demand = both(FedAvg())
    foreign = random_adapter(3, seed=9)

    def make(peer: Peer) -> Any:
        client: Any = on_demand.client(peer.id)
        client.template = template_for(peer, foreign) if peer.id == 1 else client.template
        return client

    clients = ClientsOnDemand(Population(on_demand.peers.kinds[0], SIZES), make)
    rounds = federate(FedAvg(), clients, rounds=1, cohort=lambda *_: [1])
    with pytest.raises(ValueError, match="client 1 begins from another A"):
        next(iter(rounds))


def test_doors_know_who_is_there() -> None:
    doors = Doors(both(FedAvg())[1])
    assert [*doors] == [0, 1, 2, 3]
    assert 3 in doors
    assert not [k for k in (4, -1, "3", None) if k in doors]
    assert {2, 9} - doors.keys() == {9}
