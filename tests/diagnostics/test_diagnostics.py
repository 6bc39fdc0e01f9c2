"""Diagnostics equal their dense formulas, need no dW, and are None with a reason where they make no sense."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedelta import diagnostics, sampling, topology, tree
from fedelta.client import Training
from fedelta.diagnostics import diagnose, numbers
from fedelta.diagnostics.layers import Layer, cumulative, increments, overlaps_with
from fedelta.engines.gossip import gossip
from fedelta.engines.rounds import Round
from fedelta.engines.server import federate
from fedelta.lowrank import LoRA
from fedelta.methods import get_method
from fedelta.models.toy import random_adapter, toy_federation
from fedelta.optim import SGD
from fedelta.peers import template_for
from fedelta.tree import Adapter

Array = NDArray[np.float64]
WEIGHTS = [0.5, 0.3, 0.2]
RANKS, SCALES = (1, 3, 2), (1.0, 0.5, -3.0)
SIDES = ("B", "A")
BOLD = Training(local_steps=10, batch_size=8, learning_rate=0.2, optimizer=SGD())
"""So that clients part within a round."""


def crowd(ranks: Sequence[int] = RANKS, scales: Sequence[float] = SCALES, first: int = 0) -> list[Adapter]:
    return [random_adapter(r, seed=first + k, scale=s) for k, (r, s) in enumerate(zip(ranks, scales, strict=True))]


def by_layer(adapters: Sequence[Adapter]) -> list[list[LoRA]]:
    return [[a.layers[n] for a in adapters] for n in adapters[0].layers]


def layers(adapters: Sequence[Adapter], weights: Sequence[float] = WEIGHTS) -> list[Layer]:
    return [cumulative(weights, xs) for xs in by_layer(adapters)]


def changes(adapters: Sequence[Adapter], starts: Sequence[Adapter]) -> list[Layer]:
    return [increments(WEIGHTS, xs, ys) for xs, ys in zip(by_layer(adapters), by_layer(starts), strict=True)]


def finite(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers alone, which must all be finite."""
    found = {n: float(v) for n, v in values.items() if isinstance(v, float | int)}
    assert all(math.isfinite(v) for v in found.values())
    return found


# --- a dense oracle ----------------------------------------------------------------------------------------------------


def dense(xs: Sequence[LoRA]) -> list[Array]:
    return [x.scale * x.B.numpy() @ x.A.numpy() for x in xs]


def mean(xs: Sequence[Array], weights: Sequence[float] = WEIGHTS) -> Array:
    return np.sum([w * x for w, x in zip(weights, xs, strict=True)], axis=0)


def span(x: Array, rank: int, side: str) -> Array:
    U, S, Vh = np.linalg.svd(x)
    count = min(rank, int((S > 1e-12 * S[0]).sum())) if S[0] > 0 else 0
    return U[:, :count] if side == "B" else Vh[:count].T


def cosines(P: Array, Q: Array) -> Array:
    return np.linalg.svd(P.T @ Q, compute_uv=False).clip(0, 1)


def angle(P: Array, Q: Array) -> Array:
    """From sines and cosines at once, which is right at both ends."""
    P, Q = (P, Q) if P.shape[1] >= Q.shape[1] else (Q, P)
    sines = np.linalg.svd(Q - P @ (P.T @ Q), compute_uv=False)[::-1]
    return np.arctan2(sines, cosines(P, Q))


def squares(spans: Sequence[Array], other: Sequence[Array]) -> Array:
    return np.array([(cosines(P, Q) ** 2).mean() for P, Q in zip(spans, other, strict=True)])


def average(xs: object) -> float:
    return float(np.mean(xs))  # type: ignore[call-overload]


