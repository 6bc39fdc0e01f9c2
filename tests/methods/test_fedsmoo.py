"""FedSMOO: its numbers by hand, what it is without a radius, how near the optimum it ends, and where it is refused."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from fedelta import tree
from fedelta.engines.rounds import QuorumError
from fedelta.engines.server import federate
from fedelta.exchange.wire import encode
from fedelta.methods import Compose, FedDyn, FedSAM, FedSMOO, Scaffold, get_method
from fedelta.models.toy import toy_federation
from fedelta.peers import Peer


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def own(done: Any, k: int, entry: str) -> dict[str, torch.Tensor]:
    return done.client_states[k]["parts"]["FedSMOO"][entry]


def s_of(done: Any) -> dict[str, torch.Tensor]:
    return done.state["parts"]["FedSMOO"]["s"]


def w_of(done: Any) -> torch.Tensor:
    return done.state["adapter"].dense["w"]


def norm(tensors: Any) -> float:
    return float(sum(x.square().sum() for x in tensors.values()).sqrt())


def near(found: torch.Tensor, *expected: float) -> bool:
    """Whether numbers are those written, to the last digit that is given."""
    return bool(torch.allclose(found, tensor(*expected), rtol=0, atol=0.6e-6))


@pytest.fixture
def pair(quadratic: Any) -> Any:
    """The two clients of the specification's example, which start at (1, -2)."""

    def make(steps: int = 2) -> list[Any]:
        H, b = [torch.diag(tensor(1, 3)), torch.diag(tensor(2, 1))], [tensor(4, 2), tensor(-1, 0)]
        clients = [quadratic(Peer(k, 1), H[k], b[k], steps, 0.1) for k in range(2)]
        for client in clients:
            client.template = replace(client.template, dense={"w": tensor(1, -2)})
        return clients

    return make


def watched(clients: list[Any]) -> list[list[torch.Tensor]]:
    """Lets clients keep their points, and where they take gradients, both in turn."""
    seen: list[list[torch.Tensor]] = [[] for _ in clients]
    for k, client in enumerate(clients):

        def slope(t: int, step: int, w: torch.Tensor, k: int = k, ask: Any = client.slope) -> torch.Tensor:
            seen[k].append(w.clone())
            return ask(t, step, w)

        client.slope = slope
    return seen


def test_equals_the_numbers_by_hand_drift_SMOO_3(pair: Any) -> None:
    clients = pair()
    seen = watched(clients)
    first, second = federate(FedSMOO(strength=0.1, rho=0.1), clients, rounds=2, debug=True)
    points = [[at for at, _ in zip(x[::2], x[1::2], strict=True)] for x in seen]
    moves = [[there - at for at, there in zip(x[::2], x[1::2], strict=True)] for x in seen]
    assert near(moves[0][0], -0.024254, -0.097014)
    assert near(moves[0][1], -0.030942, -0.095092)
    assert near(points[0][1], 1.302425, -0.770896)
    assert near(first.updates[0].content["adapter"].dense["w"], 1.572253, 0.076610)
    assert near(own(first, 0, "mu")["w"], -0.055196, -0.192107)
    assert near(moves[1][0], 0.089443, -0.044721)
    assert near(moves[1][1], 0.086900, -0.049482)
    assert near(points[1][1], 0.582111, -1.795528)
    assert near(first.updates[1].content["adapter"].dense["w"], 0.252488, -1.613072)
    assert near(own(first, 1, "mu")["w"], 0.176343, -0.094203)
    assert near(s_of(first)["w"], 0.038968, -0.092095)
    assert near(w_of(first), 0.824741, 0.463538)
    assert near(w_of(second), 0.663423, 2.379456)
    assert near(s_of(second)["w"], 0.070418, -0.071002)
    plain = [w_of(done) for done in federate(FedDyn(strength=0.1), pair(), rounds=2)]
    assert near(plain[0], 0.851, 0.406)
    assert near(plain[1], 0.711103, 2.299007)


