"""FedZMG: what is centred, along which axis, and why that one for B."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fedelta import tree
from fedelta.engines.server import federate
from fedelta.methods import Compose, FedProx, FedZMG, Scaffold, get_method
from fedelta.methods.fedzmg import centred
from fedelta.models.toy import random_adapter, toy_federation, toy_template


def hooked(gradients: dict[str, Tensor], **hyper: Any) -> Any:
    hook = get_method("fedzmg", **hyper).hook({}, {}, toy_template(2))
    return hook(gradients, gradients, 0)


@pytest.mark.parametrize("axis", ["auto", "output"])
def test_the_mean_along_the_axis_is_zero_and_vectors_stay_drift_ZMG_1(axis: str) -> None:
    g = {**tree.parameters(random_adapter(3, seed=1)), "head": torch.randn(4, 3, 2, dtype=torch.float64)}
    found = hooked(g, axis=axis)
    over = {"A": 1, "B": 0 if axis == "auto" else 1}
    for n in ("hidden", "output"):
        for which, dim in over.items():
            name = f"{n}.lora_{which}"
            torch.testing.assert_close(found[name], g[name] - g[name].mean(dim, keepdim=True), rtol=0, atol=0)
            assert float(found[name].mean(dim).abs().max()) < 1e-15
    assert float(found["head"].mean((1, 2)).abs().max()) < 1e-15
    assert found["bias"] is g["bias"]
    again = hooked(found, axis=axis)
    assert all(torch.allclose(again[n], x, rtol=0, atol=1e-15) for n, x in found.items())


def test_it_commutes_with_averaging_drift_ZMG_1() -> None:
    many = [tree.parameters(random_adapter(3, seed=k)) for k in range(3)]
    mean = hooked(tree.mean([0.2, 0.3, 0.5], many))
    for n, x in tree.mean([0.2, 0.3, 0.5], [hooked(g) for g in many]).items():
        torch.testing.assert_close(x, mean[n], rtol=0, atol=1e-15)


def test_the_factorisation_does_not_matter_drift_ZMG_2() -> None:
    """With B' = B G and A' = G^-1 A, dL/dB' = dL/dB G^-T and dL/dA' = G^T dL/dA: centred or not."""
    (dB, dA), G = (random_adapter(3, seed=2).layers["hidden"].B, random_adapter(3, seed=3).layers["hidden"].A), drawn(3, 3)
    turned = hooked({"x.lora_B": dB @ torch.linalg.inv(G).mT, "x.lora_A": G.mT @ dA})
    plain = hooked({"x.lora_B": dB, "x.lora_A": dA})
    torch.testing.assert_close(turned["x.lora_B"], plain["x.lora_B"] @ torch.linalg.inv(G).mT, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(turned["x.lora_A"], G.mT @ plain["x.lora_A"], rtol=1e-10, atol=1e-12)
    published = hooked({"x.lora_B": dB @ torch.linalg.inv(G).mT}, axis="output")["x.lora_B"]
    assert not torch.allclose(published, hooked({"x.lora_B": dB}, axis="output")["x.lora_B"] @ torch.linalg.inv(G).mT)


def drawn(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_it_centres_the_gradient_of_the_delta_drift_ZMG_2() -> None:
    G, B, A = drawn(6, 5), drawn(6, 2), drawn(2, 5)
    found = hooked({"x.lora_B": G @ A.mT, "x.lora_A": B.mT @ G})
    torch.testing.assert_close(found["x.lora_B"], (G - G.mean(0)) @ A.mT)
    torch.testing.assert_close(found["x.lora_A"], B.mT @ centred(G))


def test_at_rank_one_B_still_trains_drift_ZMG_2() -> None:
    def moved(axis: str) -> float:
        (done,) = federate(get_method("fedzmg", axis=axis), toy_federation((1, 1)), rounds=1, debug=True)
        return float(done.state["adapter"].layers["hidden"].B.norm())

    assert moved("auto") > 1e-3
    assert moved("output") == 0


@pytest.mark.parametrize(
    ("local", "server", "ranks"), [([FedZMG(), Scaffold()], "fedavg", (3, 3)), ([FedZMG()], "flexlora", (2, 4))]
)
def test_all_steps_are_centred(local: Any, server: str, ranks: tuple[int, ...]) -> None:
    method = Compose(local=local, server=server)
    for done in federate(method, toy_federation(ranks), rounds=3, debug=True):
        for update in done.updates:
            start = done.method.broadcast(done.t, done.before, update.sender)["adapter"].layers["hidden"]
            x = done.position(update)[0].layers["hidden"]
            assert float((x.A - start.A).mean(1).abs().max()) < 1e-14
            assert float((x.B - start.B).mean(0).abs().max()) < 1e-14
            assert not torch.equal(x.B, start.B)


def test_it_goes_last_so_that_others_see_raw_gradients() -> None:
    method = Compose(local=[FedZMG(), Scaffold(), FedProx()])
    assert [type(rule) for rule in method.parts.local] == [FedProx, Scaffold, FedZMG]


def test_it_gossips_with_a_method_that_does() -> None:
    assert get_method("fedzmg").decentralised
    assert Compose(local=FedZMG(), server="rolora").decentralised
    assert not Compose(local=FedZMG(), server="flora").decentralised