def oracle(deltas: Sequence[Sequence[Array]], ranks: Sequence[int]) -> Iterator[tuple[str, float]]:
    """Every number of `OF_CLIENTS`, from dense deltas by layer and client."""
    means = [mean(xs) for xs in deltas]
    spectra = [np.linalg.svd(x, compute_uv=False) for x in means]
    shares = [S[S > 1e-13 * S[0]] / S.sum() for S in spectra]
    yield "effective_rank", average([math.exp(-(p * np.log(p)).sum()) for p in shares])
    yield "stable_rank", average([(S**2).sum() / S[0] ** 2 for S in spectra])
    flat = [np.concatenate([xs[k].ravel() for xs in deltas]) for k in range(3)]
    length, total = [np.linalg.norm(x) for x in flat], mean(flat)
    yield "update_norm", mean(length)  # type: ignore[arg-type]
    yield "cancellation_ratio", np.linalg.norm(total) / mean(length)  # type: ignore[arg-type]
    pairs = [(0, 1), (0, 2), (1, 2)]
    yield "client_cosine", average([flat[j] @ flat[k] / length[j] / length[k] for j, k in pairs])
    yield "cosine_with_mean", average([x @ total / n / np.linalg.norm(total) for x, n in zip(flat, length, strict=True)])
    for s in SIDES:
        spans = [[span(x, r, s) for x, r in zip(xs, ranks, strict=True)] for xs in deltas]
        whole = [span(M, max(ranks), s) for M in means]
        between = [squares([Q[j] for j, _ in pairs], [Q[k] for _, k in pairs]) for Q in spans]
        yield f"overlap_{s}_squared", average(between)
        yield f"overlap_{s}_root", average(np.sqrt(between))
        towards = [squares(Q, [M] * 3) for Q, M in zip(spans, whole, strict=True)]
        yield f"overlap_with_mean_{s}_squared", average(towards)
        yield f"overlap_with_mean_{s}_root", average(np.sqrt(towards))
        angles = [[angle(P, M) for P in Q] for Q, M in zip(spans, whole, strict=True)]
        yield f"angle_with_mean_{s}_average", average([np.concatenate(a).mean() for a in angles])
        yield f"angle_with_mean_{s}_largest", max(float(x.max()) for a in angles for x in a)
        yield f"energy_within_mean_{s}", average([energy(x, M, s) for xs, M in zip(deltas, whole, strict=True) for x in xs])


def energy(x: Array, Q: Array, side: str) -> float:
    return float((np.linalg.norm(Q.T @ x if side == "B" else x @ Q) / np.linalg.norm(x)) ** 2)


@pytest.mark.parametrize("ranks", [RANKS, (2, 2, 2)])
def test_numbers_of_deltas_are_their_dense_formulas(ranks: tuple[int, ...]) -> None:
    adapters = crowd(ranks)
    expected = dict(oracle([dense(xs) for xs in by_layer(adapters)], ranks))
    assert expected.keys() == numbers.OF_CLIENTS.keys()
    for name, number in numbers.OF_CLIENTS.items():
        assert number(layers(adapters)) == pytest.approx(expected[name], rel=1e-9), name


@pytest.mark.parametrize("common", [True, False])
@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_numbers_of_increments_are_the_dense_formulas_of_the_differences(common: bool, size: float) -> None:
    """Whether all start from one delta or not, and whether ranks or scales change on the way."""
    starts = [random_adapter(2, seed=9, scale=0.7)] * 3 if common else crowd((2, 1, 2), (0.7, 2.0, 1.0), first=9)
    moved = [tree.map(lambda x: replace(x, B=size * x.B), y) for y in crowd((1, 3, 2), (1.0, 0.5, 1.0))]
    deltas = [
        [a - b for a, b in zip(dense(xs), dense(ys), strict=True)]
        for xs, ys in zip(by_layer(moved), by_layer(starts), strict=True)
    ]
    expected = dict(oracle(deltas, RANKS))
    for name, number in numbers.OF_CLIENTS.items():
        assert number(changes(moved, starts)) == pytest.approx(expected[name], rel=1e-7, abs=1e-9), name


def test_increments_keep_their_digits_when_clients_hardly_move() -> None:
    """A relative move of 1e-9 leaves no digit in a difference of inner products."""
    start = random_adapter(2, seed=5)
    step = 2.0**-30  # the sums below are then exact up to the rounding of the factors themselves
    whole, small = (
        [tree.map(lambda x, d, e=e: replace(x, B=x.B + e * d.B), start, y) for y in crowd((2, 2, 2), (1.0,) * 3)]
        for e in (1.0, step)
    )
    for name in ("update_norm", "cancellation_ratio", "client_cosine", "overlap_B_squared"):
        number = numbers.OF_CLIENTS[name]
        factor = step if name == "update_norm" else 1.0
        assert number(changes(small, [start] * 3)) == pytest.approx(factor * number(changes(whole, [start] * 3)), rel=1e-5), (
            name
        )


