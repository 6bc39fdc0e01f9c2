"""FedGaLore: LoRA with a frozen orthonormal factor is GaLore; bases, moments and bytes over rounds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedelta import lowrank, tree
from fedelta.client import Training
from fedelta.engines import checkpoint
from fedelta.engines.rounds import Round
from fedelta.engines.server import federate
from fedelta.exchange import wire
from fedelta.lowrank import LoRA
from fedelta.method import Method
from fedelta.methods import get_method
from fedelta.methods._fedgalore import moments as _moments
from fedelta.methods._fedgalore.galore import seeded_basis, transport
from fedelta.methods._fedgalore.moments import Synchroniser, mean_moments, shared_moments
from fedelta.methods._fedgalore.projection import Projection, sketch
from fedelta.models.toy import SIZES, toy_federation, toy_template
from fedelta.numerics.ajive import Ajive, decompose
from fedelta.optim import SGD, AdamW, Optimizer, WarmAdam
from fedelta.peers import Peer
from fedelta.tree import Adapter, BaseDelta

TRAINING = Training(local_steps=4, batch_size=8, learning_rate=0.02)
PROJECTION = Projection("galore", 1.0)
NOTHING = BaseDelta(0, {})


def play(rounds: int = 2, ranks: tuple[int, ...] = (3, 3, 3), *, training: Training = TRAINING, **hyper: Any) -> list[Round]:
    clients = toy_federation(ranks, training=training, lora_alpha=8.0)
    return list(federate(get_method("fedgalore", **hyper), clients, rounds=rounds, seed=0, debug=True))


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(adapter: Adapter, base: BaseDelta | None = None) -> dict[str, Tensor]:
    return {n: x.dense() for n, x in tree.effective(adapter, base).layers.items()}


# --- one client ------------------------------------------------------------------------------------------------------


def full_rank(bases: Mapping[str, Tensor], optimizer: Optimizer) -> dict[str, Tensor]:
    """dW of every layer after local training on square bases, which leave nothing out."""
    client = toy_federation((4,), training=TRAINING)[0]
    start = PROJECTION.zero_coordinates(toy_template(9), bases)
    trained = PROJECTION.factors(start)
    return dense(client.train(0, start, trainable=trained, optimizer=optimizer, num_steps=6).adapter)


LENGTHS = {n: min(shape) for n, shape in SIZES.items()}
EYES = {n: torch.eye(k, dtype=torch.float64) for n, k in LENGTHS.items()}
TURNED = {n: seeded_basis(0, 0, n, k, k) for n, k in LENGTHS.items()}
PERMUTED = {n: torch.eye(k, dtype=torch.float64).flip(0) * torch.tensor([1.0, -1.0] * k)[:k] for n, k in LENGTHS.items()}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_at_full_rank_sgd_does_not_see_the_basis_galore_G2(momentum: float) -> None:
    plain, turned = (full_rank(b, SGD(momentum=momentum)) for b in (EYES, TURNED))
    for n, W in plain.items():
        assert float(W.abs().max()) > 1e-3
        torch.testing.assert_close(turned[n], W, rtol=1e-10, atol=1e-12)


def test_at_full_rank_adam_sees_all_but_signed_permutations_galore_G2() -> None:
    plain, permuted, turned = (full_rank(b, WarmAdam()) for b in (EYES, PERMUTED, TURNED))
    for n, W in plain.items():
        torch.testing.assert_close(permuted[n], W, rtol=1e-10, atol=1e-12)
        assert float((turned[n] - W).norm() / W.norm()) > 0.1


def galore_by_hand(X: Tensor, Y: Tensor, Q: Tensor, alpha: float, eps: float, steps: int = 20) -> tuple[Tensor, Tensor]:
    """GaLore on W (o, i) of  mean (X W^T - Y)^2  with a fixed right basis: W, and the projected gradient's second moment."""
    W = torch.zeros(Y.shape[1], X.shape[1], dtype=X.dtype)
    mu = nu = torch.zeros(len(W), Q.shape[1], dtype=X.dtype)
    for k in range(1, steps + 1):
        G = 2 * (X @ W.mT - Y).mT @ X / Y.numel()
        R = G @ Q
        mu, nu = 0.9 * mu + 0.1 * R, 0.999 * nu + 0.001 * R.square()
        W = W - 0.05 * alpha * (mu / (1 - 0.9**k)) / ((nu / (1 - 0.999**k)).sqrt() + eps) @ Q.mT
    return W, nu / (1 - 0.999**steps)


