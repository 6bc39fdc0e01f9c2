"""FedNova: displacements per local step."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from fedelta.engines.server import federate
from fedelta.exchange.wire import encode
from fedelta.methods import Compose, FedAdam, FedNova, get_method
from fedelta.models.toy import toy_federation

STEPS = [1, 4, 10]


def test_equal_steps_are_fedavg_to_the_bit_drift_NOVA_1() -> None:
    runs = (federate(get_method(name), toy_federation((3, 3, 3)), rounds=3) for name in ("fednova", "fedavg"))
    for done, reference in zip(*runs, strict=True):
        assert encode(done.state) == encode(reference.state)
        assert done.bytes == reference.bytes


def test_equals_its_formula(quadratics: Any) -> None:
    """w + (sum p tau) sum p (w_k - w) / tau, with unequal p."""
    clients = quadratics(3, steps=STEPS)
    for k, client in enumerate(clients):
        client.peer = replace(client.peer, num_examples=1 + k)
    for done in federate(get_method("fednova"), clients, rounds=3):
        w = done.before["adapter"].dense["w"]
        p, D = [u.weight for u in done.updates], [u.content["adapter"].dense["w"] - w for u in done.updates]
        steps = sum(x * tau for x, tau in zip(p, STEPS, strict=True))
        expected = w + steps * sum(x * d / tau for x, d, tau in zip(p, D, STEPS, strict=True))
        torch.testing.assert_close(done.state["adapter"].dense["w"], expected, rtol=1e-13, atol=1e-14)


def test_the_bias_of_unequal_steps_shrinks_with_the_rate_drift_NOVA_2(quadratics: Any, optimum: Any) -> None:
    def error(name: str, rate: float) -> float:
        clients = quadratics(3, steps=STEPS, learning_rate=rate)
        *_, done = federate(get_method(name), clients, rounds=int(1.5 / rate))
        return float((done.state["adapter"].dense["w"] - optimum(clients)).norm())

    nova, plain = ([error(name, rate) for rate in (0.05, 0.01)] for name in ("fednova", "fedavg"))
    assert nova[0] < plain[0]
    assert nova[1] < 0.4 * nova[0]
    assert plain[1] > plain[0], "a small rate does not help fedavg"


def test_local_momentum_changes_what_a_step_counts(quadratics: Any) -> None:
    (done,) = federate(get_method("fedavg"), quadratics(1, steps=3), rounds=1)
    rho = 0.5
    by_hand = sum((1 - rho**j) / (1 - rho) for j in range(1, 4))  # the weight of each gradient in w_k - w, summed
    assert FedNova(momentum=rho).effort(done.updates[0]) == pytest.approx(by_hand)
    assert FedNova().effort(done.updates[0]) == 3


def test_it_goes_before_a_server_optimiser(quadratics: Any) -> None:
    method = Compose(local="fednova", optimizer={"name": "fedavgm", "momentum": 0.0, "learning_rate": 0.5})
    half, whole = (next(iter(federate(m, quadratics(3, steps=STEPS), rounds=1))) for m in (method, get_method("fednova")))
    assert isinstance(Compose(local="fednova", optimizer=FedAdam()).optimizer, FedAdam)
    torch.testing.assert_close(half.state["adapter"].dense["w"], whole.state["adapter"].dense["w"] / 2)  # from w = 0


def test_a_client_without_steps_is_refused_by_name() -> None:
    method = get_method("fednova")
    (done,) = federate(method, toy_federation((3, 3, 3)), rounds=1)
    silent = [replace(u, metrics={}) if u.sender.id == 1 else u for u in done.updates]
    with pytest.raises(ValueError, match="client 1 reports no steps"):
        method.aggregate(0, done.before, silent)
    with pytest.raises(ValueError, match="FedNova needs 0 <= momentum < 1"):
        FedNova(momentum=1.0)