def test_aggregation_error_is_its_dense_formula() -> None:
    adapters = crowd((2, 2, 2), (1.0, 0.5, 3.0))
    wrong, right = [], []
    for xs in by_layer(adapters):  # all brought to the first one's scale, by B alone
        B = mean([(x.B * x.scale / xs[0].scale).numpy() for x in xs])
        A = mean([x.A.numpy() for x in xs])
        right.append(mean(dense(xs)).ravel())
        wrong.append(right[-1] - (xs[0].scale * B @ A).ravel())
    expected = np.linalg.norm(np.concatenate(wrong)) / np.linalg.norm(np.concatenate(right))
    assert numbers.aggregation_error(layers(adapters)) == pytest.approx(expected, rel=1e-12)


def test_aggregation_error_keeps_its_digits_when_clients_nearly_agree() -> None:
    """Both factors differ by eps, so the error is of order eps^2, far below what a difference of products could show."""
    first = random_adapter(2, seed=0)
    error = {}
    for eps in (1e-3, 1e-6):
        other = tree.map(lambda x, y, e=eps: LoRA(x.B + e * y.B, x.A + e * y.A), first, random_adapter(2, seed=1))
        error[eps] = numbers.aggregation_error(layers([first, other], [0.5, 0.5]))
    assert error[1e-6] == pytest.approx(1e-6 * error[1e-3], rel=1e-2)
    assert numbers.aggregation_error(layers([first] * 3)) == 0


def test_opposite_equal_and_idle_clients() -> None:
    x = random_adapter(2, seed=0)
    opposite = tree.map(lambda y: replace(y, B=-y.B), x)
    still = tree.map(lambda y: replace(y, B=0 * y.B), x)
    of = numbers.OF_CLIENTS
    assert of["client_cosine"](layers([x, opposite], [0.5, 0.5])) == pytest.approx(-1)
    assert of["cancellation_ratio"](layers([x, opposite], [0.5, 0.5])) == pytest.approx(0, abs=1e-12)
    for name in ("client_cosine", "cosine_with_mean", "overlap_B_root", "overlap_with_mean_A_squared", "energy_within_mean_B"):
        assert of[name](layers([x, still, x])) == pytest.approx(1), name  # who did nothing does not count
    assert of["cancellation_ratio"](layers([x, still, x])) == pytest.approx(1)
    assert of["angle_with_mean_B_largest"](layers([x, still, x])) == pytest.approx(0, abs=1e-9)


def test_orthogonal_clients_of_equal_size() -> None:
    """The limit that tells cancellation from agreement: 1 / sqrt(K)."""
    eye = torch.eye(3, dtype=torch.float64)
    crowd = [cumulative([1 / 3] * 3, [LoRA(eye[:, k : k + 1], eye[k : k + 1]) for k in range(3)])]
    assert numbers.cancellation_ratio(crowd) == pytest.approx(1 / math.sqrt(3))
    assert numbers.cosine_with_mean(crowd) == pytest.approx(1 / math.sqrt(3))
    assert numbers.client_cosine(crowd) == numbers.overlap("B", "root", crowd) == 0


def test_the_two_definitions_of_overlap_differ_by_the_root_of_each_pair() -> None:
    """A plane and a line at 60 degrees to it: cos^2 is 1/4, its root 1/2."""
    plane = torch.eye(4, 2, dtype=torch.float64)
    line = torch.tensor([[0.5], [0.0], [0.75**0.5], [0.0]], dtype=torch.float64)
    pair = [
        cumulative(
            [0.5, 0.5],
            [
                LoRA(plane @ torch.diag(torch.tensor([9.0, 1.0])).double(), torch.eye(2, 3).double()),
                LoRA(line, torch.ones(1, 3).double()),
            ],
        )
    ]
    assert numbers.overlap("B", "squared", pair) == pytest.approx(0.25)
    assert numbers.overlap("B", "root", pair) == pytest.approx(0.5)
    assert numbers.overlap("A", "squared", pair) == pytest.approx(2 / 3)


