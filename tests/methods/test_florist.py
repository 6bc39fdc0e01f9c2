"""FLoRIST against FLoRA and hand-checked spectra; test names end in the id of the acceptance test in its specification."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedelta import tree
from fedelta.engines.server import federate
from fedelta.lowrank import LoRA
from fedelta.methods import get_method
from fedelta.methods.florist import energy_rank
from fedelta.models.toy import toy_federation
from fedelta.peers import Peer


def step(state: Mapping[str, Any]) -> LoRA:
    """What the first round added to the base."""
    return state["base"].terms["w"][0]


def large(*sigmas: float) -> LoRA:
    """A 40 x 30 delta with these singular values, in a gauge that does not show them."""
    torch.manual_seed(0)
    r = len(sigmas)
    U, V = torch.linalg.qr(torch.randn(40, r).double()).Q, torch.linalg.qr(torch.randn(30, r).double()).Q
    gauge = torch.randn(r, r).double() + 3 * torch.eye(r).double()
    return LoRA(U * torch.tensor(sigmas).double() @ gauge, torch.linalg.inv(gauge) @ V.mT)


@pytest.mark.parametrize(
    ("sigmas", "tau", "count"),
    [([2, 1], 0.8, 1), ([2, 1], 0.81, 2), ([2, 1], 0.2, 1), ([3, 2, 1, 1], 0.86, 2), ([3, 2, 1, 1], 0.87, 3), ([0, 0], 0.9, 0)],
)
def test_the_fewest_values_with_the_energy_hetero_F7(sigmas: list[float], tau: float, count: int) -> None:
    assert energy_rank(torch.tensor(sigmas, dtype=torch.float64), tau) == count


def test_all_the_energy_keeps_small_values_hetero_F7() -> None:
    assert energy_rank(torch.tensor([1.0, 1e-9], dtype=torch.float64), 1.0) == 2


def test_the_step_is_cut_to_its_energy_hetero_F7(written_round: Callable) -> None:
    done = written_round(large(2, 1), weights=[1.0])
    assert step(done.run(get_method("florist", tau=0.79))).rank == 1
    exact = step(done.run(get_method("florist", tau=0.81)))
    assert exact.rank == 2
    assert exact.scale == 1
    torch.testing.assert_close(exact.dense(), large(2, 1).dense())
    error = (step(done.run(get_method("florist", tau=0.79))).dense() - exact.dense()).norm()
    assert float(error) == pytest.approx(1)


def test_with_all_energy_it_is_flora_over_rounds_hetero_F7() -> None:
    runs = [
        federate(get_method(n, **h), toy_federation((2, 4, 3)), rounds=3) for n, h in (("florist", {"tau": 1}), ("flora", {}))
    ]
    for mine, theirs in zip(*runs, strict=True):
        for n, x in tree.total(theirs.state["base"]).items():
            torch.testing.assert_close(tree.dense(tree.total(mine.state["base"])[n]), tree.dense(x), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(mine.state["adapter"].dense["bias"], theirs.state["adapter"].dense["bias"])


def test_what_goes_down_has_the_rank_that_is_left_hetero_G16(written_round: Callable) -> None:
    """Four clients that found the same two directions: FLoRA sends them four times."""
    done = written_round(*[large(2, 1)] * 4, weights=[0.25] * 4)
    sizes = {}
    for name in ("florist", "flora"):
        method = get_method(name)
        down = method.broadcast(1, done.run(method), Peer(0, 2))
        sizes[name] = sum(x.numel() for _, x in tree.named_tensors(down))
    assert sizes == {"florist": 2 * (40 + 30), "flora": 8 * (40 + 30)}


def test_nothing_learned_is_nothing_added(written_round: Callable) -> None:
    still = replace(large(2, 1), B=torch.zeros(40, 2).double())
    done = written_round(still, weights=[1.0])
    assert not done.received(get_method("florist"), done.run(get_method("florist")), done.peers[0])["w"].any()


def test_clients_train_what_floras_clients_train(fake_round: Callable) -> None:
    method, flora, done = get_method("florist"), get_method("flora"), fake_round((2, 3))
    first = {n: next(iter(federate(m, toy_federation((2, 3)), rounds=1))).updates for n, m in (("a", method), ("b", flora))}
    for mine, theirs in zip(first["a"], first["b"], strict=True):
        for n, x in theirs.content["adapter"].layers.items():
            np.testing.assert_array_equal(mine.content["adapter"].layers[n].B, x.B)
    assert method.init(done.template, done.peers)["base"].version == 0


@pytest.mark.parametrize("tau", [0.0, -1.0, 1.01])
def test_tau_out_of_range_is_refused(tau: float) -> None:
    with pytest.raises(ValueError, match=rf"share of energy in \(0, 1\], got {tau}"):
        get_method("florist", tau=tau)
