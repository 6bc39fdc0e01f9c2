"""FedGLOMO: what it is with exact gradients, what it does to noisy ones, and what travels."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from fedelta import seeding, tree
from fedelta.client import Training
from fedelta.engines.rounds import QuorumError, Snapshot
from fedelta.engines.server import federate
from fedelta.methods import Compose, FedAvgM, FedGLOMO, FedSAM, get_method
from fedelta.models.toy import toy_federation
from fedelta.optim import SGD
from fedelta.peers import Peer


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def w_of(done: Any) -> float:
    return float(done.state["adapter"].dense["w"])


def u_of(done: Any) -> float:
    return float(done.state["parts"]["FedGLOMO"]["u"]["w"])


@pytest.fixture
def pair(quadratic: Any) -> Any:
    """w^2 / 2 and (w - 3)^2, from w = 1, two steps at 0.1; with noise of its own for each round, client and step, if asked."""

    def make(noise: float = 0.0, steps: int = 2, seed: int = 0) -> list[Any]:
        clients = [quadratic(Peer(k, 1), tensor(1 + k).view(1, 1), tensor(3 * k), steps, 0.1) for k in range(2)]
        for k, client in enumerate(clients):
            client.template = replace(client.template, dense={"w": tensor(1)})

            def slope(t: int, step: int, w: torch.Tensor, k: int = k, exact: Any = client.slope) -> torch.Tensor:
                drawn = torch.randn(1, generator=seeding.generator(seed, t, k, f"noise {step}"), dtype=torch.float64)
                return exact(t, step, w) + noise * drawn

            client.slope = slope
        return clients

    return make


def noisy_in_the_slope(clients: list[Any], seed: int) -> list[Any]:
    """Multiplies each gradient by noise of its batch, so that two points on one batch do not have one error."""
    for k, client in enumerate(clients):

        def slope(t: int, step: int, w: torch.Tensor, k: int = k, exact: Any = client.slope) -> torch.Tensor:
            drawn = torch.randn(1, generator=seeding.generator(seed, t, k, f"slope {step}"), dtype=torch.float64)
            return exact(t, step, w) + drawn + 0.1 * drawn * w

        client.slope = slope
    return clients


def test_at_beta_one_it_is_fedavg_with_less_variance_in_each_client_drift_GLO_1(pair: Any) -> None:
    """Step by step: v_j = grad(x_j; b_j) - grad(x_{j-1}; b_j) + v_{j-1}; the server takes the mean."""
    clients = noisy_in_the_slope(pair(steps=4), seed=3)
    rounds = list(federate(FedGLOMO(beta=1.0), clients, rounds=3, debug=True))
    w = tensor(1)
    for done in rounds:
        ends = []
        for client in clients:
            x, v, before = w.clone(), None, None
            for j in range(4):
                here = client.slope(done.t, j, x)
                v = here if v is None else here - client.slope(done.t, j, before) + v
                before, x = x, x - 0.1 * v
            ends.append(x)
        w = (ends[0] + ends[1]) / 2
        assert w_of(done) == pytest.approx(float(w), rel=1e-12)


@pytest.mark.parametrize("beta", [0.1, 0.3, 1.0])
def test_exact_gradients_make_it_fedavg_drift_GLO_3(quadratics: Any, beta: float) -> None:
    runs = (federate(m, quadratics(4), rounds=8) for m in (FedGLOMO(beta=beta), get_method("fedavg")))
    for done, reference in zip(*runs, strict=True):
        torch.testing.assert_close(
            done.state["adapter"].dense["w"], reference.state["adapter"].dense["w"], rtol=1e-12, atol=1e-12
        )


def test_both_displacements_are_means_by_the_rounds_weights(pair: Any) -> None:
    """Step by step, with noise, unequal weights and a cohort that changes."""
    clients, cohorts, shares = noisy_in_the_slope(pair(steps=3), seed=1), [[0, 1], [1], [0, 1], [0]], [1, 3]
    for client, count in zip(clients, shares, strict=True):
        client.peer = replace(client.peer, num_examples=count)

    def displacement(t: int, start: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(1, dtype=torch.float64)
        for k in cohorts[t]:
            x, v, before = start.clone(), None, start
            for step in range(3):
                here = clients[k].slope(t, step, x)
                v = here if v is None else here - clients[k].slope(t, step, before) + v
                before, x = x, x - 0.1 * v
            total += shares[k] / sum(shares[j] for j in cohorts[t]) * (x - start)
        return total

    w, u, previous = tensor(1), tensor(0), tensor(1)
    for done in federate(FedGLOMO(beta=0.3), clients, rounds=4, cohort=lambda t, peers, seed: cohorts[t], debug=True):
        here = displacement(done.t, w)
        u = 0.3 * here + 0.7 * (u + here - displacement(done.t, previous)) if done.t else here
        previous, w = w, w + u
        assert (u_of(done), w_of(done)) == pytest.approx((float(u), float(w)), rel=1e-12)


def test_its_fixed_point_is_that_of_fedavg_drift_GLO_2(pair: Any) -> None:
    *_, done = federate(FedGLOMO(beta=0.3), pair(), rounds=150)
    *_, reference = federate(get_method("fedavg"), pair(), rounds=150)
    assert w_of(done) == pytest.approx(w_of(reference), abs=1e-15)
    assert w_of(done) == pytest.approx(1.96363636, abs=0.6e-8)


def test_equals_the_numbers_by_hand_drift_GLO_4(pair: Any) -> None:
    rounds = list(federate(FedGLOMO(beta=0.3), pair(), rounds=4))
    written = {"rel": 0, "abs": 0.6e-8}
    assert [-u_of(done) for done in rounds] == pytest.approx([-0.265, -0.192125, -0.13929063, -0.1009857], **written)
    assert [w_of(done) for done in rounds] == pytest.approx([1.265, 1.457125, 1.59641562, 1.69740133], **written)


def test_from_no_momentum_equals_the_numbers_by_hand_drift_GLO_4(pair: Any) -> None:
    """u = 0 at the start, which is not what the method does: round 0 is then only beta of a step."""
    method, clients = FedGLOMO(beta=0.3), pair()
    first, *_ = federate(method, clients, rounds=1)
    zero = {**first.before, "parts": {"FedGLOMO": {"u": {"w": tensor(0)}, "previous": {"w": tensor(1)}}}}
    rounds = list(federate(method, clients, rounds=4, start=Snapshot(0, 0, zero)))
    written = {"rel": 0, "abs": 0.6e-8}
    assert [-u_of(done) for done in rounds] == pytest.approx([-0.0795, -0.1132875, -0.12108844, -0.11505762], **written)
    assert [w_of(done) for done in rounds] == pytest.approx([1.0795, 1.1927875, 1.31387594, 1.42893355], **written)


def test_noise_is_less_in_the_momentum_than_in_the_displacement_drift_GLO_5(pair: Any, played: Any) -> None:
    """Batches of one: over many draws of the noise, of round 3, where both are about the same point."""
    method, moved, momentum = FedGLOMO(beta=0.3), [], []
    for seed in range(200):
        state, updates = played(method, noisy_in_the_slope(pair(), seed), 4)
        w = float(state["adapter"].dense["w"])
        moved.append(sum(float(u.content["adapter"].dense["w"]) for u in updates) / 2 - w)
        momentum.append(float(method.aggregate(3, state, updates)["parts"]["FedGLOMO"]["u"]["w"]))
    assert torch.tensor(momentum).var() < 0.7 * torch.tensor(moved).var()


def test_both_trainings_see_the_same_batches_drift_GLO_6() -> None:
    clients, seen = toy_federation((3, 3, 3)), []
    collate = clients[1].collate
    clients[1].collate = lambda rows: seen.append([float(row["x"][0]) for row in rows]) or collate(rows)
    list(federate(FedGLOMO(), clients, rounds=2, debug=True))
    assert len(seen) == 4 + 4 + 4, "one training in round 0, two in round 1; the second gradient of a step costs no batch"
    assert seen[4:8] == seen[8:12]
    assert seen[:4] != seen[4:8]


def test_everybody_gets_both_anchors_a_newcomer_too_drift_GLO_7() -> None:
    cohorts = [[0, 1], [0, 1], [1, 2]]
    clients = toy_federation((3, 3, 3))
    for done in federate(FedGLOMO(), clients, rounds=3, cohort=lambda t, peers, seed: cohorts[t], debug=True):
        assert [u.sender.id for u in done.updates] == cohorts[done.t]
        for u in done.updates:
            size = tree.count(u.content["adapter"])
            down = done.method.broadcast(done.t, done.before, u.sender)
            assert tree.count(down) == tree.count(u.content) == (2 if done.t else 1) * size
            assert done.method.traffic(done.t, done.template, u.sender, done.peers) == (tree.count(down), tree.count(u.content))


def test_the_other_start_is_the_servers_adapter_of_the_round_before() -> None:
    first, second, third = federate(FedGLOMO(), toy_federation((3, 3, 3)), rounds=3)
    for before, done in ((first, second), (second, third)):
        down = done.method.broadcast(done.t, done.before, done.peers[0])
        other = done.method.other_start(down["parts"]["FedGLOMO"], down["adapter"])
        assert all(torch.equal(x, tree.parameters(other)[n]) for n, x in tree.parameters(before.before["adapter"]).items())


def test_a_factor_that_takes_turns_is_compared_with_the_round_that_trained_it_last() -> None:
    rounds = list(federate(Compose(local=FedGLOMO(), server="rolora"), toy_federation((3, 3, 3)), rounds=5, debug=True))
    last = rounds[-1]
    down = last.method.broadcast(4, last.before, last.peers[0])
    previous = down["parts"]["FedGLOMO"]["previous"]
    two_before = tree.parameters(rounds[2].before["adapter"])
    assert previous.keys() == two_before.keys()
    for n, x in previous.items():
        assert n == "bias" or torch.equal(x, two_before[n])


def test_after_an_optimiser_the_anchor_is_still_where_the_server_was() -> None:
    method = Compose(local=FedGLOMO(), optimizer=FedAvgM(momentum=0.5, learning_rate=0.3))
    first, second = federate(method, toy_federation((3, 3, 3)), rounds=2, debug=True)
    previous = second.method.broadcast(1, second.before, second.peers[0])["parts"]["FedGLOMO"]["previous"]
    assert all(torch.equal(x, tree.parameters(first.before["adapter"])[n]) for n, x in previous.items())


def test_it_combines_with_rules_at_the_clients() -> None:
    method = Compose(local=["fedglomo", "fedprox", "scaffold"], server="ffa_lora")
    *_, done = federate(method, toy_federation((3, 3, 3)), rounds=3, debug=True)
    assert done.state["parts"].keys() == {"FedGLOMO", "Scaffold"}


def test_the_first_gradient_may_be_over_all_examples() -> None:
    """Where a round has one step, that step is along v_0, from either start."""
    (client,) = toy_federation((3,), training=Training(local_steps=1, batch_size=4, learning_rate=0.05, optimizer=SGD()))
    *_, done = federate(FedGLOMO(first_batches=3), [client], rounds=2, debug=True)
    for start, moved in [
        (done.before["adapter"], tree.parameters(done.updates[0].content["adapter"])),
        (
            done.method.other_start(done.method.broadcast(1, done.before, client.peer)["parts"]["FedGLOMO"], client.template),
            None,
        ),
    ]:
        full = [client.collate(client.examples)]
        client.model.load(start)
        leaves = tree.parameters(client.model.live())
        for p in leaves.values():
            p.requires_grad_()
        expected = torch.autograd.grad(client.loss(client.model.module, full[0]), list(leaves.values()))
        other = done.updates[0].content["parts"]["FedGLOMO"]["other"]
        for n, g in zip(leaves, expected, strict=True):
            found = moved[n] - leaves[n].detach() if moved is not None else other.get(n, torch.zeros_like(g))
            torch.testing.assert_close(found, -0.05 * g, rtol=1e-10, atol=1e-14)


def test_what_it_cannot_serve_is_refused() -> None:
    for server in ("flexlora", "flora", "fedsvd", "fedgalore"):
        with pytest.raises(ValueError, match="FedGLOMO needs factors that keep their meaning"):
            Compose(local=FedGLOMO(), server=server)
    with pytest.raises(ValueError, match="FedGLOMO sends up something of every tensor"):
        Compose(local=FedGLOMO(), server="fedsa_lora")
    with pytest.raises(ValueError, match="asks for gradients at another point of each step, and so does"):
        Compose(local=[FedGLOMO(), FedSAM()])
    with pytest.raises(ValueError, match="needs equal ranks"):
        federate(get_method("fedglomo"), toy_federation((2, 4)), rounds=1)
    with pytest.raises(ValueError, match="FedGLOMO needs 0 < beta <= 1 and first_batches >= 0, got 0"):
        FedGLOMO(beta=0)


def test_a_client_with_a_broken_displacement_is_refused_by_name() -> None:
    class Broken(FedGLOMO):
        def leave(self, sent: Any, own: Any, trained: Any) -> Any:
            up, kept = super().leave(sent, own, trained)
            return {n: {"bias": x["bias"] * float("nan")} for n, x in up.items()}, kept

    with pytest.raises(QuorumError, match=r"client 0: .*other/bias holds 4 NaN or Inf"):
        list(federate(Broken(), toy_federation((3, 3)), rounds=2))