def test_overlap_with_the_servers_B_is_not_that_with_the_singular_vectors_of_the_mean() -> None:
    """Two orthogonal lines, one carrying twice as much: M leads along it, while the averaged B lies at 45 degrees to both."""
    eye = torch.eye(3, dtype=torch.float64)
    pair = cumulative([0.5, 0.5], [LoRA(eye[:, :1], 2 * eye[:1]), LoRA(eye[:, 1:2], eye[1:2])])
    averaged = [overlaps_with(pair, LoRA((eye[:, :1] + eye[:, 1:2]) / 2, (2 * eye[:1] + eye[1:2]) / 2))]
    assert numbers.overlap_with_mean("B", "root", [pair]) == pytest.approx((1 + 0) / 2)
    assert numbers.overlap_with_server("B", "root", averaged) == pytest.approx(math.sqrt(0.5))
    assert numbers.overlap_with_server("B", "squared", averaged) == pytest.approx(0.5)
    assert numbers.overlap_with_server("A", "squared", averaged) == pytest.approx((0.8 + 0.2) / 2)
    assert numbers.overlap_with_server("A", "root", averaged) == pytest.approx((math.sqrt(0.8) + math.sqrt(0.2)) / 2)
    nothing = [overlaps_with(pair, LoRA(0 * eye[:, :1], eye[:1]))]
    with pytest.raises(diagnostics.Undefined, match="the B that the server sends next is zero"):
        numbers.overlap_with_server("B", "root", nothing)


# --- rounds ------------------------------------------------------------------------------------------------------------


def play(name: str, *, rounds: int = 2, ranks: Sequence[int] = (2, 2, 2), **settings: Any) -> Round:
    return list(federate(get_method(name), toy_federation(ranks, **settings), rounds=rounds, debug=True))[-1]


def undefined(values: Mapping[str, object]) -> set[str]:
    return {n.removesuffix("_reason") for n in values if n.endswith("_reason")}


@pytest.mark.parametrize("name", ["fedavg", "ffa_lora", "flexlora", "flora", "fedex_lora", "zeropad", "hetlora", "rolora"])
def test_a_round_of_every_kind_has_all_numbers(name: str) -> None:
    values = diagnose(play(name))
    assert [n for n in values if not n.endswith("_reason")] == diagnostics.NAMES
    sent = numbers.OF_CLIENTS_AND_SERVER if name == "flora" else {}  # which adds all to the base and sends an empty adapter
    assert undefined(values) == {"higher_rank_energy_ratio", "energy_by_band", *numbers.OF_NODES, *sent}
    assert values["higher_rank_energy_ratio_reason"] == "equal ranks: every client holds all components"
    assert values["cross_term_norm_reason"] == "with a server there is one model"
    found = finite(values)
    assert -1 <= found["client_cosine"] <= 1 <= found["stable_rank"] <= found["effective_rank"] * (1 + 1e-9) <= 5
    assert all(0 <= v <= 1 + 1e-12 for n, v in found.items() if "overlap" in n or "energy" in n or "cancellation" in n)
    assert all(0 <= v <= math.pi / 2 for n, v in found.items() if "angle" in n)
    assert found["bytes_up"] > 0 < found["bytes_down"]


@pytest.mark.parametrize(
    ("name", "ranks"), [("fedavg", (2, 2, 2)), ("flexlora", RANKS), ("fedex_lora", RANKS), ("flora", RANKS)]
)
def test_increments_of_a_round_start_from_what_was_sent(name: str, ranks: tuple[int, ...]) -> None:
    """Against dense deltas: what the upload means less what the client ran at the start, both without the base."""
    done = play(name, ranks=ranks, lora_alpha=4.0)
    moved = []
    for n in done.template.layers:
        rows: list[Array] = []
        for u in done.updates:
            down = done.method.broadcast(done.t, done.before, u.sender)
            start = done.method.deploy(down, {}, template_for(u.sender, done.template))["adapter"]
            rows.append(dense([done.position(u)[0].layers[n]])[0] - dense([start.layers[n]])[0])
        moved.append(rows)
    weights = [u.weight for u in done.updates]
    flat = [np.concatenate([xs[k].ravel() for xs in moved]) for k in range(3)]
    values = finite(diagnose(done))
    assert values["increment_update_norm"] == pytest.approx(mean([np.linalg.norm(x) for x in flat], weights), rel=1e-9)  # type: ignore[list-item]
    spectra = [np.linalg.svd(mean(xs, weights), compute_uv=False) for xs in moved]
    assert values["increment_stable_rank"] == pytest.approx(np.mean([(S**2).sum() / S[0] ** 2 for S in spectra]), rel=1e-9)
    if name != "flora":  # whose clients begin anew
        assert values["increment_update_norm"] != pytest.approx(values["update_norm"], rel=1e-3)


