"""FedAvgM, FedAdagrad, FedAdam and FedYogi: their formulas, what they leave alone, and where they are refused."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from fedelta import tree
from fedelta.engines.server import federate
from fedelta.exchange.wire import encode
from fedelta.methods import Compose, FedAdam, FedAvgM, get_method
from fedelta.models.toy import toy_federation

ADAPTIVE = ["fedadagrad", "fedadam", "fedyogi"]
ALL = ["fedavgm", *ADAPTIVE]


def displacements(server: str, rounds: list[Any]) -> list[dict[str, torch.Tensor]]:
    """What the server's own method would have added in each round."""
    found = []
    for done in rounds:
        plain = get_method(server).aggregate(done.t, done.before, done.updates)
        old, new = tree.parameters(done.before["adapter"]), tree.parameters(plain["adapter"])
        found.append({n: new[n] - x for n, x in old.items()})
    return found


def moves(rounds: list[Any]) -> list[dict[str, torch.Tensor]]:
    pairs = [(tree.parameters(r.before["adapter"]), tree.parameters(r.state["adapter"])) for r in rounds]
    return [{n: new[n] - x for n, x in old.items()} for old, new in pairs]


def by_hand(name: str, D: list[torch.Tensor], rate: float, beta1: float, beta2: float, tau: float) -> list[torch.Tensor]:
    m, v, steps = torch.zeros_like(D[0]), torch.full_like(D[0], tau**2), []
    for d in D:
        m = beta1 * m + (1 - beta1) * d
        v = {
            "fedadagrad": v + d**2,
            "fedadam": beta2 * v + (1 - beta2) * d**2,
            "fedyogi": v - (1 - beta2) * d**2 * torch.sign(v - d**2),
        }[name]
        steps.append(rate * m / (v.sqrt() + tau))
    return steps


@pytest.mark.parametrize("server", ["fedavg", "zeropad", "rolora", "ffa_lora", "rbla"])
def test_a_plain_step_is_the_method_itself_drift_OPT_1(server: str) -> None:
    ranks = (3, 3, 3) if server == "fedavg" else (2, 4, 3)
    method = Compose(server=server, optimizer=FedAvgM(momentum=0.0, learning_rate=1.0))
    runs = (federate(m, toy_federation(ranks, lora_alpha=8.0), rounds=3) for m in (method, get_method(server)))
    for done, reference in zip(*runs, strict=True):
        assert encode(done.state["adapter"].layers) == encode(reference.state["adapter"].layers)
        assert done.bytes == reference.bytes


