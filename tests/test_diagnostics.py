"""Diagnostics equal their dense formulas, need no dW, and are None with a reason where they make no sense."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedelta import diagnostics as d
from fedelta import sampling, topology, tree
from fedelta.diagnostics import diagnose
from fedelta.engines.local import federate, gossip
from fedelta.lowrank import LoRA
from fedelta.methods import get_method
from fedelta.models.toy import random_adapter, toy_federation
from fedelta.tree import Adapter

WEIGHTS = [0.5, 0.3, 0.2]
NAMES = ["aggregation_error", "effective_rank", "stable_rank", "update_norm", "client_cosine", "higher_rank_energy_ratio"]


def names(values: Mapping[str, object]) -> list[str]:
    return [n for n in values if not n.endswith("_reason")]


def crowd(ranks: Sequence[int] = (2, 2, 2), scales: Sequence[float] = (1.0, 0.5, 3.0)) -> list[Adapter]:
    return [random_adapter(r, seed=k, scale=s) for k, (r, s) in enumerate(zip(ranks, scales, strict=True))]


def dense(adapters: Sequence[Adapter]) -> list[list[np.ndarray]]:
    """By layer, each client's dW."""
    return [[a.layers[n].dense().numpy() for a in adapters] for n in adapters[0].layers]


def mean(xs: Sequence[np.ndarray]) -> np.ndarray:
    return sum(w * x for w, x in zip(WEIGHTS, xs, strict=True))  # type: ignore[return-value]


def norm(xs: Sequence[np.ndarray]) -> float:
    return math.sqrt(sum((x**2).sum() for x in xs))


def test_aggregation_error_is_its_dense_formula() -> None:
    adapters = crowd()
    wrong = []
    for n in adapters[0].layers:
        xs = [a.layers[n] for a in adapters]  # all brought to the first one's scale, half the change on each factor
        B = mean([(x.B * (x.scale / xs[0].scale) ** 0.5).numpy() for x in xs])
        A = mean([(x.A * (x.scale / xs[0].scale) ** 0.5).numpy() for x in xs])
        wrong.append(mean([x.dense().numpy() for x in xs]) - xs[0].scale * B @ A)
    expected = norm(wrong) / norm([mean(xs) for xs in dense(adapters)])
    assert d.aggregation_error(WEIGHTS, adapters) == pytest.approx(expected, rel=1e-12)


def test_aggregation_error_keeps_its_digits_when_clients_nearly_agree() -> None:
    """Both factors differ by eps, so the error is of order eps^2, far below what a difference of products could show."""
    first = random_adapter(2, seed=0)
    error = {}
    for eps in (1e-3, 1e-6):
        other = tree.map(lambda x, y, e=eps: LoRA(x.B + e * y.B, x.A + e * y.A), first, random_adapter(2, seed=1))
        error[eps] = d.aggregation_error([0.5, 0.5], [first, other])
    assert error[1e-6] == pytest.approx(1e-6 * error[1e-3], rel=1e-2)
    assert d.aggregation_error(WEIGHTS, [first] * 3) == 0


def test_ranks_of_the_mean_are_those_of_its_dense_spectrum() -> None:
    adapters = crowd((1, 3, 2))
    effective, stable = [], []
    for xs in dense(adapters):
        s = np.linalg.svd(mean(xs), compute_uv=False)
        p = s[s > 0] / s.sum()
        effective.append(math.exp(-(p * np.log(p)).sum()))
        stable.append((s**2).sum() / s[0] ** 2)
    assert d.effective_rank(WEIGHTS, adapters) == pytest.approx(np.mean(effective), rel=1e-9)
    assert d.stable_rank(WEIGHTS, adapters) == pytest.approx(np.mean(stable), rel=1e-12)


def test_norm_and_cosine_are_their_dense_formulas() -> None:
    adapters = crowd((1, 3, 2))
    flat = [np.concatenate([xs[k].ravel() for xs in dense(adapters)]) for k in range(3)]
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for k, a in enumerate(flat) for b in flat[k + 1 :]]
    assert d.update_norm(WEIGHTS, adapters) == pytest.approx(mean([np.linalg.norm(x) for x in flat]), rel=1e-12)
    assert d.client_cosine(WEIGHTS, adapters) == pytest.approx(np.mean(cosines), rel=1e-10)