def towards_sent(done: Round, side: str) -> Array:
    """Squared overlaps of the clients' factors with those that the server sends next, by layer and client."""
    down = done.method.broadcast(done.t + 1, done.state, max(done.peers, key=lambda p: p.rank))
    found = []
    for n, new in down["adapter"].layers.items():
        Q = np.linalg.qr(new.B.numpy() if side == "B" else new.A.numpy().T)[0]
        own = [getattr(done.position(u)[0].layers[n], side).numpy() for u in done.updates]
        found.append(squares([np.linalg.qr(x if side == "B" else x.T)[0] for x in own], [Q] * len(own)))
    return np.array(found)


@pytest.mark.parametrize(("name", "ranks"), [("fedavg", (2, 2, 2)), ("subspace_reg", (2, 2, 2)), ("zeropad", RANKS)])
def test_overlaps_with_the_server_are_with_the_factors_that_it_sends_next(name: str, ranks: tuple[int, ...]) -> None:
    done = play(name, ranks=ranks, disagreement=1.0)
    values = finite(diagnose(done))
    for side in SIDES:
        expected = towards_sent(done, side)
        assert values[f"overlap_with_server_{side}_squared"] == pytest.approx(expected.mean(), rel=1e-9)
        assert values[f"overlap_with_server_{side}_root"] == pytest.approx(np.sqrt(expected).mean(), rel=1e-9)


def test_the_two_overlaps_differ_where_factors_are_averaged_and_agree_where_the_mean_is_factorised() -> None:
    fedavg, flexlora = (finite(diagnose(play(n, training=BOLD, disagreement=1.0))) for n in ("fedavg", "flexlora"))
    for form in ("root", "squared"):
        apart = fedavg[f"overlap_with_server_B_{form}"] - fedavg[f"overlap_with_mean_B_{form}"]
        assert apart > 0.01, "FedAvg's two overlaps"
        for side in SIDES:
            pair = (flexlora[f"overlap_with_{other}_{side}_{form}"] for other in ("server", "mean"))
            assert next(pair) == pytest.approx(next(pair), rel=1e-9)


def test_ranks_of_the_mean_and_of_the_servers_delta_are_two_numbers() -> None:
    """The mean of rank-2 deltas has more directions than a server of rank 2 keeps; what FLoRA adds to its base keeps all."""
    cut = finite(diagnose(play("flexlora", training=BOLD, disagreement=1.0)))
    assert cut["server_effective_rank"] <= 2 < cut["effective_rank"]
    assert cut["server_stable_rank"] < cut["stable_rank"]
    whole = finite(diagnose(play("flora", rounds=1, training=BOLD, disagreement=1.0)))
    for name in ("effective_rank", "stable_rank"):
        assert whole[f"server_{name}"] == pytest.approx(whole[name], rel=1e-9)


def test_server_ranks_are_those_of_its_dense_delta() -> None:
    done = play("zeropad", ranks=(2, 4, 3), lora_alpha=8.0)
    spectra = [np.linalg.svd(x, compute_uv=False) for x in dense(list(done.global_model()["adapter"].layers.values()))]
    shares = [S[S > 1e-13 * S[0]] / S.sum() for S in spectra]
    values = finite(diagnose(done))
    assert values["server_effective_rank"] == pytest.approx(
        average([math.exp(-(p * np.log(p)).sum()) for p in shares]), rel=1e-9
    )
    assert values["server_stable_rank"] == pytest.approx(average([(S**2).sum() / S[0] ** 2 for S in spectra]), rel=1e-9)