def test_without_a_radius_it_is_feddyn_to_the_bit_drift_SMOO_1() -> None:
    runs = (federate(m, toy_federation((3, 3, 3)), rounds=3) for m in (FedSMOO(rho=0.0), FedDyn()))
    for done, reference in zip(*runs, strict=True):
        assert encode(done.state["adapter"]) == encode(reference.state["adapter"])
        assert done.bytes == reference.bytes


def test_the_perturbation_has_length_rho_over_all_that_trains_drift_SMOO_2() -> None:
    rounds = list(federate(FedSMOO(rho=0.2), toy_federation((3, 3)), rounds=2, debug=True))
    method, client = rounds[-1].method, toy_federation((3, 3))[0]
    down = method.broadcast(2, rounds[-1].state, client.peer)["parts"]["FedSMOO"]
    hook = method.hook(down, {n: own(rounds[-1], 0, n) for n in ("h", "mu")}, rounds[-1].state["adapter"])
    found, ask = [], hook.offset
    hook.offset = lambda *args: found.append(ask(*args)) or found[-1]
    client.train(2, rounds[-1].state["adapter"], gradient=hook)
    assert [norm(s) for s in found] == pytest.approx([0.2] * 4, rel=1e-10)
    assert norm(s_of(rounds[-1])) == pytest.approx(0.2, rel=1e-10)


def test_a_lost_client_restarts_from_zero_drift_SMOO_4() -> None:
    method, clients = get_method("fedsmoo"), toy_federation((3, 3, 3))
    *_, done = federate(method, clients, rounds=2)
    lost = replace(done.snapshot, client_states={k: x for k, x in done.snapshot.client_states.items() if k != 1})
    *_, after = federate(method, clients, rounds=3, start=lost, debug=True)
    assert not after.dropped
    start, end = (tree.parameters(x) for x in (after.before["adapter"], after.updates[1].content["adapter"]))
    for n, h in own(after, 1, "h").items():
        torch.testing.assert_close(h, end[n] - start[n], rtol=0, atol=0)
    assert after.client_states[1]["parts"]["FedSMOO"].keys() == {"h", "mu"}


def test_bytes_are_twice_those_of_what_trains_drift_SMOO_5() -> None:
    for done in federate(get_method("fedsmoo"), toy_federation((3, 3)), rounds=3):
        for u in done.updates:
            size = tree.count(u.content["adapter"])
            down = done.method.broadcast(done.t, done.before, u.sender)
            assert tree.count(u.content) == 2 * size
            assert tree.count(down) == (2 if done.t else 1) * size
            assert done.method.traffic(done.t, done.template, u.sender, done.peers) == (tree.count(down), 2 * size)


def test_a_gradient_of_zero_perturbs_nothing_drift_SMOO_6(pair: Any) -> None:
    clients = pair()
    for client in clients:
        client.b = tensor(1, -2)  # everybody starts at the optimum
    *_, done = federate(FedSMOO(), clients, rounds=2, debug=True)
    assert torch.equal(w_of(done), tensor(1, -2))
    assert not s_of(done)["w"].any()
    assert not own(done, 0, "mu")["w"].any()


def test_it_ends_beside_the_optimum_at_most_rho_away_drift_SMOO_7(pair: Any, played: Any) -> None:
    def distance(method: Any) -> float:
        state, _ = played(method, pair(), 401)
        return float((state["adapter"].dense["w"] - tensor(2 / 3, 1.5)).norm())

    assert distance(FedDyn(strength=0.1)) < 5e-5
    assert 2e-2 < distance(FedSMOO(strength=0.1, rho=0.1)) < 3e-2 < 0.1


