"""An update that is far larger than the others is left out before it is aggregated, and a state is finite or not at all."""

import logging
import math
import statistics
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedelta import lowrank as lr
from fedelta import topology, tree
from fedelta.client import LocalClient
from fedelta.engines import checkpoint, guards
from fedelta.engines.gossip import gossip
from fedelta.engines.guards import Size, medians_of_others, oversized, size_of
from fedelta.engines.rounds import QuorumError, Round
from fedelta.engines.server import federate
from fedelta.exchange import wire
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate
from fedelta.method import State, TrainResult
from fedelta.methods import get_method, list_methods
from fedelta.methods.fedavg import FedAvg
from fedelta.models.toy import random_adapter, toy_federation
from fedelta.seeding import SERVER
from fedelta.testing.scene import score
from fedelta.topology.links import hear
from fedelta.tree import Adapter

SENDING = [name for name in list_methods() if name not in ("local_only", "centralised")]

WHEN = 2
"""The round in which a client goes far."""


class Far:
    """A client whose training goes `factor` times as far in some rounds as it would."""

    def __init__(self, client: LocalClient, factor: float, rounds: Sequence[int] = (WHEN,)) -> None:
        self._client, self._factor, self._rounds = client, factor, rounds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def train(self, t: int, start: Adapter, **request: Any) -> TrainResult:
        result = self._client.train(t, start, **request)
        if t not in self._rounds:
            return result
        old, new = tree.parameters(start), tree.parameters(result.adapter)
        far = {n: old[n] + self._factor * (x - old[n]) for n, x in new.items()}
        return replace(result, adapter=tree.with_parameters(result.adapter, far))


def federation(name: str, factor: float, liars: Sequence[int] = (1,), rounds: Sequence[int] = (WHEN,)) -> list[Any]:
    clients: list[Any] = toy_federation((1, 2, 3, 2) if get_method(name).hetero_rank else (2,) * 4)
    for k in liars:
        clients[k] = Far(clients[k], factor, rounds)
    return clients


def only(*ids: int) -> Any:
    """A cohort of these in round `WHEN`, else of all."""
    return lambda t, peers, seed: list(ids) if t == WHEN else [p.id for p in peers]


# --- with a server ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1e4, 1e30])
@pytest.mark.parametrize("name", SENDING)
def test_one_huge_update_is_as_if_it_had_not_been_asked_for(name: str, factor: float) -> None:
    options: dict[str, Any] = {"rounds": WHEN + 2, "score": score, "engine": "sequential"}
    run = list(federate(get_method(name), federation(name, factor), **options))
    without = list(federate(get_method(name), federation(name, 1.0), cohort=only(0, 2, 3), **options))
    assert [list(r.dropped) for r in run] == [[], [], [1], []]
    assert "above 1000 times" in run[WHEN].dropped[1]
    assert wire.encode(run[WHEN].state) == wire.encode(without[WHEN].state)


@pytest.mark.parametrize("name", ["fedavg", "flexlora"])
def test_at_nine_hundred_times_an_update_is_taken(name: str) -> None:
    sizes = {k: Size(1.0, 1.0) for k in range(3)} | {3: Size(900.0, 900.0)}
    assert not oversized(sizes, [])
    run = list(federate(get_method(name), federation(name, 50.0), rounds=WHEN + 1))
    assert not run[-1].dropped


def test_the_others_set_the_measure_and_not_who_is_measured() -> None:
    """With two clients a median of both would let each through."""
    clients: list[Any] = toy_federation((2, 2))
    clients[1] = Far(clients[1], 1e6, [0])
    assert list(next(iter(federate(FedAvg(), clients, rounds=1, quorum=1))).dropped) == [1]


def test_zeros_are_no_measure() -> None:
    sizes = {0: Size(), 1: Size(), 2: Size(), 3: Size(2.0, 3.0)}
    assert not oversized(sizes, [])
    assert not oversized(sizes, [Size()])
    assert not oversized({0: Size(5.0, 5.0)}, [])
    assert list(oversized(sizes, [Size(1e-4, 3.0)])) == [3]


