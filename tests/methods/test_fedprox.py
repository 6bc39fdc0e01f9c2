"""FedProx: the pull, its absence at strength zero, and its place among other gradient rules and penalties."""

from typing import Any

import pytest
import torch

from fedelta import tree
from fedelta.engines.server import federate
from fedelta.exchange.wire import encode
from fedelta.lowrank import dist2
from fedelta.method import TrainResult
from fedelta.methods import Compose, FedProx, get_method
from fedelta.models.toy import random_adapter, toy_federation, toy_template
from fedelta.peers import Peer
from fedelta.tree import Adapter


class Asked:
    """A client that keeps what was asked of it and returns what it was sent."""

    def __init__(self, rank: int = 3) -> None:
        self.peer, self.template, self.num_steps, self.requests = Peer(0, rank), toy_template(rank), 1, []

    def train(self, t: int, start: Adapter, **request: Any) -> TrainResult:
        self.requests.append(request)
        return TrainResult(start, 1, 0.0)


def test_strength_zero_is_the_method_without_it_drift_PROX_1() -> None:
    for server in ("fedavg", "flexlora", "subspace_reg", "rolora"):
        with_it, without = Compose(local=FedProx(0.0), server=server), get_method(server)
        pairs = zip(*(federate(m, toy_federation((3, 3, 3)), rounds=3) for m in (with_it, without)), strict=True)
        for done, reference in pairs:
            assert encode(done.state) == encode(reference.state)
            assert done.bytes == reference.bytes


def test_the_gradient_grows_by_mu_times_the_way_from_the_start_drift_PROX_2() -> None:
    client, start = Asked(), random_adapter(3, seed=1)
    get_method("fedprox", mu=0.3).local_update(0, {"adapter": start}, {}, client)
    hook = client.requests[0]["gradient"]
    anchor, x, g = (tree.parameters(random_adapter(3, seed=k)) for k in (1, 2, 3))
    for step in range(2):
        for name, found in hook(g, x, step).items():
            torch.testing.assert_close(found, g[name] + 0.3 * (x[name] - anchor[name]), rtol=1e-15, atol=0)


@pytest.mark.parametrize("server", ["fedavg", "flexlora", "fedex_lora", "subspace_reg", "hetlora", "ffa_lora"])
def test_a_strong_pull_keeps_clients_near_what_they_got(server: str) -> None:
    def moved(mu: float) -> float:
        clients = toy_federation((3, 3, 3))
        (done,) = federate(Compose(local=FedProx(mu), server=server), clients, rounds=1, debug=True)
        start = done.before["adapter"]
        return sum(float(dist2(x, start.layers[n])) for u in done.updates for n, x in done.position(u)[0].layers.items()) + sum(
            float(u.content["dense"]["bias"].norm()) for u in done.updates if "dense" in u.content
        )

    assert 0 < moved(15.0) < 0.8 * moved(0.0)


def test_the_penalty_of_the_server_method_stays() -> None:
    client = Asked()
    Compose(local=FedProx(0.1), server="subspace_reg").local_update(0, {"adapter": random_adapter(3, seed=1)}, {}, client)
    assert {n for n, x in client.requests[0].items() if x is not None} == {"penalty", "gradient"}


def test_the_mask_of_the_server_method_comes_last() -> None:
    """What LoRA-A2 does not choose to train, the pull does not move."""
    method = Compose(local=FedProx(5.0), server={"name": "lora_a2", "budget": 1})
    for done in federate(method, toy_federation((3, 3, 3)), rounds=3, debug=True):
        which = done.method.parts.server.factor(done.t)
        for update in done.updates:
            kept = update.content["kept"]
            for n, x in done.position(update)[0].layers.items():
                old, new = (getattr(y, which) for y in (done.before["adapter"].layers[n], x))
                same = [torch.equal(a, b) for a, b in zip(*(y.mT if which == "B" else y for y in (old, new)), strict=True)]
                assert same == [j not in kept[n] for j in range(3)]


def test_a_negative_strength_is_refused() -> None:
    with pytest.raises(ValueError, match="FedProx needs mu of at least 0, got -1"):
        FedProx(-1)
