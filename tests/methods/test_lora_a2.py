"""LoRA-A2: scores, the choice of components, what moves, what is sent, and the mean of it."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.client import Training
from fedelta.engines.rounds import Round
from fedelta.engines.server import federate
from fedelta.merging import ClientUpdate
from fedelta.methods import get_method
from fedelta.methods._shared.components import best, only_at, scores
from fedelta.models.toy import random_adapter, toy_federation, toy_template
from fedelta.optim import AdamW
from fedelta.peers import Peer


def play(
    rounds: int = 4, ranks: Sequence[int] = (4, 4, 4), federation: dict[str, Any] | None = None, **hyper: Any
) -> list[Round]:
    return list(
        federate(get_method("lora_a2", **hyper), toy_federation(ranks, **(federation or {})), rounds=rounds, debug=True)
    )


@pytest.mark.parametrize("which", ["A", "B"])
def test_scores_are_the_norms_of_what_was_added_hetero_A2_1(which: str) -> None:
    before, other = random_adapter(3, seed=0, scale=2.0), random_adapter(3, seed=1, scale=2.0)
    after = tree.map(lambda x, y: lr.with_factor(x, which, getattr(y, which)), before, other)
    for n, found in scores(which, before, after).items():
        x, y = before.layers[n], after.layers[n]
        expected = [(lr.components(y, j, j + 1).dense() - lr.components(x, j, j + 1).dense()).norm() for j in range(3)]
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=1e-14)


def test_the_best_of_all_layers_together_hetero_A2_2() -> None:
    values = {"a": torch.tensor([1.0, 5.0, 3.0]), "b": torch.tensor([3.0, 0.0, 4.0])}
    assert best(values, 2) == {"a": [1], "b": [2]}
    assert best(values, 3) == {"a": [1, 2], "b": [2]}  # the first of those that tie
    assert best(values, 9) == {"a": [0, 1, 2], "b": [0, 1, 2]}


@pytest.mark.parametrize(("budget", "counts"), [(1, [2, 2, 2]), ([1, 3], [2, 6, 2]), ((4,), [8, 8, 8]), (9, [8, 8, 8])])
def test_every_client_keeps_its_budget_hetero_A2_2(budget: int | Sequence[int], counts: list[int]) -> None:
    for done in play(rounds=3, budget=budget):
        assert [sum(map(len, u.content["kept"].values())) for u in done.updates] == counts
        for u in done.updates:
            which = done.method.factor(done.t)
            sent = {n: x.shape[1 if which == "B" else 0] for n, x in u.content[which].items()}
            assert sent == {n: len(kept) for n, kept in u.content["kept"].items()}


@pytest.mark.parametrize("optimizer", [None, AdamW()])
def test_only_what_is_kept_moves_hetero_A2_3(optimizer: AdamW | None) -> None:
    training = Training(local_steps=4, batch_size=8, learning_rate=0.02, optimizer=optimizer) if optimizer else None
    seen = {}
    clients = toy_federation((4, 4), training=training)
    plain = clients[0].train

    def train(t, start, **request):
        result = plain(t, start, **request)
        seen[t] = (start, result.adapter, request)
        return result

    clients[0].train = train
    for done in federate(get_method("lora_a2", budget=1), clients, rounds=4, debug=True):
        which, axis = ("B", 1) if done.t % 2 == 0 else ("A", 0)
        start, after, request = seen[done.t]
        assert request["lr_scale"] == (1.0 if which == "B" else 0.2)
        for n, x in after.layers.items():
            old, new = getattr(start.layers[n], which), getattr(x, which)
            moved = (old != new).any(dim=1 - axis).nonzero()[:, 0].tolist()
            assert moved == done.updates[0].content["kept"][n]
        means = [getattr(done.position(u)[0].layers["hidden"], which) for u in done.updates]
        untouched = set(range(4)) - {j for u in done.updates for j in u.content["kept"]["hidden"]}
        for j in untouched:
            for tensor in (getattr(done.state["adapter"].layers["hidden"], which), *means):
                assert torch.equal(
                    tensor.select(axis, j), getattr(done.before["adapter"].layers["hidden"], which).select(axis, j)
                )


def test_one_client_with_all_of_the_budget_is_rolora_hetero_A2_4() -> None:
    a2 = play(ranks=(3,), budget=3, lr_ratio=1.0)
    for a, b in zip(a2, federate(get_method("rolora"), toy_federation((3,)), rounds=4), strict=True):
        for n, x in a.state["adapter"].layers.items():
            assert torch.equal(x.B, b.state["adapter"].layers[n].B)
            assert torch.equal(x.A, b.state["adapter"].layers[n].A)


def test_the_factors_take_turns_bit_by_bit_drift_A2_5() -> None:
    for done in play():
        frozen = "A" if done.t % 2 == 0 else "B"
        for n, x in done.state["adapter"].layers.items():
            assert torch.equal(getattr(x, frozen), getattr(done.before["adapter"].layers[n], frozen))


@pytest.mark.parametrize("federation", [{}, {"lora_alpha": 8.0}, {"lora_alpha": 8.0, "rslora": True}], ids=str)
def test_the_aggregate_is_the_mean_of_what_was_added_hetero_SH1_drift_A2_6(federation: dict[str, Any]) -> None:
    for done in play(federation=federation):
        weights = [u.weight for u in done.updates]
        exact = tree.mean_deltas(weights, [done.position(u)[0] for u in done.updates])
        which, axis = ("B", 1) if done.t % 2 == 0 else ("A", 0)
        for n, x in done.state["adapter"].layers.items():
            torch.testing.assert_close(x.dense(), exact.layers[n].dense(), rtol=1e-12, atol=1e-14)
            old = getattr(done.before["adapter"].layers[n], which)
            total = torch.zeros_like(old)
            for w, u in zip(weights, done.updates, strict=True):
                kept = torch.tensor(u.content["kept"][n], dtype=torch.long)
                total.index_add_(axis, kept, w * (u.content[which][n] - old.index_select(axis, kept)))
            torch.testing.assert_close(getattr(x, which), old + total, rtol=1e-12, atol=1e-14)


def test_the_hook_masks_the_factor_and_nothing_else() -> None:
    grads = {n: torch.ones_like(p) for n, p in tree.parameters(toy_template(3)).items()}
    masked = only_at("A", {"hidden": [2], "output": []})(grads, grads, 0)
    assert masked["hidden.lora_A"].sum(dim=1).tolist() == [0, 0, 5]
    assert not masked["output.lora_A"].any()
    assert torch.equal(masked["bias"], grads["bias"])
    assert bool(grads["hidden.lora_A"].all())


def test_fewer_components_are_fewer_bytes() -> None:
    few, many = (play(rounds=1, ranks=(4, 4), budget=b)[0].bytes for b in (1, 4))
    assert many.up[0] - few.up[0] > 8 * 4 * 3  # at least three columns of four to six numbers
    assert few.down == many.down


def test_uploads_of_other_layers_and_numbers_are_refused() -> None:
    done = play(rounds=1)[0]
    first, *others = done.updates

    def send(**content: object) -> None:
        update = ClientUpdate(first.sender, first.weight, {**first.content, **content})
        done.method.aggregate(0, done.before, [update, *others])

    send()
    with pytest.raises(ValueError, match="client 0 and the server do not adapt the same layers"):
        send(B={"hidden": first.content["B"]["hidden"]})
    for wrong in ([7], [-1], [0, 0]):
        with pytest.raises(ValueError, match=r"layer 'hidden': client 0 sends components .*: each must be one of 4, and once"):
            send(kept={**first.content["kept"], "hidden": wrong})
    with pytest.raises(ValueError, match=r"layer 'hidden': client 0 sends B of shape .* for 0 components, not \[6, 0\]"):
        send(kept={**first.content["kept"], "hidden": []})


@pytest.mark.parametrize("hyper", [{"budget": 0}, {"budget": []}, {"budget": [2, 0]}, {"probe_share": 0.0}, {"lr_ratio": 0.0}])
def test_values_out_of_range_are_refused(hyper: dict) -> None:
    with pytest.raises(ValueError, match="LoRAA2 needs budgets of at least 1, 0 < probe_share <= 1 and lr_ratio > 0"):
        get_method("lora_a2", **hyper)


def test_budgets_are_dealt_out_by_id_and_hash() -> None:
    method = get_method("lora_a2", budget=[1, 8])
    assert [method.budget_of(Peer(k, 8)) for k in range(3)] == [1, 8, 1]
    assert hash(method) == hash(get_method("lora_a2", budget=(1, 8)))