def test_a_size_that_overflows_is_refused_and_measures_nobody() -> None:
    sizes = {0: Size(math.inf, math.inf), 1: Size(1.0, 1.0), 2: Size(math.inf, 1.0), 3: Size(1e4, 1.0)}
    found = oversized(sizes, [])
    assert sorted(found) == [0, 2, 3]
    assert "overflows" in found[0]


def test_large_factors_are_seen_where_the_delta_is_small() -> None:
    """B times 1e-8 and A times 1e8 is the same delta, and would make the mean of A as large."""
    clients: list[Any] = toy_federation((2, 2, 2))

    class Skewed(Far):
        def train(self, t: int, start: Adapter, **request: Any) -> TrainResult:
            result = self._client.train(t, start, **request)
            skewed = tree.map(lambda x: LoRA(x.B * 1e-8, x.A * 1e8, x.scale), result.adapter)
            return replace(result, adapter=skewed)

    clients[1] = Skewed(clients[1], 1.0)
    done = next(iter(federate(FedAvg(), clients, rounds=1)))
    assert "its factors moved by" in done.dropped[1]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8])
def test_medians_of_others(count: int) -> None:
    draw = torch.Generator().manual_seed(count)
    values = {k: float(x) for k, x in enumerate(torch.randint(0, 4, (count,), generator=draw))}
    for k, found in medians_of_others(values).items():
        others = [x for j, x in values.items() if j != k and x > 0]
        assert found == (statistics.median(others) if others else 0.0)


def test_a_size_is_the_distance_from_what_was_sent() -> None:
    start = random_adapter(2, seed=0, dtype=torch.float32)
    near = tree.map(lambda x: LoRA(x.B * (1 + 1e-5), x.A, x.scale), start)
    dense = [(near.layers[n].to(torch.float64).dense() - x.to(torch.float64).dense()).norm() for n, x in start.layers.items()]
    assert size_of(near, start).delta == pytest.approx(float(torch.stack(dense).norm()), rel=1e-9, abs=0.0)
    head = replace(start, dense={"bias": start.dense["bias"] + 3.0})
    assert size_of(head, start) == pytest.approx((6.0, 6.0))


def test_a_size_is_measured_one_layer_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[LoRA]] = []
    most: list[int] = []
    wide = guards._wide

    def watched(x: LoRA) -> LoRA:
        found = wide(x)
        made.append(weakref.ref(found))
        most.append(sum(other() is not None for other in made))
        return found

    monkeypatch.setattr(guards, "_wide", watched)
    layers = {f"{n}": LoRA(torch.ones(3, 1), torch.ones(1, 2)) for n in range(8)}
    size_of(Adapter(layers), Adapter(layers))
    assert len(most) == 16
    assert max(most) == 2


def test_a_size_is_the_same_in_parts_and_leaves_what_it_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(50, 7, generator=draw, dtype=torch.float64) for _ in range(2))
    kept = x.clone()
    whole = guards._length(x, y)
    assert whole == float((x - y).norm())
    monkeypatch.setattr(guards, "IN_HAND", 30)
    assert guards._length(x, y) == whole
    assert guards._length(x[0, 0], y[0, 0]) == float((x - y)[0, 0].abs())
    assert torch.equal(x, kept)


def test_a_size_is_a_number_where_float32_overflows() -> None:
    start = random_adapter(2, seed=0, dtype=torch.float32)
    far = tree.map(lambda x: LoRA(x.B * 1e25, x.A * 1e25, x.scale), start)
    assert 1e49 < size_of(far, start).delta < 1e53


def test_dropped_components_are_no_displacement_of_factors_and_added_ones_are() -> None:
    whole = random_adapter(3, seed=0)
    fewer = tree.map(lambda x: lr.components(x, 0, 1), whole)
    rest = tree.map(lambda x: lr.components(x, 1, 3), whole)
    added = math.hypot(*(float(f.norm()) for which in ("A", "B") for f in tree.factors(rest, which).values()))
    assert size_of(fewer, whole).factors == 0
    assert size_of(whole, fewer).factors == pytest.approx(added)
    assert size_of(whole, fewer).delta == pytest.approx(size_of(fewer, whole).delta)