def test_momentum_sums_up_what_rounds_added() -> None:
    method = get_method("fedavgm", momentum=0.5, learning_rate=0.7, lr_ratio=0.1)
    rounds = list(federate(method, toy_federation((3, 3, 3)), rounds=4))
    v: dict[str, torch.Tensor] = {}
    for D, moved in zip(displacements("fedavg", rounds), moves(rounds), strict=True):
        v = {n: d + 0.5 * v[n] if n in v else d for n, d in D.items()}
        for n, x in moved.items():
            rate = 0.07 if n.endswith("lora_A") else 0.7
            torch.testing.assert_close(x, rate * v[n], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_equals_its_formula(name: str) -> None:
    settings = {"beta2": 0.8} if name != "fedadagrad" else {}
    method = get_method(name, learning_rate=0.02, beta1=0.6, tau=1e-2, **settings)
    rounds = list(federate(method, toy_federation((3, 3, 3)), rounds=5))
    D, moved = displacements("fedavg", rounds), moves(rounds)
    for n in D[0]:
        expected = by_hand(name, [d[n] for d in D], 0.02, 0.6, 0.8, 1e-2)
        for x, y in zip(moved, expected, strict=True):
            torch.testing.assert_close(x[n], y, rtol=1e-9, atol=1e-13)


def test_without_moments_adam_is_a_signed_step_drift_OPT_2() -> None:
    method = get_method("fedadam", learning_rate=0.01, beta1=0.0, beta2=0.0, tau=1e-14)
    rounds = list(federate(method, toy_federation((3, 3, 3)), rounds=2))
    for D, moved in zip(displacements("fedavg", rounds), moves(rounds), strict=True):
        for n, d in D.items():
            torch.testing.assert_close(moved[n], 0.01 * d.sign(), rtol=1e-6, atol=1e-12)


def test_yogi_is_adam_where_v_is_the_square_drift_OPT_3() -> None:
    d = torch.tensor([0.3, -2.0, 0.0], dtype=torch.float64)
    memory = {"m": 0.1 * d, "v": d**2, "steps": 4}
    (x, after), (y, other) = (get_method(n).step(memory, d) for n in ("fedyogi", "fedadam"))
    torch.testing.assert_close(x, y, rtol=1e-14, atol=0)
    torch.testing.assert_close(after["v"], other["v"], rtol=1e-14, atol=0)


def test_adagrad_never_forgets_drift_OPT_4() -> None:
    rounds = list(federate(get_method("fedadagrad"), toy_federation((3, 3, 3)), rounds=5))
    for before, done in pairwise(rounds):
        for n, memory in before.state["parts"]["FedAdagrad"].items():
            assert bool((done.state["parts"]["FedAdagrad"][n]["v"] >= memory["v"]).all())


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_bias_correction_makes_the_first_step_whole(name: str) -> None:
    d = torch.tensor([0.3, -2.0], dtype=torch.float64)
    optimizer = get_method(name, bias_correction=True, tau=1e-12)
    step, memory = optimizer.step(optimizer.start(d), d)
    torch.testing.assert_close(step, d.sign(), rtol=1e-6, atol=0)
    assert memory["steps"] == 1


@pytest.mark.parametrize("name", ALL)
def test_a_frozen_factor_keeps_value_and_memory(name: str) -> None:
    rounds = list(federate(Compose(server="rolora", optimizer=name), toy_federation((2, 4, 3)), rounds=4, debug=True))
    key = type(get_method(name)).__name__
    for before, done in pairwise(rounds[1:]):
        frozen = "A" if done.t % 2 == 0 else "B"
        for n, x in done.state["adapter"].layers.items():
            assert torch.equal(getattr(x, frozen), getattr(before.state["adapter"].layers[n], frozen))
            held, now = (r.state["parts"][key][f"{n}.lora_{frozen}"] for r in (before, done))
            assert encode(held) == encode(now)


@pytest.mark.parametrize("name", ALL)
def test_a_round_without_change_is_a_fixed_point(name: str) -> None:
    method = get_method(name)
    *_, done = federate(method, toy_federation((3, 3, 3)), rounds=3)
    idle = [u.__class__(u.sender, u.weight, method.upload(done.state["adapter"])) for u in done.updates]
    assert encode(method.aggregate(3, done.state, idle)) == encode(done.state)


@pytest.mark.parametrize("server", ["zeropad", "hetlora", "rbla", "ffa_lora", "rolora", "fedsa_lora"])
def test_unequal_ranks_are_the_business_of_the_server(server: str) -> None:
    method = Compose(server=server, optimizer=FedAdam(learning_rate=0.01))
    assert method.hetero_rank
    *_, done = federate(method, toy_federation((2, 4, 3), lora_alpha=8.0), rounds=2, debug=True)
    for peer in done.peers:
        for x in done.participant_model(peer)["adapter"].layers.values():
            assert x.rank == peer.rank


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_moments_are_wide_and_factors_keep_their_type(dtype: torch.dtype) -> None:
    *_, done = federate(get_method("fedadam"), toy_federation((3, 3), dtype=dtype), rounds=2, debug=True)
    assert {x.dtype for x in tree.parameters(done.state["adapter"]).values()} == {dtype}
    assert {x.dtype for _, x in tree.named_tensors(done.state["parts"])} == {torch.float32}


@pytest.mark.parametrize(("server", "why"), [("flexlora", "factorises the product anew"), ("flora", "moves the base")])
@pytest.mark.parametrize("name", ALL)
def test_other_coordinates_are_refused_by_name(name: str, server: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"{type(get_method(name)).__name__} needs factors .* {why}.*such as fedavg, zeropad"):
        Compose(server=server, optimizer=name)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("fedavgm", {"momentum": 1.0}),
        ("fedavgm", {"learning_rate": 0.0}),
        ("fedadam", {"beta1": 1.0}),
        ("fedadam", {"beta2": -0.1}),
        ("fedadagrad", {"tau": 0.0}),
        ("fedyogi", {"lr_ratio": 0.0}),
    ],
)
def test_settings_out_of_range_are_refused(name: str, settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"needs .*{next(iter(settings))}"):
        get_method(name, **settings)
