"""FedSAM: where gradients are taken, what they are of, and with what it combines."""

from typing import Any

import pytest
import torch

from fedelta import tree
from fedelta.engines.server import federate
from fedelta.exchange.wire import encode
from fedelta.methods import Compose, FedProx, FedSAM, FedSMOO, Scaffold, get_method
from fedelta.methods._compose.ruled_client import RuledClient
from fedelta.methods._compose.rules import of_norm
from fedelta.models.toy import toy_federation


def watched(hook: Any) -> list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """Makes a hook keep the gradients that it is asked with and what it answers, step by step."""
    seen, ask = [], hook.offset

    def offset(gradients: Any, parameters: Any, step: int) -> Any:
        found = ask(gradients, parameters, step)
        seen.append((gradients, found))
        return found

    hook.offset = offset
    return seen


def norm(tensors: Any) -> float:
    return float(sum(x.square().sum() for x in tensors.values()).sqrt())


def test_without_a_radius_it_is_sgd_to_the_bit_drift_SAM_1() -> None:
    runs = (federate(m, toy_federation((3, 3)), rounds=2) for m in (FedSAM(rho=0.0), get_method("fedavg")))
    for done, reference in zip(*runs, strict=True):
        assert encode(done.state) == encode(reference.state)
        assert done.bytes == reference.bytes


@pytest.mark.parametrize("trainable", [None, "B"])
def test_the_displacement_has_length_rho_along_the_gradient_drift_SAM_2(trainable: Any) -> None:
    client = toy_federation((3,))[0]
    hook = FedSAM(rho=0.3).hook({}, {}, client.template)
    seen = watched(hook)
    client.train(0, client.template, gradient=hook, trainable=trainable)
    assert len(seen) == 4
    for gradients, e in seen:
        assert gradients.keys() == e.keys()
        assert any(n.endswith("lora_A") for n in e) == (trainable is None)
        assert norm(e) == pytest.approx(0.3, rel=1e-11)
        for n, g in gradients.items():
            torch.testing.assert_close(e[n], 0.3 * g / norm(gradients), rtol=1e-10, atol=1e-14)


def test_steps_are_those_of_its_formula(quadratics: Any) -> None:
    client = quadratics(1, steps=5)[0]
    (done,) = federate(FedSAM(rho=0.2), [client], rounds=1)
    x = torch.zeros(4, dtype=torch.float64)
    for _ in range(5):
        g = client.H @ (x - client.b)
        x = x - 0.05 * client.H @ (x + 0.2 * g / g.norm() - client.b)
    torch.testing.assert_close(done.state["adapter"].dense["w"], x, rtol=1e-12, atol=1e-14)


def test_a_gradient_of_zero_displaces_nothing() -> None:
    zero = {"a": torch.zeros(3), "b": torch.zeros(2, 2, dtype=torch.bfloat16)}
    assert all(torch.equal(x, zero[n]) for n, x in of_norm(zero, 0.5).items())
    assert of_norm({}, 0.5) == {}


def test_a_pull_is_taken_where_the_step_is_taken_from(quadratics: Any) -> None:
    """The proximal term goes by x, the gradient by x + e."""
    client = quadratics(1, steps=3)[0]
    (done,) = federate(Compose(local=[FedProx(0.7), FedSAM(rho=0.2)]), [client], rounds=1)
    x = torch.zeros(4, dtype=torch.float64)
    for _ in range(3):
        g = client.H @ (x - client.b)
        x = x - 0.05 * (client.H @ (x + 0.2 * g / g.norm() - client.b) + 0.7 * x)
    torch.testing.assert_close(done.state["adapter"].dense["w"], x, rtol=1e-12, atol=1e-14)


def test_control_variates_are_of_the_gradients_that_are_stepped_by() -> None:
    first, *_ = federate(Compose(local=[Scaffold(), FedSAM(rho=0.2)]), toy_federation((3, 3, 3)), rounds=1)
    start = tree.parameters(first.before["adapter"])
    for update in first.updates:
        end = tree.parameters(update.content["adapter"])
        for n, x in update.content["parts"]["Scaffold"]["dc"].items():
            torch.testing.assert_close(x, (start[n] - end[n]) / (4 * 0.05), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("server", ["flexlora", "hetlora", "fedsa_lora", "flora", "lora_a2", "fedgalore"])
def test_it_combines_with_what_factorises_anew_too(server: str) -> None:
    method = Compose(local=FedSAM(rho=0.1), server=server)
    ranks = (2, 4, 3) if method.hetero_rank else (3, 3, 3)
    (done,) = federate(method, toy_federation(ranks, lora_alpha=6.0), rounds=1, debug=True)
    (plain,) = federate(get_method(server), toy_federation(ranks, lora_alpha=6.0), rounds=1, debug=True)
    assert encode(done.state) != encode(plain.state)
    assert done.bytes == plain.bytes


def test_two_rules_that_both_displace_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"asks for gradients at another point of each step, and so does .*: leave one of them"
    ):
        Compose(local=[FedSAM(), FedSMOO()])


def test_a_client_that_takes_no_gradients_elsewhere_is_refused(quadratics: Any) -> None:
    class Plain:
        """A client of a user's own, which knows nothing of offsets."""

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def train(self, t: int, start: Any, *, gradient: Any = None, **request: Any) -> Any:
            return self.inner.train(t, start, gradient=lambda *args: gradient(*args), **request)

    with pytest.raises(ValueError, match=r"takes no gradients at another point: .* must ask the hook for its `offset`"):
        list(federate(FedSAM(), [Plain(quadratics(1)[0])], rounds=1, debug=True))


def test_a_radius_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="rho of at least 0, got -1"):
        FedSAM(rho=-1)


def test_two_displacing_hooks_of_one_request_are_refused() -> None:
    """A method of a user's own in the middle may have such a hook, too."""
    client = toy_federation((3,))[0]
    ruled = RuledClient(client, [FedSAM()], {}, {})
    with pytest.raises(ValueError, match="two gradient hooks ask for gradients at another point"):
        ruled.train(0, client.template, gradient=FedSAM().hook({}, {}, client.template))