def test_cosine_of_opposite_and_equal_clients() -> None:
    x = random_adapter(2, seed=0)
    opposite = tree.map(lambda y: replace(y, B=-y.B), x)
    still = tree.map(lambda y: replace(y, B=0 * y.B), x)
    assert d.client_cosine([0.5, 0.5], [x, opposite]) == pytest.approx(-1)
    assert d.client_cosine(WEIGHTS, [x, still, x]) == pytest.approx(1)


@pytest.mark.parametrize("name", ["fedavg", "ffa_lora", "flexlora", "flora", "fedex_lora", "zeropad"])
def test_a_round_of_every_kind_has_all_numbers(name: str) -> None:
    done = next(iter(federate(get_method(name), toy_federation(), rounds=1, debug=True)))
    values = diagnose(done)
    assert names(values) == NAMES
    assert values.pop("higher_rank_energy_ratio") is None
    assert values.pop("higher_rank_energy_ratio_reason") == "equal ranks: every client holds all components"
    assert all(isinstance(v, float) and math.isfinite(v) for v in values.values())
    assert -1 <= values["client_cosine"] <= 1 <= values["stable_rank"] <= values["effective_rank"] * (1 + 1e-9) <= 5


def test_ffa_has_no_aggregation_error() -> None:
    """With a common A the mean of factors is exact: the reason for the method."""
    ffa, fedavg = (next(iter(federate(get_method(n), toy_federation(), rounds=1))) for n in ("ffa_lora", "fedavg"))
    assert diagnose(ffa)["aggregation_error"] == 0
    assert diagnose(fedavg)["aggregation_error"] > 1e-6


def test_gossip_is_diagnosed_too() -> None:
    mixing = topology.ring(3)
    done = list(gossip(get_method("fedavg"), toy_federation(), rounds=2, mixing=mixing))[-1]
    values = diagnose(done)
    assert names(values) == NAMES
    assert values["higher_rank_energy_ratio_reason"] == "no model is common to all"


@pytest.mark.parametrize("name", ["flexlora", "zeropad", "flora", "fedex_lora", "ffa_lora"])
def test_higher_rank_energy_is_that_of_the_servers_dense_delta(name: str) -> None:
    """Only the layers of unequal ranks count, and what is in the base counts too."""
    clients = toy_federation((2, 4, 3), rank_pattern={"output": 3}, lora_alpha=8.0)
    done = list(federate(get_method(name), clients, rounds=2, debug=True))[-1]
    model = done.global_model()
    S = np.linalg.svd(tree.effective(model["adapter"], model.get("base")).layers["hidden"].dense().numpy())[1]
    assert diagnose(done)["higher_rank_energy_ratio"] == pytest.approx((S[2:] ** 2).sum() / (S**2).sum(), rel=1e-9)


def test_what_is_undefined_is_none_with_a_reason() -> None:
    unequal = diagnose(next(iter(federate(get_method("flexlora"), toy_federation((1, 2)), rounds=1))))
    assert unequal["aggregation_error"] is None
    assert unequal["aggregation_error_reason"] == "unequal ranks [1, 2]: factors cannot be averaged"
    alone = diagnose(next(iter(federate(get_method("fedavg"), toy_federation(), rounds=1, cohort=sampling.uniform(1)))))
    assert (alone["client_cosine"], alone["client_cosine_reason"]) == (None, "fewer than two clients have a delta")
    assert alone["aggregation_error"] == 0
    silent = diagnose(next(iter(federate(get_method("local_only"), toy_federation(), rounds=1))))
    assert {silent[n] for n in NAMES} == {None}
    assert silent["stable_rank_reason"] == "nothing travels"
    for values in (unequal, alone, silent):
        json.dumps(values, allow_nan=False)


def test_a_round_in_which_nothing_was_learned() -> None:
    clients = toy_federation()
    for client in clients:
        client.training = replace(client.training, learning_rate=1e-300)
    values = diagnose(next(iter(federate(get_method("ffa_lora"), clients, rounds=1))))
    still = [tree.map(lambda x: replace(x, B=torch.zeros_like(x.B)), random_adapter(2, seed=k)) for k in range(3)]
    with pytest.raises(d.Undefined, match="mean delta is zero"):
        d.aggregation_error(WEIGHTS, still)
    assert d.effective_rank(WEIGHTS, still) == d.stable_rank(WEIGHTS, still) == d.update_norm(WEIGHTS, still) == 0
    json.dumps(values, allow_nan=False)