@pytest.mark.parametrize("scaled", [True, False], ids=["eps times alpha", "plain eps"])
def test_a_frozen_orthonormal_factor_is_galore_galore_G3(scaled: bool) -> None:
    X, Y, Q = normal(0, 30, 6), 0.01 * normal(1, 30, 5), seeded_basis(0, 0, "w", 6, 3)
    alpha, eps = 0.25, 1e-4
    W, nu = galore_by_hand(X, Y, Q, alpha, eps)
    params = {"C": torch.zeros(5, 3, dtype=torch.float64, requires_grad=True)}
    adam = WarmAdam(eps=eps, eps_of={"C": eps * alpha} if scaled else {})
    state = adam.init(params)
    for _ in range(20):
        loss = (X @ (alpha * params["C"] @ Q.mT).mT - Y).square().mean()
        grads = dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))
        with torch.no_grad():
            adam.update(params, grads, state, 0.05)
    found = alpha * params["C"].detach() @ Q.mT
    if scaled:
        torch.testing.assert_close(found, W, rtol=0, atol=1e-13)
        torch.testing.assert_close(adam.estimates(state)["C"] / alpha**2, nu, rtol=1e-8, atol=0)
    else:
        assert float((found - W).abs().max()) > 1e-4


def test_the_sketch_is_the_gradient_where_that_has_low_rank() -> None:
    client = toy_federation((4,), num_examples=[2], training=TRAINING)[0]  # two examples: gradients of rank two
    like = client.template
    eye = tree.map(lambda x: LoRA(x.B.new_zeros(x.shape[0], x.shape[1]), torch.eye(x.shape[1]).double()), like)
    exact = client.gradient(eye, 1)
    for n, x in sketch(client, 0, like, NOTHING, 0, 0).items():
        G = exact.layers[n].B
        torch.testing.assert_close(x.dense(), G, rtol=0, atol=1e-12 * float(G.norm()))
        torch.testing.assert_close(x.B.mT @ x.B, torch.eye(x.rank).double(), rtol=0, atol=1e-12)


def test_power_iterations_bring_the_sketch_to_the_best_approximation() -> None:
    client = toy_federation((2,), training=TRAINING)[0]
    eye = tree.map(lambda x: LoRA(x.B.new_zeros(x.shape[0], x.shape[1]), torch.eye(x.shape[1]).double()), client.template)
    G = {n: x.B for n, x in client.gradient(eye, 1).layers.items()}
    best = {n: float(torch.linalg.svdvals(g)[2:].norm()) for n, g in G.items()}

    def error(power_iterations: int) -> float:
        found = sketch(client, 0, client.template, NOTHING, 0, power_iterations)
        return sum(float((x.dense() - G[n]).norm()) for n, x in found.items()) / sum(best.values())

    assert error(0) > error(1) > error(12)
    assert error(12) == pytest.approx(1, abs=1e-3)


# --- rounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hyper", [{}, {"side": "small_state", "scale": 0.5}], ids=str)
def test_deltas_stay_in_the_common_subspace_and_their_mean_is_exact_galore_G4_G6(hyper: dict[str, Any]) -> None:
    for done in play(ranks=(2, 3, 1), **hyper):
        bases = get_method("fedgalore", **hyper).projection.bases(done.before["adapter"])  # pyright: ignore[reportAttributeAccessIssue]
        mean = {n: torch.zeros(shape, dtype=torch.float64) for n, shape in SIZES.items()}
        for update in done.updates:
            for n, x in done.position(update)[0].layers.items():
                W, Q = x.dense(), bases[n][:, : update.sender.rank]
                mean[n] += update.weight * W
                assert float(W.norm()) > 1e-3
                inside = W @ Q @ Q.mT if len(Q) == W.shape[1] else Q @ Q.mT @ W
                torch.testing.assert_close(inside, W, rtol=0, atol=1e-14)
                assert x.scale == hyper.get("scale", 1.0)
        before, after = (dict(tree.total(s["base"])) for s in (done.before, done.state))
        for n, W in mean.items():
            step = tree.dense(after[n]) - (tree.dense(before[n]) if n in before else 0)
            torch.testing.assert_close(step, W, rtol=0, atol=1e-14)