def test_a_left_out_update_does_not_count_for_the_quorum() -> None:
    with pytest.raises(
        QuorumError, match=r"(?s)round 2: 3 of 4 updates can be used, the quorum is 4\n  client 1: upload: .*1000"
    ):
        list(federate(FedAvg(), federation("fedavg", 1e9), rounds=WHEN + 1, quorum=4))


def test_debug_raises_for_a_huge_update() -> None:
    with pytest.raises(ValueError, match="client 1: its") as raised:
        list(federate(FedAvg(), federation("fedavg", 1e9), rounds=WHEN + 1, debug=True))
    assert raised.value.__notes__ == ["client 1, round 2, stage: upload"]


def test_a_resumed_run_decides_alike(tmp_path: Path) -> None:
    """One client alone has no others: only what was accepted before can tell."""
    options: dict[str, Any] = {"rounds": WHEN + 1, "cohort": only(1), "quorum": 1}
    run = federate(FedAvg(), federation("fedavg", 1e9), **options)
    next(run)
    checkpoint.save(tmp_path, next(run).snapshot)
    with pytest.raises(QuorumError) as straight:
        next(run)
    start = checkpoint.load(tmp_path)
    with pytest.raises(QuorumError) as resumed:
        next(federate(FedAvg(), federation("fedavg", 1e9), start=start, **options))
    assert str(resumed.value) == str(straight.value)
    assert not next(federate(FedAvg(), federation("fedavg", 1e9), start=replace(start, sizes={}), **options)).dropped


def test_the_last_three_rounds_are_remembered_and_nothing_refused_among_them() -> None:
    run = list(federate(FedAvg(), federation("fedavg", 1e9), rounds=5))
    assert [len(r.snapshot.sizes[SERVER]) for r in run] == [1, 2, 3, 3, 3]
    assert max(x.delta for x in run[-1].snapshot.sizes[SERVER]) < 10
    assert run[-1].snapshot.sizes[SERVER][0] == run[WHEN].snapshot.sizes[SERVER][-1]


def test_a_run_ends_as_without_the_guard_where_nobody_is_far() -> None:
    """FedAdam with a tiny tau moves 10^4 times as far as its clients, and may."""
    method = get_method("fedadam", tau=1e-8, learning_rate=1.0)
    run = list(federate(method, toy_federation(disagreement=0.0), rounds=2))
    assert not run[0].dropped


# --- a state that is not finite --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Overflowing(FedAvg):
    """FedAvg whose mean overflows with some clients' updates, or says so."""

    clients: tuple[int, ...] = (1,)
    error: str = ""
    since: int = 1

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        after = super().aggregate(t, state, updates)
        if t < self.since or not {u.sender.id for u in updates} & {*self.clients}:
            return after
        if self.error:
            raise ValueError(self.error)
        return tree.map_tensors(lambda x: x * math.inf, after)


@pytest.mark.parametrize("error", ["", "too large a delta"])
def test_a_state_that_fails_is_made_again_without_the_largest_update(error: str, caplog: pytest.LogCaptureFixture) -> None:
    clients = federation("fedavg", 20.0, rounds=(1,))
    with caplog.at_level(logging.WARNING, "fedelta"):
        done = list(federate(Overflowing(error=error), clients, rounds=2))[-1]
    without = list(
        federate(FedAvg(), federation("fedavg", 1.0), rounds=2, cohort=lambda t, *_: [0, 2, 3] if t else [0, 1, 2, 3])
    )
    assert "the updates cannot be aggregated" in done.dropped[1]
    assert [u.sender.id for u in done.updates] == [0, 2, 3]
    assert wire.encode(done.state) == wire.encode(without[-1].state)
    assert (error or "NaN or Inf") in caplog.text