def test_the_spectrum_is_that_of_the_servers_dense_delta() -> None:
    done = play("flora", ranks=(2, 4, 3), rank_pattern={"output": 3}, lora_alpha=8.0)
    model = done.global_model()
    layers = dense(list(tree.effective(model["adapter"], model.get("base")).layers.values()))
    spectra = [np.linalg.svd(x, compute_uv=False) ** 2 for x in layers]
    longest = max(len(S) for S in spectra)
    mean = np.mean([np.pad(S / S.sum(), (0, longest - len(S))) for S in spectra], axis=0)
    found: Any = diagnose(done)["spectrum"]
    assert found == pytest.approx(mean[: len(found)].tolist(), rel=1e-5, abs=1e-12)
    assert sum(found) == pytest.approx(1.0, rel=1e-5)
    assert sorted(found, reverse=True) == found


def test_a_spectrum_tells_32_components_and_none_that_is_not_there() -> None:
    long, short = torch.linspace(2, 1, 64, dtype=torch.float64), torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)
    assert numbers.spectrum([short]) == pytest.approx([0.9, 0.1])
    assert len(numbers.spectrum([long, short])) == 32
    assert numbers.spectrum([short * 1e-200, torch.zeros(3)]) == pytest.approx([0.9, 0.1])
    with pytest.raises(diagnostics.Undefined, match="the delta is zero"):
        numbers.spectrum([torch.zeros(3)])


def test_the_spectrum_on_a_graph_is_that_of_the_mean_upload() -> None:
    done = mixed(rounds=1)
    found: Any = diagnose(done)["spectrum"]
    stacks = [[u.weight * done.position(u)[0].layers[n].dense() for u in done.updates] for n in done.template.layers]
    spectra = [torch.linalg.svdvals(torch.stack(xs).sum(0).double()).square() for xs in stacks]
    assert found[0] == pytest.approx(average([float(S[0] / S.sum()) for S in spectra]), rel=1e-5)


def test_in_the_first_round_the_increments_are_the_deltas() -> None:
    values = finite(diagnose(play("fedavg", rounds=1)))
    for name in numbers.OF_CLIENTS:
        assert values[f"increment_{name}"] == pytest.approx(values[name], rel=1e-7, abs=1e-7), name


def test_ffa_has_no_aggregation_error_and_one_row_space() -> None:
    """With a common A the mean of factors is exact: the reason for the method."""
    ffa, fedavg = (finite(diagnose(play(n))) for n in ("ffa_lora", "fedavg"))
    assert ffa["aggregation_error"] == 0
    assert fedavg["aggregation_error"] > 1e-6
    assert ffa["overlap_A_squared"] == pytest.approx(1, abs=1e-12)
    assert ffa["angle_with_mean_A_largest"] == pytest.approx(0, abs=1e-9)
    assert ffa["increment_overlap_A_root"] == pytest.approx(1, abs=1e-9)
    assert ffa["overlap_B_squared"] < 0.999


@pytest.mark.parametrize("name", ["flexlora", "zeropad", "flora", "fedex_lora", "ffa_lora"])
def test_energies_are_those_of_the_servers_dense_delta(name: str) -> None:
    """Only the layers of unequal ranks count, and what is in the base counts too."""
    done = play(name, ranks=(2, 4, 3), rank_pattern={"output": 3}, lora_alpha=8.0)
    model = done.global_model()
    S = np.linalg.svd(tree.effective(model["adapter"], model.get("base")).layers["hidden"].dense().numpy())[1]
    share = (S**2) / (S**2).sum()
    values = diagnose(done)
    assert values["higher_rank_energy_ratio"] == pytest.approx(share[2:].sum(), rel=1e-9)
    expected = {"1-2": share[:2].sum(), "3": share[2], "4": share[3], "5-": share[4:].sum()}
    assert values["energy_by_band"] == pytest.approx(expected, rel=1e-9, abs=1e-12)
    table: Any = diagnose(done, per_layer=True)["layers"]
    assert table["higher_rank_energy_ratio"] == [pytest.approx(share[2:].sum(), rel=1e-5), None]
    assert table["higher_rank_energy_ratio_reason"] == [None, "equal ranks: every client holds all components"]


