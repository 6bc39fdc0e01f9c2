"""TAD-LoRA: whose turn it is, what is mixed, how the interval follows from the graph, and what it becomes at the ends."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

from fedelta import topology
from fedelta.engines.gossip import gossip
from fedelta.engines.rounds import Round
from fedelta.engines.server import federate
from fedelta.exchange import wire
from fedelta.lowrank import LoRA, dist2
from fedelta.methods import get_method
from fedelta.methods.tad_lora import interval_for
from fedelta.models.toy import toy_federation
from fedelta.tree import Factor, factors, parameters

RING = topology.ring(6)


def play(name: str, mixing: Any, rounds: int = 4, nodes: int = 6, **hyper: Any) -> list[Round]:
    clients = toy_federation((2,) * nodes, lora_alpha=6.0)
    return list(gossip(get_method(name, **hyper), clients, rounds=rounds, mixing=mixing, debug=True))


def consensus(done: Round, which: Factor, layer: str = "hidden") -> float:
    stacked = torch.stack([factors(s["adapter"], which)[layer] for s in done.state.values()])
    return float((stacked - stacked.mean(0)).norm())


def assert_same(x: Any, y: Any, atol: float = 0.0) -> None:
    for n, tensor in parameters(x).items():
        torch.testing.assert_close(tensor, parameters(y)[n], rtol=0, atol=atol)


def test_B_goes_first_and_the_round_alone_says_whose_turn_it_is_dec_17_dec_21() -> None:
    assert [get_method("tad_lora", interval=1).factor(t) for t in range(4)] == ["B", "A", "B", "A"]
    assert [get_method("tad_lora", interval=2).factor(t) for t in (0, 1, 2, 3, 4)] == ["B", "B", "A", "A", "B"]
    for done in play("tad_lora", RING, interval=1):
        frozen: Factor = "A" if done.t % 2 == 0 else "B"
        for update in done.updates:
            own = done.before[str(update.sender.id)]["adapter"]
            for n, x in update.content["adapter"].layers.items():
                assert torch.equal(getattr(x, frozen), getattr(own.layers[n], frozen))
                assert not torch.equal(x.B, own.layers[n].B) or done.method.factor(done.t) == "A"


@pytest.mark.parametrize("interval", [1, 2, 3, 5])
def test_on_a_complete_graph_it_is_RoLoRA_with_that_period_dec_13(interval: int) -> None:
    tad = play("tad_lora", topology.complete(4), 6, 4, interval=interval)
    server = federate(
        get_method("rolora", period=interval), toy_federation((2,) * 4, lora_alpha=6.0), rounds=6, weights="uniform"
    )
    for a, b in zip(tad, server, strict=True):
        for state in a.state.values():
            assert_same(state["adapter"], b.state["adapter"], atol=1e-12)


@pytest.mark.parametrize(("name", "other"), [("fedavg", "fedavg"), ("ffa_lora", "ffa_lora"), ("rolora", "rolora")])
def test_on_a_complete_graph_the_others_are_their_server_form_dec_13(name: str, other: str) -> None:
    nodes = play(name, topology.complete(4), 4, 4)
    server = federate(get_method(other), toy_federation((2,) * 4, lora_alpha=6.0), rounds=4, weights="uniform")
    for a, b in zip(nodes, server, strict=True):
        assert_same(a.state["3"]["adapter"], b.state["adapter"], atol=1e-12)


@pytest.mark.parametrize(
    ("name", "schedule"), [("tad_lora", "rolora"), ("rolora", "rolora"), ("fedavg", None), ("ffa_lora", "B")]
)
def test_without_links_it_is_training_alone_with_that_schedule_dec_14(name: str, schedule: str | None) -> None:
    done = play(name, torch.eye(6, dtype=torch.float64), **({"interval": 1} if name == "tad_lora" else {}))[-1]
    client = toy_federation((2,) * 6, lora_alpha=6.0)[2]
    adapter = client.template
    for t in range(4):
        which = get_method("rolora").factor(t) if schedule == "rolora" else schedule
        adapter = client.train(t, adapter, trainable=which).adapter
    assert_same(done.state["2"]["adapter"], adapter)


@pytest.mark.parametrize("interval", [4, 9])
def test_an_interval_of_the_whole_run_is_FFA_LoRA_dec_15(interval: int) -> None:
    tad, ffa = play("tad_lora", RING, interval=interval), play("ffa_lora", RING)
    for k, state in tad[-1].state.items():
        assert_same(state["adapter"], ffa[-1].state[k]["adapter"])
        assert_same_A(state["adapter"], tad[0].template)


def assert_same_A(x: Any, y: Any) -> None:
    assert all(torch.equal(A, factors(y, "A")[n]) for n, A in factors(x, "A").items())


def test_A_first_would_not_move_at_all_dec_16(monkeypatch: pytest.MonkeyPatch) -> None:
    method = get_method("tad_lora", interval=9)
    monkeypatch.setattr(type(method), "factor", lambda self, t: "A")
    *_, done = gossip(method, toy_federation((2,) * 6), rounds=4, mixing=RING, debug=True)
    for state in done.state.values():
        assert not any(bool(B.any()) for B in factors(state["adapter"], "B").values())
        assert_same_A(state["adapter"], done.template)


def test_the_frozen_factor_comes_together_here_and_not_under_RoLoRA_dec_18() -> None:
    """Eight rounds of the second phase, after one in which the nodes' B have moved apart."""
    tad = play("tad_lora", RING, 16, interval=8)
    gaps = [consensus(done, "B") for done in tad[7:16]]
    ratios = [b / a for a, b in pairwise(gaps)]
    assert max(ratios) <= topology.rho_lin(RING) + 1e-9
    assert min(ratios) > 0.3
    rolora = [consensus(done, "B") for done in play("rolora", RING, 16, period=8)[7:16]]
    assert rolora == [rolora[0]] * len(rolora)
    assert rolora[0] > 0