def test_a_state_that_fails_twice_ends_the_run_at_the_last_good_one() -> None:
    run = federate(Overflowing(clients=(0, 1, 2, 3)), federation("fedavg", 1.0), rounds=3)
    first = next(run)
    with pytest.raises(
        QuorumError, match=r"(?s)round 1: the updates cannot be aggregated; the state before it stays.*without client"
    ):
        next(run)
    assert all(bool(torch.isfinite(x).all()) for _, x in tree.named_tensors(first.snapshot.state))


def test_a_state_made_without_the_largest_still_needs_its_quorum() -> None:
    with pytest.raises(QuorumError, match="3 of 4 updates can be used, the quorum is 4"):
        list(federate(Overflowing(), federation("fedavg", 20.0, rounds=(1,)), rounds=2, quorum=4))


def test_debug_raises_what_aggregate_raised() -> None:
    with pytest.raises(ValueError, match="too large a delta"):
        list(federate(Overflowing(error="too large a delta"), federation("fedavg", 1.0), rounds=2, debug=True))


def test_a_fault_of_the_disk_is_nobodys_update() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Unreadable(FedAvg):
        def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(federate(Unreadable(), federation("fedavg", 1.0), rounds=1))


@pytest.mark.parametrize("name", ["fedadagrad", "fedadam", "fedyogi"])
def test_second_moments_that_overflow_are_a_failure(name: str) -> None:
    """A second moment of Inf would stop its tensor for good: m / sqrt(Inf) is zero, and finite."""
    method, clients = get_method(name), toy_federation(dtype=torch.float32)
    done = next(iter(federate(method, clients, rounds=1)))
    huge = [replace(u, content=tree.map_tensors(lambda x: x + 1e25, u.content)) for u in done.updates]
    with pytest.raises(ValueError, match=r"memory: hidden.lora_A/v holds \d+ NaN or Inf"):
        method.aggregate(1, done.state, huge)


# --- without a server ------------------------------------------------------------------------------------------------


def total(done: Round) -> torch.Tensor:
    return torch.stack([s["adapter"].dense["bias"] for s in done.state.values()]).sum(0)


@pytest.mark.parametrize("name", ["fedavg", "flexlora", "ffa_lora", "fedsa_lora", "hetlora"])
def test_at_each_node_a_huge_update_is_left_out(name: str) -> None:
    options: dict[str, Any] = {"rounds": WHEN + 2, "mixing": topology.ring(4)}
    run = list(gossip(get_method(name), federation(name, 1e8), **options))
    assert [list(r.dropped) for r in run] == [[], [], [1], []]
    assert run[WHEN].state["1"] is run[WHEN].before["1"]
    sizes = run[WHEN].snapshot.sizes
    assert sorted(sizes) == [0, 1, 2, 3]
    assert max(x.delta for kept in sizes.values() for x in kept) < 1e3


def test_a_node_judges_by_its_own_neighbours(caplog: pytest.LogCaptureFixture) -> None:
    """Of two camps, one a thousand times as far, each is right at home; the link between them counts for nobody."""
    pairs = [(0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 3), (2, 3)]
    clients: list[Any] = toy_federation((2,) * 6)
    clients = [Far(c, 1e5, [1]) if c.peer.id > 2 else c for c in clients]
    with caplog.at_level(logging.WARNING, "fedelta"):
        first, second = gossip(FedAvg(), clients, rounds=2, mixing=topology.metropolis(6, pairs))
    assert not first.dropped
    assert not second.dropped
    assert "node 2 does not take the update of client 3 in round 1: client 3: its" in caplog.text
    sent = {u.sender.id: u.content["adapter"].dense["bias"] for u in second.updates}
    assert torch.allclose(total(second), sum(sent.values(), torch.zeros(4)), rtol=1e-12)
    assert float(second.state["2"]["adapter"].dense["bias"].norm()) < 10