def test_the_table_by_layer_is_that_of_each_layer_alone() -> None:
    done = play("flexlora", ranks=RANKS)
    values = diagnose(done, per_layer=True)
    table: Any = values["layers"]
    assert table["layer"] == list(done.template.layers)
    assert "aggregation_error" not in table  # undefined everywhere
    assert {len(column) for column in table.values()} == {2}
    assert np.mean(table["effective_rank"]) == pytest.approx(values["effective_rank"], rel=1e-5)
    assert max(table["increment_angle_with_mean_B_largest"]) == pytest.approx(
        values["increment_angle_with_mean_B_largest"], rel=1e-5
    )
    assert math.hypot(*table["update_norm"]) <= finite(values)["update_norm"] <= sum(table["update_norm"])
    adapters = [done.position(u)[0] for u in done.updates]
    alone = cumulative([u.weight for u in done.updates], by_layer(adapters)[1])
    assert table["client_cosine"][1] == float(f"{numbers.client_cosine([alone]):.6g}")
    json.dumps(values, allow_nan=False)
    assert "layers" not in diagnose(done)


# --- gossip ------------------------------------------------------------------------------------------------------------


def mixed(name: str = "fedavg", mixing: torch.Tensor | None = None, ranks: Sequence[int] = (2, 2, 2), rounds: int = 2) -> Round:
    W = topology.ring(len(ranks)) if mixing is None else mixing
    return list(gossip(get_method(name), toy_federation(ranks), rounds=rounds, mixing=W, debug=True))[-1]


APART = torch.tensor([[0.75, 0.25, 0.0], [0.25, 0.5, 0.25], [0.0, 0.25, 0.75]], dtype=torch.float64)


def test_consensus_and_cross_terms_of_a_graph_are_their_dense_formulas() -> None:
    done = mixed(mixing=APART)
    models = [done.participant_model(p)["adapter"] for p in done.peers]
    values = finite(diagnose(done))
    for side in SIDES:
        flat = np.stack([np.concatenate([getattr(x, side).numpy().ravel() for x in a.layers.values()]) for a in models])
        apart = np.linalg.norm(flat - flat.mean(0))
        assert values[f"consensus_{side}"] == pytest.approx(apart, rel=1e-9)
        assert values[f"consensus_{side}_relative"] == pytest.approx(apart / np.linalg.norm(flat), rel=1e-9)
    products = np.stack([np.concatenate([d.ravel() for d in dense(list(a.layers.values()))]) for a in models])
    apart = np.linalg.norm(products - products.mean(0))
    assert values["consensus_product"] == pytest.approx(apart, rel=1e-9)
    assert values["consensus_product_relative"] == pytest.approx(apart / np.linalg.norm(products), rel=1e-9)
    cross, bound = 0.0, 0.0
    for xs in by_layer(models):
        B, A = (np.stack([getattr(x, s).numpy() for x in xs]) for s in SIDES)
        cross += np.linalg.norm(np.mean(dense(xs), axis=0) - B.mean(0) @ A.mean(0)) ** 2
        bound += (np.linalg.norm(B - B.mean(0)) * np.linalg.norm(A - A.mean(0)) / 3) ** 2
    assert values["cross_term_norm"] == pytest.approx(math.sqrt(cross), rel=1e-9)
    assert 0 < values["cross_term_norm"] <= math.sqrt(bound)


def test_a_complete_graph_is_in_consensus() -> None:
    values = finite(diagnose(mixed(mixing=topology.complete(3))))
    assert {values[n] for n in numbers.OF_NODES} == {0.0}


def test_no_cross_terms_while_one_factor_is_common() -> None:
    values = finite(diagnose(mixed("ffa_lora", mixing=APART)))
    assert values["cross_term_norm"] == values["consensus_A"] == 0
    assert values["consensus_B"] > 0


def test_unequal_nodes_have_a_distance_of_products_alone() -> None:
    values = diagnose(mixed("flexlora", mixing=APART, ranks=(1, 2, 3)))
    assert isinstance(values["consensus_product"], float)
    assert values["consensus_A_reason"] == values["cross_term_norm_reason"] == "unequal ranks: factors cannot be averaged"
    common = {str(values[f"{n}_reason"]) for n in ("higher_rank_energy_ratio", "energy_by_band", "server_stable_rank")}
    assert common == {str(values["overlap_with_server_B_root_reason"])} == {"no model is common to all"}