def cross(done: Round, layer: str) -> tuple[torch.Tensor, torch.Tensor, list[LoRA]]:
    """mean(B A) - mean(B) mean(A), the mean of (B - mean B) (A - mean A), and the deltas."""
    xs = [s["adapter"].layers[layer] for s in done.state.values()]
    B, A = torch.stack([x.B for x in xs]), torch.stack([x.A for x in xs])
    return (B @ A).mean(0) - B.mean(0) @ A.mean(0), ((B - B.mean(0)) @ (A - A.mean(0))).mean(0), xs


def test_the_cross_term_is_that_of_disagreements_dec_19_dec_20() -> None:
    for done in play("tad_lora", RING, interval=1):
        for layer in done.template.layers:
            term, disagreements, xs = cross(done, layer)
            torch.testing.assert_close(term, disagreements, rtol=0, atol=1e-12)
            bound = consensus(done, "A", layer) * consensus(done, "B", layer) / len(xs)
            assert float(term.norm()) <= bound + 1e-12
            if done.t == 0:  # all have the same A
                assert float(term.norm()) < 1e-14
    for done in play("tad_lora", topology.complete(6), interval=1):
        assert float(cross(done, "hidden")[0].norm()) < 1e-14


def test_it_sends_twice_what_RoLoRA_sends_dec_25() -> None:
    sent = {n: play(n, RING, 2)[-1].bytes.up[0] for n in ("fedavg", "tad_lora", "rolora", "ffa_lora")}
    assert sent["tad_lora"] == sent["fedavg"]
    done = play("tad_lora", RING, 1)[0]
    numbers = 8 * sum(x.numel() for x in parameters(done.state["0"]["adapter"]).values())
    assert 2 * numbers < sent["tad_lora"] < 2 * (numbers + 1200)
    headers = 2 * len(wire.encode({"A": {}, "dense": {}}))
    assert sent["ffa_lora"] < sent["tad_lora"] - headers


def test_a_frozen_head_is_neither_trained_nor_sent() -> None:
    runs = {h: play("tad_lora", RING, 2, interval=1, freeze_head=h) for h in (True, False)}
    for done in runs[True]:
        assert all("dense" not in u.content and "adapter" not in u.content for u in done.updates)
        for state in done.state.values():
            assert torch.equal(state["adapter"].dense["bias"], done.template.dense["bias"])
    assert runs[True][-1].bytes.total < runs[False][-1].bytes.total
    apart = [s["adapter"] for s in runs[True][-1].state.values()]
    assert float(dist2(apart[0].layers["hidden"], apart[3].layers["hidden"])) > 0
    assert bool(runs[False][-1].state["0"]["adapter"].dense["bias"].any())


# --- the interval ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rho_sq", "T"), [(0.155, 3), (0.433, 4), (0.638, 5), (0.791, 7), (0.910, 10), (0.954, 14), (0.762, 6)]
)
def test_the_rule_gives_the_table_of_random_graphs_dec_12(rho_sq: float, T: int) -> None:
    assert interval_for(rho_sq, 150) == T


def test_the_rule_dec_12() -> None:
    values = [interval_for(x / 100, 1000) for x in range(100)]
    assert values == sorted(values)
    assert [interval_for(0.0, 100, c=c) for c in (1.0, 3.0, 6.0)] == [1, 3, 6]
    assert interval_for(1.0, 40) == 20, "nodes that never agree"
    assert interval_for(0.0, 1) == interval_for(0.99, 1) == 1
    for rho in (0.1, 0.5, 0.9):  # the linear reading of the rule
        linear = 3 / (1 - rho) ** 0.5
        assert 1 <= linear / (3 / (1 - rho**2) ** 0.5) <= 2**0.5


def test_snapping_shares_the_rounds_out_equally() -> None:
    assert [T for T in range(1, 76) if 150 % (2 * T) == 0] == [1, 3, 5, 15, 25, 75]
    assert interval_for(0.433, 150, snap=True) == 5, "4 lies between 3 and 5: the larger"
    assert interval_for(0.910, 150, snap=True) == 15, "10 lies between 5 and 15"
    assert interval_for(0.0, 40, c=3.0, snap=True) == 4, "2 and 4 are as near: the larger"
    with pytest.raises(ValueError, match="15 rounds cannot be shared out equally"):
        interval_for(0.5, 15, snap=True)


def found(run: Callable[[], Any]) -> Any:
    return next(iter(run())).method.interval


def test_engines_fill_the_interval_in_from_the_graph() -> None:
    method, clients = get_method("tad_lora"), toy_federation((2,) * 10)
    sparse = topology.erdos_renyi(10, 0.1, every_round=True)
    assert found(lambda: gossip(method, clients, rounds=60, mixing=topology.ring(10))) == 6
    assert found(lambda: gossip(method, clients, rounds=60, mixing=sparse)) == 5
    assert found(lambda: gossip(method, clients, rounds=6, mixing=topology.ring(10))) == 3
    assert found(lambda: federate(method, clients, rounds=60)) == 3
    given = get_method("adf_lora", interval=90)
    assert given.for_topology(10, lambda: 1 / 0) is given


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="no interval yet"):
        get_method("tad_lora").factor(0)
    with pytest.raises(ValueError, match="interval must be at least 1 round, got 0"):
        get_method("tad_lora", interval=0)
    with pytest.raises(ValueError, match="c must be above 0"):
        get_method("tad_lora", c=0.0)
