"""SCAFFOLD: the control variates, the optimum they lead to, and where they are refused."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from fedelta import sampling, tree
from fedelta.client import Training
from fedelta.engines.server import federate
from fedelta.methods import Compose, Scaffold, get_method
from fedelta.models.toy import toy_federation
from fedelta.optim import SGD, AdamW
from fedelta.peers import Peer


def server_c(done: Any) -> dict[str, torch.Tensor]:
    return done.state["parts"]["Scaffold"]["c"]


def client_c(done: Any, k: int) -> dict[str, torch.Tensor]:
    return done.client_states.get(k, {"parts": {"Scaffold": {"c": {}}}})["parts"]["Scaffold"]["c"]


def test_the_server_holds_the_mean_over_all_clients_drift_SCA_1(quadratics: Any) -> None:
    clients = quadratics(5)
    for done in federate(get_method("scaffold"), clients, rounds=12, cohort=sampling.uniform(0.4)):
        assert len(done.updates) == 2
        mean = sum(client_c(done, k).get("w", torch.zeros(4)) for k in range(5)) / 5
        torch.testing.assert_close(server_c(done)["w"], mean, rtol=0, atol=1e-14)


def test_clients_that_are_alike_are_not_corrected_drift_SCA_2(quadratics: Any) -> None:
    runs = (federate(get_method(name), quadratics(4, alike=True), rounds=5) for name in ("scaffold", "fedavg"))
    for done, reference in zip(*runs, strict=True):
        torch.testing.assert_close(
            done.state["adapter"].dense["w"], reference.state["adapter"].dense["w"], rtol=1e-13, atol=1e-14
        )


def test_it_reaches_the_optimum_where_fedavg_stalls_drift_SCA_3(quadratics: Any, optimum: Any) -> None:
    def error(name: str, rounds: int, **setting: Any) -> float:
        clients = quadratics(5)
        *_, done = federate(get_method(name), clients, rounds=rounds, **setting)
        return float((done.state["adapter"].dense["w"] - optimum(clients)).norm())

    assert error("fedavg", 40) > 0.1
    assert error("scaffold", 80) < 1e-11
    assert error("scaffold", 60, cohort=sampling.uniform(0.6)) < 1e-4


def test_under_sgd_the_mean_gradient_is_option_II() -> None:
    """c_k - c + (w_t - w_k) / (K eta), with the c and c_k of before."""
    rate, steps = 0.05, 4
    first, second, third = federate(get_method("scaffold"), toy_federation((3, 3, 3), lora_alpha=6.0), rounds=3)
    for before, done in ((first, second), (second, third)):
        start = tree.parameters(done.before["adapter"])
        for update in done.updates:
            k, end = update.sender.id, tree.parameters(update.content["adapter"])
            for n, c_k in client_c(before, k).items():
                expected = c_k - server_c(before)[n] + (start[n] - end[n]) / (steps * rate)
                torch.testing.assert_close(client_c(done, k)[n], expected, rtol=1e-10, atol=1e-12)
                torch.testing.assert_close(update.content["parts"]["Scaffold"]["dc"][n], expected - c_k, rtol=1e-9, atol=1e-12)


def test_under_adam_it_is_the_mean_of_raw_gradients() -> None:
    """With one step it is the gradient at the start, whatever the optimiser then makes of it, and before clipping."""

    def first(optimizer: Any, norm: float | None) -> dict[str, torch.Tensor]:
        training = Training(local_steps=1, batch_size=8, learning_rate=0.01, optimizer=optimizer, max_grad_norm=norm)
        (done,) = federate(get_method("scaffold"), toy_federation((3, 3), training=training), rounds=1)
        return client_c(done, 1)

    raw, adam = first(SGD(), None), first(AdamW(), 1e-3)
    assert all(torch.equal(raw[n], adam[n]) for n in raw)
    assert not raw["hidden.lora_A"].any(), "B = 0, so that A has no gradient in the first step"
    assert raw["hidden.lora_B"].any()


def test_the_variates_of_a_frozen_factor_stay_as_they_are() -> None:
    rounds = list(federate(Compose(local=Scaffold(), server="rolora"), toy_federation((3, 3, 3)), rounds=5, debug=True))
    for before, done in pairwise(rounds[1:]):
        trained, frozen = ("lora_B", "lora_A") if done.t % 2 == 0 else ("lora_A", "lora_B")
        for held, now in [(server_c(before), server_c(done)), (client_c(before, 0), client_c(done, 0))]:
            assert all(torch.equal(held[n], now[n]) for n in held if n.endswith(frozen))
            assert not any(torch.equal(held[n], now[n]) for n in held if n.endswith(trained))
        assert all(torch.equal(x.A if trained == "lora_B" else x.B, getattr(done.before["adapter"].layers[n], frozen[-1]))
                   for n, x in done.state["adapter"].layers.items())  # fmt: skip


def test_a_client_that_lost_its_variate_goes_on_from_zero_drift_17() -> None:
    method, clients = get_method("scaffold"), toy_federation((3, 3, 3))
    *_, done = federate(method, clients, rounds=2)
    lost = replace(done.snapshot, client_states={k: x for k, x in done.snapshot.client_states.items() if k != 1})
    *_, after = federate(method, clients, rounds=3, start=lost, debug=True)
    sent = after.updates[1].content["parts"]["Scaffold"]["dc"]
    assert all(torch.equal(sent[n], x) for n, x in client_c(after, 1).items())


@pytest.mark.parametrize("server", ["flexlora", "fedsvd", "flora", "fedex_lora", "subspace_reg"])
def test_a_basis_that_changes_is_refused_drift_17(server: str) -> None:
    with pytest.raises(
        ValueError, match=r"Scaffold needs factors that keep their meaning .* take a server that averages factors"
    ):
        Compose(local=Scaffold(), server=server)


def test_unequal_ranks_and_scales_are_refused() -> None:
    method = Compose(local=Scaffold(), server="zeropad")
    assert not method.hetero_rank
    with pytest.raises(ValueError, match="needs equal ranks"):
        federate(method, toy_federation((2, 4)), rounds=1)
    clients = toy_federation((3, 3))
    peers = [Peer(0, 3, lora_alpha=3.0), Peer(1, 3, lora_alpha=6.0)]
    with pytest.raises(ValueError, match=r"needs one scale, but layer 'hidden' .* \{0: 1.0, 1: 2.0\}.* one lora_alpha"):
        method.check(clients[0].template, peers)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda x: x[..., :-1], "control variate for 'bias' of shape"),
        (lambda x: x * float("nan"), "NaN or Inf"),
        (None, "sent no control variate"),
    ],
)
def test_a_client_with_a_broken_variate_is_left_out_by_name(spoil: Any, reason: str) -> None:
    class Broken(Scaffold):
        def leave(self, sent: Any, own: Any, trained: Any) -> Any:
            up, kept = super().leave(sent, own, trained)
            if trained.hook.mean()["bias"].abs().sum() != worst:
                return up, kept
            return ({"dc": {**up["dc"], "bias": spoil(up["dc"]["bias"])}} if spoil else {}), kept

    (done,) = federate(get_method("scaffold"), toy_federation((3, 3, 3)), rounds=1)
    worst = client_c(done, 1)["bias"].abs().sum()
    (done,) = federate(Broken(), toy_federation((3, 3, 3)), rounds=1)
    assert list(done.dropped) == [1]
    assert reason in done.dropped[1]
