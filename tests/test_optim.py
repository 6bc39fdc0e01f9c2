"""Local optimisers: ours against torch's, and what a warm start does."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fedelta import optim
from fedelta.optim import AdamW, WarmAdam, get_optimizer


def gradients(count: int = 5) -> list[Tensor]:
    return list(torch.randn(count, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


def after(optimizer: WarmAdam, grads: list[Tensor], rate: float = 0.1) -> tuple[Tensor, dict[str, Tensor]]:
    """The parameter "w", from zero, and the estimates of its second moment."""
    params = {"w": torch.zeros_like(grads[0])}
    state = optimizer.init(params)
    for grad in grads:
        optimizer.update(params, {"w": grad}, state, rate)
    return params["w"], optimizer.estimates(state)


def test_a_cold_start_is_adam() -> None:
    expected = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([expected], lr=0.1, betas=(0.8, 0.95), eps=1e-4)
    for grad in gradients():
        expected.grad = grad.clone()
        adam.step()
    found, estimates = after(WarmAdam(betas=(0.8, 0.95), eps=1e-4), gradients())
    torch.testing.assert_close(found, expected.detach(), rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(estimates["w"], adam.state[expected]["exp_avg_sq"] / (1 - 0.95**5), rtol=1e-13, atol=0)


def test_a_warm_start_has_no_jump_at_its_first_step_galore_G8() -> None:
    grad = gradients()[0]
    adam = WarmAdam(second_moment={"w": grad.square()}, eps=1e-4)
    last = torch.zeros_like(grad)
    for steps in range(1, 6):
        now, estimates = after(adam, [grad] * steps)
        torch.testing.assert_close(last - now, 0.1 * grad / (grad.abs() + 1e-4), rtol=1e-12, atol=0)
        torch.testing.assert_close(estimates["w"], grad.square(), rtol=1e-12, atol=0)
        last = now


def test_a_warm_start_goes_on_from_what_it_is_given() -> None:
    grad, nu = gradients()[0], torch.full((4, 3), 4.0, dtype=torch.float64)
    found, estimates = after(WarmAdam(second_moment={"w": nu}), [grad])
    v = 0.999 * nu + 0.001 * grad.square()
    torch.testing.assert_close(found, -0.1 * grad / (v.sqrt() + 1e-8), rtol=1e-12, atol=0)
    torch.testing.assert_close(estimates["w"], v, rtol=1e-12, atol=0)
    assert torch.equal(nu, torch.full((4, 3), 4.0, dtype=torch.float64)), "the estimate that was given is the caller's"


def test_what_is_not_known_starts_cold() -> None:
    grads, nu = gradients(), torch.ones(4, 3, dtype=torch.float64)
    nu[1] = 0.0
    mixed, estimates = after(WarmAdam(second_moment={"w": nu}), grads)
    cold, cold_estimates = after(WarmAdam(), grads)
    assert torch.equal(mixed[1], cold[1])
    assert torch.equal(estimates["w"][1], cold_estimates["w"][1])
    assert not torch.isclose(mixed[0], cold[0]).any()


def test_eps_of_a_scaled_parameter_gives_the_scaled_steps_galore_G3() -> None:
    plain, moments = after(WarmAdam(eps=1e-2), gradients())
    scaled, found = after(WarmAdam(eps=1e-2, eps_of={"w": 0.25e-2}), [0.25 * g for g in gradients()])
    torch.testing.assert_close(scaled, plain, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found["w"] / 0.25**2, moments["w"], rtol=1e-12, atol=0)
    unscaled, _ = after(WarmAdam(eps=1e-2), [0.25 * g for g in gradients()])
    assert float((unscaled - plain).abs().max()) > 1e-4


def test_a_parameter_without_a_gradient_stays() -> None:
    params = {"w": torch.ones(2), "idle": torch.ones(3)}
    adam = WarmAdam(second_moment={"idle": torch.full((3,), 2.0)})
    state = adam.init(params)
    adam.update(params, {"w": torch.ones(2)}, state, 0.1)
    assert torch.equal(params["idle"], torch.ones(3))
    assert torch.equal(adam.estimates(state)["idle"], torch.full((3,), 2.0))
    assert params["w"].tolist() == pytest.approx([0.9, 0.9])


@pytest.mark.parametrize("fused", [False, True])
def test_adamw_is_torchs(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fused:
        monkeypatch.setattr(optim, "has_fused_step", lambda param: False)
    expected = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    theirs = torch.optim.AdamW([expected], lr=0.1, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.3, foreach=True)
    ours, params = AdamW(betas=(0.8, 0.95), eps=1e-4, weight_decay=0.3), {"w": torch.zeros(4, 3, dtype=torch.float64)}
    state = ours.init(params)
    for grad in gradients():
        expected.grad = grad.clone()
        theirs.step()
        ours.update(params, {"w": grad}, state, 0.1)
    torch.testing.assert_close(params["w"], expected.detach(), rtol=1e-13 if fused else 0, atol=0)
    assert float(state["step"]["w"]) == 5


def test_adamw_writes_a_view_and_nothing_beside_it() -> None:
    """Of smaller ranks among stacked factors; gradients come in any layout."""
    whole, gaps = torch.zeros(2, 5, 3), torch.zeros(2, 5, 3)
    alone, view = whole[:, :4].clone(), gaps[:, :4]
    grad = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).mT
    for params, given in (({"w": alone}, grad.contiguous()), ({"w": view}, grad)):
        state = AdamW().init(params)
        AdamW().update(params, {"w": given}, state, 0.1)
        AdamW().update(params, {"w": 2 * given}, state, 0.1)
    torch.testing.assert_close(view, alone)
    assert float(alone.abs().min()) > 0
    assert not gaps[:, 4:].any()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("sgd", {"momentum": 1.0}, "momentum must be below 1, got 1.0"),
        ("sgd", {"momentum": -0.1}, "momentum must be 0 or more, got -0.1"),
        ("sgd", {"momentum": "0.9"}, "momentum must be a number, got '0.9'"),
        ("sgd", {"weight_decay": -1e-3}, "weight_decay must be 0 or more, got -0.001"),
        ("adamw", {"weight_decay": -1e-3}, "weight_decay must be 0 or more, got -0.001"),
        ("adamw", {"betas": [0.9, 1.0]}, "each of betas must be below 1, got 1.0"),
        ("adamw", {"betas": [-0.1, 0.9]}, "each of betas must be 0 or more, got -0.1"),
        ("adamw", {"betas": [0.9]}, "betas must be two numbers"),
        ("adamw", {"betas": 0.9}, "betas must be two numbers"),
        ("adamw", {"eps": 0.0}, "eps must be above 0, got 0.0"),
        ("adamw", {"eps": float("nan")}, "eps must be a finite number, got nan"),
    ],
)
def test_a_setting_beyond_its_bounds_is_refused_by_name(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_optimizer(name, **settings)
