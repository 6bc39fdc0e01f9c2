"""RBLA against hand-checked numbers; test names end in the id of the acceptance test in the method's specification."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate
from fedelta.methods import get_method
from fedelta.models.toy import random_adapter, toy_template
from fedelta.peers import Peer


def matrix(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


ONE, TWO = LoRA(matrix([2]), matrix([1])), LoRA(matrix([4, 6]), matrix([3], [5]))


def test_components_are_averaged_over_their_owners_hetero_RB1(written_round: Callable) -> None:
    x = written_round(ONE, TWO, weights=[0.25, 0.75]).run(get_method("rbla"))["adapter"].layers["w"]
    torch.testing.assert_close(x.B, matrix([3.5, 6]))
    torch.testing.assert_close(x.A, matrix([2.5], [5]))


def test_equal_ranks_are_fedavg_hetero_RB2(fake_round: Callable) -> None:
    done = fake_round((4, 4, 4))
    mine, theirs = (done.run(get_method(n))["adapter"] for n in ("rbla", "fedavg"))
    for n, x in theirs.layers.items():
        torch.testing.assert_close(mine.layers[n].B, x.B, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(mine.layers[n].A, x.A, rtol=1e-14, atol=1e-14)


def test_components_without_an_owner_keep_their_last_value() -> None:
    method, peers = get_method("rbla"), [Peer(0, 2), Peer(1, 4)]
    before = {"adapter": random_adapter(4, seed=0)}
    state = method.aggregate(1, before, [ClientUpdate(peers[0], 1.0, {"adapter": random_adapter(2, seed=1)})])
    for n, x in state["adapter"].layers.items():
        old, sent = before["adapter"].layers[n], random_adapter(2, seed=1).layers[n]
        assert torch.equal(x.B, torch.cat([sent.B, old.B[:, 2:]], 1))
        assert torch.equal(x.A, torch.cat([sent.A, old.A[2:]]))


def test_what_nobody_ever_had_is_the_template() -> None:
    method, peers, template = get_method("rbla"), [Peer(0, 2), Peer(1, 4)], toy_template(4)
    update = ClientUpdate(peers[0], 1.0, {"adapter": random_adapter(2, seed=1)})
    x = method.aggregate(0, method.init(template, peers), [update])["adapter"].layers["hidden"]
    assert not x.B[:, 2:].any()
    assert torch.equal(x.A[2:], template.layers["hidden"].A[2:])


@pytest.mark.parametrize(("scale_policy", "expected"), [("effective", [4.0, 1.0]), ("raw", [2.0, 1.0])])
def test_scale_policy(written_round: Callable, scale_policy: str, expected: list[float]) -> None:
    """The narrow client's scale is twice the server's: under lora_alpha 4 it has 4, at rank 2 the server has 2."""
    done = written_round(replace(ONE, scale=4.0), weights=[1.0], absent=[Peer(9, 2, lora_alpha=4.0)], lora_alpha=4.0)
    x = done.run(get_method("rbla", scale_policy=scale_policy))["adapter"].layers["w"]
    assert x.scale == 2
    assert [float(x.B[0, 0]), float(x.A[0, 0])] == pytest.approx(expected)