def test_everyone_draws_the_bits_of_the_server_galore_G5() -> None:
    for rank in (1, 2, 3):
        full = PROJECTION.zero_coordinates(toy_template(3), PROJECTION.draw_bases(toy_template(3), 0, 4, 3))
        own = PROJECTION.zero_coordinates(toy_template(rank), PROJECTION.draw_bases(toy_template(rank), 0, 4, 3))
        for n, Q in PROJECTION.bases(own).items():
            assert torch.equal(Q, PROJECTION.bases(full)[n][:, :rank])


def test_the_basis_lasts_for_200_local_steps_and_then_moves_with_the_moments() -> None:
    done = play(rounds=5, training=replace(TRAINING, local_steps=50))
    assert [d.state["refresh_rounds"] for d in done] == [4] * 5
    assert [d.state["epoch"] for d in done] == [0, 0, 0, 1, 1]
    old, new = (PROJECTION.bases(d.state["adapter"]) for d in (done[2], done[3]))
    assert all(torch.equal(Q, old[n]) for n, Q in PROJECTION.bases(done[0].state["adapter"]).items())
    assert not any(torch.allclose(Q, old[n]) for n, Q in new.items())
    unmoved = play(rounds=4, training=replace(TRAINING, local_steps=50), refresh_rounds=9)[-1].state
    for n, Q in old.items():
        expected = transport(unmoved["second_moment"][n], Q, new[n])
        torch.testing.assert_close(done[3].state["second_moment"][n], expected, rtol=1e-10, atol=0)


def test_moments_go_up_in_units_of_the_gradient_and_start_the_next_round() -> None:
    """One client, whose moments nobody mixes: they equal those of one Adam that runs on, but for its first moment."""
    done = play(ranks=(3,), scale=0.25, eps=1e-3)
    sent, state = done[0].updates[0].content["second_moment"], done[0].state["second_moment"]
    assert sent.keys() == state.keys() == {"hidden", "output", "bias"}
    assert all(torch.equal(v, state[n]) for n, v in sent.items())
    client = toy_federation((3,), training=TRAINING)[0]
    start = replace(done[0].before["adapter"], dense=client.template.dense)
    adam = WarmAdam(eps=1e-3, eps_of={f"{n}.lora_{w}": 0.25e-3 for n, w in PROJECTION.factors(start).items()})
    seen = client.train(0, start, trainable=PROJECTION.factors(start), optimizer=adam)
    nu = adam.estimates(seen.optimizer_state)["hidden.lora_B"] / 0.25**2
    torch.testing.assert_close(sent["hidden"], nu, rtol=1e-12, atol=0)
    assert float(done[1].updates[0].content["second_moment"]["hidden"].sum()) == pytest.approx(float(nu.sum()), rel=0.05)


def test_states_and_messages_survive_a_checkpoint_galore_G9(tmp_path: Any) -> None:
    method, clients = get_method("fedgalore"), toy_federation((2, 3, 3), training=TRAINING)
    whole = list(federate(method, clients, rounds=4, seed=0))[-1]
    half = list(federate(method, clients, rounds=2, seed=0))[-1]
    checkpoint.save(tmp_path, half.snapshot)
    again = list(federate(method, clients, rounds=4, seed=0, start=checkpoint.load(tmp_path)))[-1]
    assert wire.encode(again.state) == wire.encode(whole.state)


@pytest.mark.parametrize("sync", ["ajive", "mean", "block_mean", "none"])
@pytest.mark.parametrize(("side", "long"), [("galore", True), ("small_state", False)])
def test_what_goes_up_has_the_size_of_the_table_galore_G10(side: str, long: bool, sync: str) -> None:
    """r M, or r u, numbers for coordinates, as many for moments; the basis costs nothing."""
    size = {n: max(s) if long else min(s) for n, s in SIZES.items()}
    moments = {"ajive": 3, "mean": 3, "block_mean": 1, "none": 0}[sync]
    for done in play(side=side, state_sync=sync):
        for update in done.updates:
            heads = 4 * (1 if sync == "none" else 2)
            assert tree.count(update.content) == (3 + moments) * sum(size.values()) + heads
            down = done.method.broadcast(done.t, done.before, replace(update.sender, base_version=done.t))
            assert tree.count(down) == 4 + (moments * sum(size.values()) + heads - 4 if done.t else 0)


# --- other bases -----------------------------------------------------------------------------------------------------


