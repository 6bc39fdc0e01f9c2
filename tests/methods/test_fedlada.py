"""FedLADA: its numbers by hand, its optimiser, what the server rebuilds, and where it is refused."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from fedelta import tree
from fedelta.client import Training
from fedelta.engines.rounds import QuorumError
from fedelta.engines.server import federate
from fedelta.exchange.wire import encode
from fedelta.method import TrainResult
from fedelta.methods import Compose, FedAvgM, FedLADA, FedNova, get_method
from fedelta.methods._compose.ruled_client import RuledClient
from fedelta.methods.fedlada import Amended
from fedelta.models.toy import toy_federation
from fedelta.optim import SGD
from fedelta.peers import Peer
from fedelta.tree import Adapter

HYPER: dict[str, Any] = {"alpha": 0.1, "betas": (0.9, 0.99), "eps": 0.1}


class Given:
    """A client whose gradients are written down, one for each step."""

    def __init__(self, k: int, slopes: list[float]) -> None:
        self.peer, self.slopes, self.num_steps = Peer(k, 1), slopes, len(slopes)
        self.template = Adapter({}, {"w": torch.ones(1, dtype=torch.float64)})
        self.points: list[float] = []
        self.states: list[dict[str, float]] = []

    def train(self, t: int, start: Adapter, *, optimizer: Any = None, **_: Any) -> TrainResult:
        params = {"w": start.dense["w"].clone()}
        state = optimizer.init(params)
        for g in self.slopes:
            optimizer.update(params, {"w": torch.tensor([g], dtype=torch.float64)}, state, 0.1)
            self.points.append(float(params["w"]))
            self.states.append({slot: float(x["w"]) for slot, x in state.items()})
        return TrainResult(replace(start, dense=params), len(self.slopes), 0.0, 0.1, state)


def of_server(done: Any, entry: str) -> dict[str, torch.Tensor]:
    return done.state["parts"]["FedLADA"][entry]


def written(*values: float) -> Any:
    """Numbers to the last of the eight digits that are given."""
    return pytest.approx(values, rel=0, abs=0.6e-8)


def test_equals_the_numbers_by_hand_drift_LADA_3() -> None:
    one, other = clients = [Given(0, [2.0, 1.0]), Given(1, [-1.0, -1.0])]
    first, second = federate(FedLADA(**HYPER), clients, rounds=2, debug=True)
    assert [s["first_moment"] for s in one.states[:2]] == written(0.2, 0.28)
    assert [s["largest"] for s in one.states[:2]] == written(0.0499, 0.059401)
    assert one.points == written(0.99104677, 0.97955833, 0.99141578, 0.98172342)
    assert other.points == written(1.00708881, 1.01811354, 1.00261123, 1.00962349)
    assert [float(first.state["adapter"].dense["w"]), float(second.state["adapter"].dense["w"])] == written(
        0.99883594, 0.99567346
    )
    assert float(of_server(first, "v")["w"]) == pytest.approx(0.044551, abs=0.6e-6)
    assert float(of_server(second, "v")["w"]) == pytest.approx(0.07841444, abs=0.6e-8)
    directions = [float(of_server(done, "direction")["w"]) for done in (first, second)]
    assert directions == written(0.00582032, 0.01581241)


def test_alone_it_is_amsgrad_drift_LADA_1() -> None:
    """alpha = 1: against AMSGrad as it is defined, without correction of the bias, step by step."""
    draw = torch.Generator().manual_seed(0)
    slopes = torch.randn(6, 5, generator=draw, dtype=torch.float64)
    optimizer = Amended(1.0, (0.9, 0.99), 0.1, {}, {"w": torch.ones(5, dtype=torch.float64)})
    params = {"w": torch.zeros(5, dtype=torch.float64)}
    state = optimizer.init(params)
    x, m, v, largest = (torch.full((5,), k, dtype=torch.float64) for k in (0.0, 0.0, 0.01, 0.01))
    for g in slopes:
        optimizer.update(params, {"w": g}, state, 0.3)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        largest = torch.maximum(largest, v)
        x = x - 0.3 * m / largest.sqrt()
        torch.testing.assert_close(params["w"], x, rtol=1e-13, atol=1e-15)


def test_the_second_moment_never_falls_within_a_round_drift_LADA_2() -> None:
    optimizer = Amended(0.1, (0.9, 0.5), 0.1, {"w": torch.tensor([0.2, 0.0])}, {})
    params = {"w": torch.zeros(2)}
    state = optimizer.init(params)
    held = state["largest"]["w"].clone()
    assert bool((held >= 0.1**2 * (1 - 1e-6)).all()), "a moment below the floor, as a codec may make it, is lifted"
    for g in ([1.0, 0.5], [0.1, 0.0], [0.0, 0.0], [2.0, -3.0]):
        optimizer.update(params, {"w": torch.tensor(g)}, state, 0.1)
        now = state["largest"]["w"]
        assert bool((now >= held).all())
        assert bool((now >= state["second_moment"]["w"]).all())
        held = now.clone()
    assert params["w"].isfinite().all()


def test_the_largest_second_moment_goes_up_not_the_last() -> None:
    (done,) = federate(FedLADA(**HYPER), [Given(0, [2.0, 0.0, 0.0])], rounds=1)
    assert float(of_server(done, "v")["w"]) == pytest.approx(0.99 * 0.01 + 0.01 * 4.0, rel=1e-12)


def test_three_of_what_trains_go_down_and_two_up_drift_LADA_4() -> None:
    for done in federate(get_method("fedlada"), toy_federation((3, 3)), rounds=3):
        for u in done.updates:
            size = tree.count(u.content["adapter"])
            down = done.method.broadcast(done.t, done.before, u.sender)
            assert tree.count(down) == (3 if done.t else 1) * size
            assert tree.count(u.content) == 2 * size
            assert done.method.traffic(done.t, done.template, u.sender, done.peers) == (tree.count(down), 2 * size)


def test_what_a_round_does_not_train_keeps_both_drift_LADA_5() -> None:
    rounds = list(federate(Compose(local=FedLADA(), server="rolora"), toy_federation((3, 3, 3)), rounds=5, debug=True))
    for before, done in pairwise(rounds[1:]):
        trained, frozen = ("lora_B", "lora_A") if done.t % 2 == 0 else ("lora_A", "lora_B")
        for entry in ("v", "direction"):
            held, now = of_server(before, entry), of_server(done, entry)
            assert all(torch.equal(held[n], now[n]) for n in held if n.endswith(frozen))
            assert not any(torch.equal(held[n], now[n]) for n in held if n.endswith(trained))


def test_a_basis_that_changes_is_refused_drift_LADA_6() -> None:
    for server in ("flexlora", "flora", "fedsvd", "fedex_lora", "fedgalore"):
        with pytest.raises(ValueError, match="FedLADA needs factors that keep their meaning"):
            Compose(local=FedLADA(), server=server)
    with pytest.raises(ValueError, match="FedLADA sends up something of every tensor"):
        Compose(local=FedLADA(), server="fedsa_lora")
    with pytest.raises(ValueError, match="needs equal ranks"):
        federate(get_method("fedlada"), toy_federation((2, 4)), rounds=1)


def test_clients_that_are_alike_are_one_drift_LADA_7() -> None:
    slopes = [2.0, -0.7, 1.3]
    runs = (federate(FedLADA(**HYPER), [Given(k, slopes) for k in range(count)], rounds=3) for count in (1, 3))
    for alone, together in zip(*runs, strict=True):
        assert encode(alone.state) == encode(together.state)


def test_the_direction_is_what_each_client_moved_in_a_step_and_unit_of_rate() -> None:
    """Rebuilt from uploads: with unequal steps, and with weights by examples."""
    clients = [Given(0, [2.0, 1.0]), Given(1, [-1.0, -1.0, 0.5])]
    for k, client in enumerate(clients):
        client.peer = replace(client.peer, num_examples=1 + 2 * k)
    (done,) = federate(FedLADA(**HYPER), clients, rounds=1)
    moved = [1.0 - float(u.content["adapter"].dense["w"]) for u in done.updates]
    expected = 0.25 * moved[0] / 0.2 + 0.75 * moved[1] / 0.3
    assert float(of_server(done, "direction")["w"]) == pytest.approx(expected, rel=1e-13)


def test_the_first_round_moves_alpha_times_as_far_as_amsgrad() -> None:
    def first(alpha: float) -> float:
        (done,) = federate(FedLADA(**{**HYPER, "alpha": alpha}), [Given(0, [2.0])], rounds=1)
        return 1 - float(done.state["adapter"].dense["w"])

    assert first(0.1) == pytest.approx(0.1 * first(1.0), rel=1e-12)


@pytest.mark.parametrize("method", [FedLADA(), Compose(local=FedLADA())], ids=["alone", "composed"])
@pytest.mark.parametrize(("rounds", "few"), [(9, True), (10, False)])
def test_few_rounds_are_warned_of(method: Any, rounds: int, few: bool, caplog: Any) -> None:
    federate(method, toy_federation((3,)), rounds=rounds)
    assert ("rounds are few for that" in caplog.text) == few


def test_it_takes_the_place_of_the_runs_optimiser_but_not_of_its_rate_and_clipping() -> None:
    def first(rate: float, norm: float | None) -> dict[str, torch.Tensor]:
        training = Training(local_steps=1, batch_size=8, learning_rate=rate, max_grad_norm=norm)
        (done,) = federate(get_method("fedlada"), toy_federation((3,), training=training), rounds=1)
        start = tree.parameters(done.before["adapter"])
        return {n: x - start[n] for n, x in tree.parameters(done.state["adapter"]).items()}

    one, twice, clipped = first(0.01, None), first(0.02, None), first(0.01, 1e-4)
    for n, x in one.items():
        torch.testing.assert_close(twice[n], 2 * x, rtol=1e-9, atol=1e-14)
    assert clipped["bias"].norm() < 0.1 * one["bias"].norm()


def test_the_servers_rate_is_an_optimiser() -> None:
    half = Compose(local=FedLADA(**HYPER), optimizer=FedAvgM(momentum=0.0, learning_rate=0.5))
    states = [next(iter(federate(m, [Given(0, [2.0, 1.0])], rounds=1))).state for m in (half, FedLADA(**HYPER))]
    w = [1 - float(s["adapter"].dense["w"]) for s in states]
    assert w[0] == pytest.approx(w[1] / 2, rel=1e-12)
    assert torch.equal(states[0]["parts"]["FedLADA"]["direction"]["w"], states[1]["parts"]["FedLADA"]["direction"]["w"])


def test_it_combines_with_rules_that_change_gradients() -> None:
    method = Compose(local=["fedlada", "fedsam", "fedprox", FedNova()], server="ffa_lora")
    *_, done = federate(method, toy_federation((3, 3, 3)), rounds=3, debug=True)
    assert done.state["parts"].keys() == {"FedLADA"}


def test_a_request_with_an_optimiser_of_its_own_is_refused() -> None:
    client = toy_federation((3,))[0]
    with pytest.raises(ValueError, match="FedLADA brings the clients' optimiser, but the method that it goes with has one"):
        RuledClient(client, [FedLADA()], {}, {}).train(0, client.template, optimizer=SGD())


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda up: {**up, "pace": 0.0}, "learning rate times steps of 0.0"),
        (lambda up: {**up, "pace": True}, "learning rate times steps of True"),
        (lambda up: {"v": up["v"]}, "learning rate times steps of None"),
        (lambda up: {**up, "v": {"bias": up["v"]["bias"][:1]}}, "second moment for 'bias' of shape"),
        (lambda up: {"pace": 1.0}, "sent no second moment"),
    ],
)
def test_a_client_with_a_broken_message_is_refused_by_name(spoil: Any, reason: str) -> None:
    class Broken(FedLADA):
        def leave(self, sent: Any, own: Any, trained: Any) -> Any:
            up, kept = super().leave(sent, own, trained)
            return spoil(up), kept

    with pytest.raises(QuorumError, match=f"client 1.*{reason}"):
        list(federate(Broken(), toy_federation((3, 3)), rounds=1))


def test_settings_out_of_range_are_refused() -> None:
    for hyper in ({"alpha": 0.0}, {"betas": (0.9, 1.0)}, {"eps": 0.0}):
        with pytest.raises(ValueError, match="FedLADA needs 0 < alpha <= 1"):
            FedLADA(**hyper)
    assert hash(FedLADA(betas=[0.9, 0.99])) == hash(FedLADA())
