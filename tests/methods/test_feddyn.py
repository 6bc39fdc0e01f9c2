"""FedDyn: the optimum that it leads to, what its memories add up to, and where it is refused."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from fedelta import sampling, tree
from fedelta.engines.server import federate
from fedelta.method import Method
from fedelta.methods import Compose, FedAvg, FedDyn, get_method
from fedelta.models.toy import toy_federation


def client_h(done: Any, k: int) -> dict[str, torch.Tensor]:
    return done.client_states.get(k, {"parts": {"FedDyn": {"h": {}}}})["parts"]["FedDyn"]["h"]


def server_h(done: Any) -> dict[str, torch.Tensor]:
    return done.state["parts"]["FedDyn"]["h"]


def test_it_reaches_the_optimum_where_fedavg_stalls_drift_DYN_1(quadratics: Any, optimum: Any) -> None:
    def error(method: Method, rounds: int, **setting: Any) -> float:
        clients = quadratics(5)
        *_, done = federate(method, clients, rounds=rounds, **setting)
        return float((done.state["adapter"].dense["w"] - optimum(clients)).norm())

    assert error(FedAvg(), 40) > 0.1
    assert error(FedDyn(strength=1.0), 130) < 1e-14
    assert error(FedDyn(strength=1.0), 150, cohort=sampling.uniform(0.6)) < 1e-9


def test_the_server_holds_the_mean_over_all_clients_drift_DYN_2(quadratics: Any) -> None:
    clients = quadratics(5)
    for k, client in enumerate(clients):  # unequal sizes do not count
        object.__setattr__(client.peer, "num_examples", 1 + 3 * k)
    for done in federate(get_method("feddyn"), clients, rounds=12, cohort=sampling.uniform(0.4)):
        assert len(done.updates) == 2
        mean = sum(client_h(done, k).get("w", torch.zeros(4)) for k in range(5)) / 5
        torch.testing.assert_close(server_h(done)["w"], mean, rtol=0, atol=1e-14)
        moved = sum(u.content["adapter"].dense["w"] for u in done.updates) / 2 + mean
        torch.testing.assert_close(done.state["adapter"].dense["w"], moved, rtol=0, atol=1e-14)


def test_the_gradient_has_a_pull_and_a_memory() -> None:
    first, second = federate(get_method("feddyn", strength=0.3), toy_federation((3, 3)), rounds=2, debug=True)
    h, start = client_h(first, 1), second.before["adapter"]
    hook = FedDyn(strength=0.3).hook({}, {"h": h}, start)
    at = tree.parameters(start)
    x = {n: t + 0.1 for n, t in at.items()}
    assert hook is not None
    for n, found in hook(x, x, 0).items():
        torch.testing.assert_close(found, x[n] + 0.3 * (h[n] + x[n] - at[n]), rtol=1e-12, atol=1e-14)
    end = tree.parameters(second.updates[1].content["adapter"])
    for n, after in client_h(second, 1).items():
        torch.testing.assert_close(after, h[n] + end[n] - at[n], rtol=0, atol=1e-15)


def test_the_memories_of_a_frozen_factor_stay_as_they_are() -> None:
    rounds = list(federate(Compose(local=FedDyn(), server="rolora"), toy_federation((3, 3, 3)), rounds=5, debug=True))
    for before, done in pairwise(rounds[1:]):
        trained, frozen = ("lora_B", "lora_A") if done.t % 2 == 0 else ("lora_A", "lora_B")
        for held, now in [(server_h(before), server_h(done)), (client_h(before, 0), client_h(done, 0))]:
            assert all(torch.equal(held[n], now[n]) for n in held if n.endswith(frozen))
            assert not any(torch.equal(held[n], now[n]) for n in held if n.endswith(trained))


def test_what_it_cannot_serve_is_refused() -> None:
    for server in ("flexlora", "flora", "fedsvd"):
        with pytest.raises(ValueError, match="FedDyn needs factors that keep their meaning"):
            Compose(local=FedDyn(), server=server)
    with pytest.raises(ValueError, match="needs equal ranks"):
        federate(get_method("feddyn"), toy_federation((2, 4)), rounds=1)
    with pytest.raises(ValueError, match="strength above 0, got 0"):
        FedDyn(strength=0)
    one, other = (toy_federation((3, 3), lora_alpha=a) for a in (3.0, 6.0))
    with pytest.raises(ValueError, match="FedDyn needs one scale"):
        federate(get_method("feddyn"), [one[0], other[1]], rounds=1)