def test_the_link_of_a_node_that_refuses_itself_goes_back_to_both_ends() -> None:
    W = topology.ring(4)
    heard = hear(
        W, [5, 6, 7, 8], set(), lambda sender, receiver: False, [1.0] * 4, lambda node, _: {6: "far"} if node == 6 else {}
    )
    assert heard.refused == {6: {6: "far"}}
    assert heard.rows[6] == {5: 0.0, 6: 1.0, 7: 0.0, 8: 0.0}
    assert heard.rows[5][5] == pytest.approx(float(W[0, 0] + W[0, 1]))


def test_a_node_whose_state_fails_does_it_again_without_the_largest() -> None:
    clients = federation("fedavg", 20.0, rounds=(1,))
    done = list(gossip(Overflowing(), clients, rounds=2, mixing=topology.ring(4)))[-1]
    assert all(bool(torch.isfinite(x).all()) for _, x in tree.named_tensors(done.state))
    with pytest.raises(QuorumError, match="cannot be aggregated"):
        list(gossip(Overflowing(clients=(0, 1, 2, 3)), federation("fedavg", 1.0), rounds=2, mixing=topology.ring(4)))


def test_resumed_nodes_decide_alike() -> None:
    options: dict[str, Any] = {"rounds": WHEN + 1, "mixing": lambda t: torch.eye(4).double() if t == WHEN else topology.ring(4)}
    *_, before, straight = gossip(FedAvg(), federation("fedavg", 1e9), **options)
    again = next(gossip(FedAvg(), federation("fedavg", 1e9), start=before.snapshot, **options))
    blind = next(gossip(FedAvg(), federation("fedavg", 1e9), start=replace(before.snapshot, sizes={}), **options))
    assert straight.dropped == again.dropped
    assert list(again.dropped) == [1]
    assert not blind.dropped


# --- scales, and what clients claim ----------------------------------------------------------------------------------


def sending(change: Any) -> Any:
    class Changed(Far):
        def train(self, t: int, start: Adapter, **request: Any) -> TrainResult:
            return change(self._client.train(t, start, **request))

    return Changed


@pytest.mark.parametrize(("factor", "taken"), [(1 + 1e-9, True), (1 + 1e-5, False), (0.5, False), (1e6, False)])
@pytest.mark.parametrize("name", ["fedavg", "flexlora", "flora"])
def test_a_scale_must_be_its_senders_own(name: str, factor: float, taken: bool) -> None:
    clients: list[Any] = toy_federation((2, 2, 2), lora_alpha=6.0)

    def rescaled(result: TrainResult) -> TrainResult:
        return replace(result, adapter=tree.map(lambda x: replace(x, scale=x.scale * factor), result.adapter))

    clients[1] = sending(rescaled)(clients[1], 1.0)
    done = next(iter(federate(get_method(name), clients, rounds=1)))
    assert (not done.dropped) if taken else ("where its own is 3.0" in done.dropped[1])


@pytest.mark.parametrize("steps", [0, -1, math.nan, math.inf, 1e30, "4", None, True])
def test_steps_that_cannot_be_are_refused(steps: Any) -> None:
    clients: list[Any] = toy_federation((2, 2, 2))
    clients[1] = sending(lambda result: replace(result, num_steps=steps))(clients[1], 1.0)
    done = next(iter(federate(get_method("fednova"), clients, rounds=1)))
    assert f"client 1 claims {steps!r} steps" in done.dropped[1]


@pytest.mark.parametrize("examples", [-1, math.nan, math.inf, 10**13, "12", True])
def test_examples_that_cannot_be_are_refused_before_the_first_round(examples: Any) -> None:
    clients = toy_federation((2, 2, 2))
    clients[1].peer = replace(clients[1].peer, num_examples=examples)
    with pytest.raises(ValueError, match=r"client 1 claims .* examples"):
        federate(FedAvg(), clients, rounds=1)


def claimed(count: int, **options: Any) -> Mapping[int, float]:
    clients = toy_federation((2, 2, 2, 2))
    clients[1].peer = replace(clients[1].peer, num_examples=count)
    done = next(iter(federate(FedAvg(), clients, rounds=1, **options)))
    return {u.sender.id: u.weight for u in done.updates}