def test_the_servers_means_are_over_clients_whatever_their_weights(quadratics: Any) -> None:
    """Step by step, with unequal weights and a cohort that changes: s is of its plain mean, and h the mean of all h_k."""
    clients, cohorts, rho, strength = quadratics(4, steps=3), [[0, 1, 2, 3], [0, 2], [3], [1, 2, 3]], 0.2, 0.5
    for k, client in enumerate(clients):
        client.peer = replace(client.peer, num_examples=1 + 3 * k)
    w, s = (torch.zeros(4, dtype=torch.float64) for _ in range(2))
    h, mu = ([torch.zeros(4, dtype=torch.float64) for _ in clients] for _ in range(2))
    rounds = federate(
        FedSMOO(strength=strength, rho=rho), clients, rounds=4, cohort=lambda t, peers, seed: cohorts[t], debug=True
    )
    for done in rounds:
        moved = []
        for k in cohorts[done.t]:
            x = w.clone()
            for step in range(3):
                apart = clients[k].slope(done.t, step, x) - mu[k] - s
                own_s = rho * apart / apart.norm()
                mu[k] = mu[k] + own_s - s
                x = x - 0.05 * (clients[k].slope(done.t, step, x + own_s) + strength * (h[k] + x - w))
            moved.append(x - w)
            h[k] = h[k] + moved[-1]
        mean = torch.stack([mu[k] for k in cohorts[done.t]]).mean(0)
        s = rho * mean / mean.norm()
        w = w + torch.stack(moved).mean(0) + torch.stack(h).mean(0)
        torch.testing.assert_close(s_of(done)["w"], s, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(w_of(done), w, rtol=1e-9, atol=1e-12)


def test_the_memories_of_a_frozen_factor_stay_as_they_are() -> None:
    rounds = list(federate(Compose(local=FedSMOO(), server="rolora"), toy_federation((3, 3, 3)), rounds=5, debug=True))
    for before, done in pairwise(rounds[1:]):
        trained, frozen = ("lora_B", "lora_A") if done.t % 2 == 0 else ("lora_A", "lora_B")
        for held, now in [(s_of(before), s_of(done)), (own(before, 0, "mu"), own(done, 0, "mu"))]:
            assert all(torch.equal(held[n], now[n]) for n in held if n.endswith(frozen))
            assert not any(torch.equal(held[n], now[n]) for n in held if n.endswith(trained))
        assert all(n.endswith((trained, "bias")) for n in done.updates[0].content["parts"]["FedSMOO"]["mu"])


def test_it_combines_with_other_rules_and_optimisers() -> None:
    method = Compose(
        local=["fedsmoo", "scaffold", "fedprox"], server="ffa_lora", optimizer={"name": "fedavgm", "momentum": 0.5}
    )
    *_, done = federate(method, toy_federation((3, 3, 3)), rounds=3, debug=True)
    assert done.state["parts"].keys() == {"FedSMOO", "Scaffold", "FedAvgM"}
    assert torch.isfinite(torch.tensor(done.loss))


def test_what_it_cannot_serve_is_refused() -> None:
    for server in ("flexlora", "flora", "fedsvd", "fedgalore"):
        with pytest.raises(ValueError, match="FedSMOO needs factors that keep their meaning"):
            Compose(local=FedSMOO(), server=server)
    with pytest.raises(ValueError, match="sends up something of every tensor that a client trains, but FedSALoRA keeps some"):
        Compose(local=FedSMOO(), server="fedsa_lora")
    with pytest.raises(ValueError, match="Scaffold sends up something"):
        Compose(local=Scaffold(), server="fedsa_lora")
    with pytest.raises(ValueError, match="so does FedSMOO"):
        Compose(local=[FedSAM(), FedSMOO()])
    with pytest.raises(ValueError, match="needs equal ranks"):
        federate(get_method("fedsmoo"), toy_federation((2, 4)), rounds=1)
    with pytest.raises(ValueError, match=r"strength above 0 and rho of at least 0, got 0.1 and -1"):
        FedSMOO(rho=-1)
    one, other = (toy_federation((3, 3), lora_alpha=a) for a in (3.0, 6.0))
    with pytest.raises(ValueError, match="FedSMOO needs one scale"):
        federate(get_method("fedsmoo"), [one[0], other[1]], rounds=1)


def test_a_client_without_a_dual_variable_is_refused_by_name() -> None:
    class Silent(FedSMOO):
        def leave(self, sent: Any, own: Any, trained: Any) -> Any:
            return {}, own

    with pytest.raises(QuorumError, match="client 0 sent no dual variable: it must run Silent too"):
        list(federate(Silent(), toy_federation((3, 3)), rounds=1))