def test_increments_in_gossip_start_from_each_nodes_own_state() -> None:
    done = mixed(mixing=APART)
    starts = [done.before[str(p.id)]["adapter"] for p in done.peers]
    moved = [done.position(u)[0] for u in done.updates]
    expected = [increments([1 / 3] * 3, xs, ys) for xs, ys in zip(by_layer(moved), by_layer(starts), strict=True)]
    assert finite(diagnose(done))["increment_client_cosine"] == pytest.approx(numbers.client_cosine(expected), rel=1e-12)


# --- what is undefined -------------------------------------------------------------------------------------------------


def test_what_is_undefined_is_none_with_a_reason() -> None:
    unequal = diagnose(play("flexlora", ranks=(1, 2)))
    assert unequal["aggregation_error"] is None
    assert unequal["aggregation_error_reason"] == "unequal ranks: factors cannot be averaged"
    alone = diagnose(next(iter(federate(get_method("fedavg"), toy_federation(), rounds=1, cohort=sampling.uniform(1)))))
    assert (alone["client_cosine"], alone["client_cosine_reason"]) == (None, "fewer than two clients have a delta")
    assert (
        alone["overlap_B_root_reason"] == alone["increment_overlap_A_squared_reason"] == "fewer than two clients have a delta"
    )
    assert alone["aggregation_error"] == 0
    for name in ("cosine_with_mean", "cancellation_ratio", "overlap_with_mean_B_squared"):
        assert alone[name] == pytest.approx(1), name
    silent = diagnose(play("local_only", rounds=1), per_layer=True)
    assert undefined(silent) == {n for n in diagnostics.NAMES if "bytes" not in n}
    assert silent["stable_rank_reason"] == silent["increment_client_cosine_reason"] == "nothing travels"
    assert silent["layers"] == {"layer": ["hidden", "output"]}
    for values in (unequal, alone, silent):
        json.dumps(values, allow_nan=False)


def test_a_reason_is_given_once_until_it_changes() -> None:
    first = diagnose(play("flexlora", ranks=(1, 2), rank_pattern={"output": 1}), per_layer=True)
    assert first["layers"]["higher_rank_energy_ratio_reason"][0] is None  # type: ignore[index]
    shown, said = diagnostics.new_reasons(first, {})
    assert shown == first
    said = json.loads(json.dumps(said))
    shown, again = diagnostics.new_reasons(first, said)
    assert again == said
    assert "aggregation_error" in undefined(first)
    assert undefined(shown) == undefined(shown["layers"]) == set()
    assert shown["aggregation_error"] is None
    shown, said = diagnostics.new_reasons({"aggregation_error": None, "aggregation_error_reason": "another"}, said)
    assert shown["aggregation_error_reason"] == said["aggregation_error_reason"] == "another"
    assert said["layers"], "a round without a table forgets nothing"


def test_a_personal_method_does_not_say_where_its_clients_started() -> None:
    values = diagnose(play("fedsa_lora"))
    assert values["increment_update_norm_reason"] == "clients start from what they keep to themselves"
    assert 0 < finite(values)["overlap_A_root"] < 1  # A travels
    assert values["overlap_B_root_reason"] == "fewer than two clients have a delta"


def test_a_round_in_which_nothing_was_learned() -> None:
    clients = toy_federation()
    for client in clients:
        client.training = replace(client.training, learning_rate=1e-300)
    json.dumps(diagnose(next(iter(federate(get_method("ffa_lora"), clients, rounds=1)))), allow_nan=False)
    still = layers([tree.map(lambda x: replace(x, B=torch.zeros_like(x.B)), random_adapter(2, seed=k)) for k in range(3)])
    for name, number in numbers.OF_CLIENTS.items():
        if name in ("effective_rank", "stable_rank", "update_norm"):
            assert number(still) == 0
        elif "overlap_A" not in name or "with_mean" in name:
            with pytest.raises(diagnostics.Undefined, match="delta"):
                number(still)
    with pytest.raises(diagnostics.Undefined, match="mean delta is zero"):
        numbers.aggregation_error(still)