def test_the_server_takes_its_basis_from_the_mean_gradient() -> None:
    done = play(rounds=3, basis="server_basis", refresh_rounds=2, power_iterations=12)
    assert [d.state["epoch"] for d in done] == [1, 1, 2]
    assert [["sketch" in u.content for u in d.updates] for d in done] == [[True] * 3, [False] * 3, [True] * 3]
    for n, Q in PROJECTION.bases(done[0].state["adapter"]).items():
        mean = lowrank.stack([u.weight for u in done[0].updates], [u.content["sketch"][n] for u in done[0].updates]).dense()
        U, _, Vh = torch.linalg.svd(mean)
        leading = Vh[:3].mT if len(Q) == mean.shape[1] else U[:, :3]
        torch.testing.assert_close(Q @ Q.mT, leading @ leading.mT, rtol=0, atol=1e-10)
    sent = done[1].method.broadcast(1, done[1].before, done[1].peers[0])["basis"]
    assert all(torch.equal(Q, PROJECTION.bases(done[1].before["adapter"])[n]) for n, Q in sent.items())


# --- second moments --------------------------------------------------------------------------------------------------


def profile(seed: int, count: int = 6) -> tuple[Tensor, list[Tensor]]:
    """A log-normal profile (200, 8), and clients that each see it through noise and with a few spikes of their own."""
    true = (2 * normal(seed, 200, 1)).exp() * (0.5 * normal(seed + 1, 1, 8)).exp()
    clients = []
    for k in range(count):
        v = true * (0.2 * normal(seed + 10 + k, 200, 8)).exp()
        v[20 * k : 20 * k + 3, k % 8] *= 100
        clients.append(v)
    return true, clients


def test_spikes_of_one_client_are_kept_out_galore_A4() -> None:
    true, clients = profile(0)
    weights = [1 / 6] * 6
    mean = mean_moments(weights, clients, 8, None)
    found, joint_rank = shared_moments(weights, clients, 8, None, settings=Ajive(), seed=0)
    assert joint_rank >= 1
    assert bool((found >= 0).all())
    spiked = [(row, k % 8) for k in range(6) for row in range(20 * k, 20 * k + 3)]
    worst, worst_mean = (max(float(v[at] / true[at]) for at in spiked) for v in (found, mean))
    assert worst < 0.5 * worst_mean


def test_draws_of_a_layer_do_not_depend_on_the_layers_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = [{n: profile(k)[1][0] for n in ("early", "late")} for k in range(3)]

    def draws(layers: Sequence[str], seed: int = 0, t: int = 0) -> list[int]:
        seen: list[int] = []
        monkeypatch.setattr(_moments, "decompose", lambda xs, settings, *, seed: seen.append(seed))
        server = Adapter({n: LoRA(torch.zeros(200, 8), torch.zeros(8, 8)) for n in layers})
        Synchroniser("ajive", Ajive()).synchronise([1 / 3] * 3, sent, {}, server, seed=seed, t=t)
        return seen

    early, late = draws(["early", "late"])
    assert draws(["late"]) == [late]
    assert len({early, late, *draws(["late"], seed=1), *draws(["late"], t=1)}) == 4


def test_a_joint_part_below_zero_counts_as_zero_galore_A4() -> None:
    blocks = [normal(k, 30, 5).clamp(min=0).square() + 1e-3 for k in range(2)]
    settings = Ajive(joint_rank=2)
    joint = [decompose([x.sqrt() for x in blocks], settings).joint(x.sqrt()) for x in blocks]
    assert bool((joint[0] < -0.01).any())
    mean = 0.5 * (joint[0].clamp(min=0) + joint[1].clamp(min=0))
    found, _ = shared_moments([0.5, 0.5], blocks, 5, None, settings=settings, seed=0)
    torch.testing.assert_close(found, mean.square(), rtol=1e-10, atol=0)


def test_without_a_joint_part_the_mean_is_taken_galore_A2() -> None:
    blocks = [normal(k, 50, 6).square() for k in range(3)]
    weights = [0.5, 0.3, 0.2]
    settings = Ajive(joint_rank=0)
    for given in (blocks, [*blocks[:2], torch.zeros(50, 6).double()]):
        rule = settings if given is blocks else Ajive()
        found, joint_rank = shared_moments(weights, given, 6, None, settings=rule, seed=0)
        assert joint_rank == 0
        assert torch.equal(found, mean_moments(weights, given, 6, None))
    alone, joint_rank = shared_moments([1.0], blocks[:1], 6, None, settings=Ajive(), seed=0)
    assert joint_rank == 0
    assert torch.equal(alone, blocks[0])