def test_a_cap_bounds_what_a_claim_is_worth(caplog: pytest.LogCaptureFixture) -> None:
    assert claimed(10**12)[1] == pytest.approx(1.0)
    assert "client 1 claims 1000000000000 examples" in caplog.text
    assert "max_share" in caplog.text
    caplog.clear()
    weights = claimed(10**12, max_share=0.4)
    assert weights == pytest.approx({0: 0.6 * 12 / 56, 1: 0.4, 2: 0.6 * 20 / 56, 3: 0.6 * 24 / 56})
    assert claimed(10**12, max_share=0.2) == dict.fromkeys(range(4), 0.25)
    assert claimed(16, max_share=0.9) == claimed(16)
    assert not caplog.text


def test_many_examples_are_no_reason_for_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    claimed(1000)
    claimed(10**12, weights="uniform")
    next(iter(federate(FedAvg(), toy_federation((2,), num_examples=[4000]), rounds=1)))
    assert "examples" not in caplog.text


@pytest.mark.parametrize("share", [0.0, 1.5, -1.0, math.nan])
def test_a_cap_that_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="max_share must be"):
        federate(FedAvg(), toy_federation(), rounds=1, max_share=share)


# --- what else a client could choose for all -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fedavg", "zeropad", "fedex_lora", "scaffold", "flexlora", "ffa_lora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_client_chooses_the_dtype_of_the_servers_state(name: str, dtype: torch.dtype) -> None:
    clients: list[Any] = toy_federation((2,) * 4)
    train = clients[0].train

    def cast(t: int, start: Adapter, **request: Any) -> TrainResult:
        result = train(t, start, **request)
        return replace(result, adapter=tree.map_tensors(lambda x: x.to(dtype), result.adapter)) if t == 1 else result

    clients[0].train = cast
    run = list(federate(get_method(name), clients, rounds=3, quorum=0.5, engine="sequential"))
    assert {x.dtype for _, x in tree.named_tensors(run[-1].state["adapter"])} == {torch.float64}
    assert not run[2].dropped


@pytest.mark.parametrize("steps", [10**5, 10**12])
def test_a_claim_of_far_more_steps_than_others_take_is_not_believed(steps: int) -> None:
    clients: list[Any] = toy_federation((2,) * 4)
    train = clients[2].train
    clients[2].train = lambda t, start, **request: replace(train(t, start, **request), num_steps=steps if t == 1 else 4)
    run = list(federate(get_method("fednova"), clients, rounds=3, engine="sequential"))
    assert [list(done.dropped) for done in run] == [[], [2], []]
    assert "local steps, above 1000 times 4" in run[1].dropped[2]
    graph = gossip(get_method("fedavg"), clients, rounds=2, mixing=topology.complete(4), engine="sequential")
    assert 2 in list(graph)[1].dropped


@pytest.mark.parametrize("name", ["fedavg", "flexlora", "raflora", "ffa_lora", "subspace_reg", "fedex_lora"])
def test_a_client_that_trains_in_place_writes_into_nothing_of_the_servers(name: str) -> None:
    class InPlace:
        """Trains as a plain loop does: on the tensors that it is given."""

        def __init__(self, client: LocalClient) -> None:
            self.peer, self.template, self.num_steps, self._client = client.peer, client.template, 4, client

        def train(self, t: int, start: Adapter, **request: Any) -> TrainResult:
            result = self._client.train(t, start, **request)
            new = tree.parameters(result.adapter)
            for n, x in tree.parameters(start).items():
                x.copy_(new[n])
            return replace(result, adapter=start)

    plain, in_place = toy_federation((2, 2, 2)), [InPlace(c) for c in toy_federation((2, 2, 2))]
    for x, y in zip(
        federate(get_method(name), plain, rounds=2, engine="sequential"),
        federate(get_method(name), in_place, rounds=2, engine="sequential"),  # pyright: ignore[reportArgumentType]
        strict=True,
    ):
        assert wire.encode({"state": x.state}) == wire.encode({"state": y.state})