def test_a_column_is_the_mean_over_those_who_have_it() -> None:
    wide, narrow = normal(0, 5, 3).square(), normal(1, 5, 2).square()
    found = mean_moments([0.75, 0.25], [wide, narrow], 4, None)
    torch.testing.assert_close(found[:, :2], 0.75 * wide[:, :2] + 0.25 * narrow)
    torch.testing.assert_close(found[:, 2], wide[:, 2])
    torch.testing.assert_close(found[:, 3], wide.mean(1))
    assert torch.equal(mean_moments([0.75, 0.25], [wide, narrow], 4, torch.ones(5, 4).double())[:, 3], torch.ones(5).double())


def test_the_ablations_differ_in_their_moments_alone() -> None:
    settings = Ajive(joint_rank=1)  # in six rows nothing is significant
    runs = {sync: play(state_sync=sync, ajive=settings) for sync in ("ajive", "mean", "block_mean", "none")}
    first = [wire.encode(dict(r[0].state["base"].terms)) for r in runs.values()]
    assert len(set(first)) == 1, "no moments have arrived in the first round"
    second = [wire.encode(dict(r[1].state["base"].terms)) for r in runs.values()]
    assert len(set(second)) == 4
    assert runs["none"][1].state["second_moment"] == {}
    assert runs["ajive"][1].state["joint_ranks"] == dict.fromkeys(SIZES, 1)
    assert runs["mean"][1].state["joint_ranks"] == {}


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"refresh_rounds": 0}, "refresh_rounds must be 'auto' or at least 1, got 0: within a round the basis stays"),
        ({"refresh_rounds": "never"}, "refresh_rounds must be 'auto' or at least 1, got 'never'"),
        ({"betas": [0.9]}, r"betas must be 2 values, got \[0.9\]"),
        ({"betas": [0.9, 1.0]}, r"needs betas in \[0, 1\)"),
        ({"scale": 0.0}, "scale > 0 and eps > 0, got 0.0"),
        ({"eps": 0.0}, "scale > 0 and eps > 0"),
        ({"power_iterations": -1}, "power_iterations >= 0"),
        ({"basis": "seed"}, "basis must be 'shared_seed' or 'server_basis'"),
        ({"state_sync": "median"}, "state_sync must be 'ajive'"),
        ({"ajive": {"enrgy": 0.9}}, "no setting 'enrgy'; did you mean 'energy'"),
        ({"ajive": {"energy": 2}}, "0 < energy <= 1"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(hyper: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_method("fedgalore", **hyper)


def test_settings_from_a_config_file() -> None:
    method = get_method("fedgalore", betas=[0.8, 0.9], ajive={"energy": 0.9, "percentile": [1, 99]})
    assert method == get_method("fedgalore", betas=(0.8, 0.9), ajive=Ajive(energy=0.9, percentile=(1.0, 99.0)))
    assert isinstance(hash(method), int)


def spoiled(**moments: Tensor) -> tuple[Method, Mapping[str, Any], list[Any]]:
    done = play()[-1]
    content = done.updates[0].content
    bad = {**content["second_moment"], **moments}
    return done.method, done.before, [replace(done.updates[0], content={**content, "second_moment": bad}), *done.updates[1:]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(6, 2).double(), r"'hidden': client 0 sent shape \(6, 2\), where its update has \(6, 3\)"),
        (-torch.ones(6, 3).double(), "'hidden': client 0 sent values below 0"),
        (torch.full((6, 3), float("nan")).double(), "client 0: hidden holds 18 NaN or Inf"),
    ],
    ids=["shape", "sign", "NaN"],
)
def test_moments_that_cannot_be_are_refused_by_client(value: Tensor, message: str) -> None:
    method, before, updates = spoiled(hidden=value)
    with pytest.raises(ValueError, match=message):
        method.aggregate(1, before, updates)


def test_moments_of_other_tensors_are_refused() -> None:
    method, before, updates = spoiled(other=torch.ones(3))
    with pytest.raises(ValueError, match=r"client 0 .* second moments.*'other'"):
        method.aggregate(1, before, updates)


def test_a_rank_above_a_side_of_the_weight_is_cut() -> None:
    start = get_method("fedgalore").init(toy_template(9), [Peer(0, 9)])["adapter"]
    assert {n: x.rank for n, x in start.layers.items()} == {"hidden": 5, "output": 4}


def test_it_trains_with_its_own_adam_whatever_the_config_says() -> None:
    runs = [play(training=replace(TRAINING, optimizer=o))[-1].state for o in (SGD(), AdamW(weight_decay=0.5))]
    assert wire.encode(runs[0]) == wire.encode(runs[1])
