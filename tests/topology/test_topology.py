"""Mixing matrices: doubly stochastic, with known spectra, the same in every process; and what cannot mix is refused."""

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fedelta import topology
from fedelta.topology import get_topology, graphs, rho_lin

SYMMETRIC: dict[str, dict[str, Any]] = {
    "complete": {},
    "ring": {},
    "star": {},
    "torus": {},
    "erdos_renyi": {"p": 0.4},
    "random_geometric": {"radius": 0.5},
    "watts_strogatz": {"neighbours": 4, "rewire": 0.3},
}


def distance(X: torch.Tensor) -> float:
    """From consensus: ||X - mean||."""
    return float((X - X.mean(0)).norm())


@pytest.mark.parametrize("weights", topology.RULES)
@pytest.mark.parametrize("name", SYMMETRIC)
def test_symmetric_graphs_are_doubly_stochastic_dec_1(name: str, weights: str) -> None:
    W = topology.at(get_topology(name, weights=weights, **SYMMETRIC[name]).mixing(12, seed=3), 0)
    ones = torch.ones(12, dtype=torch.float64)
    assert W.dtype == torch.float64
    assert bool((W >= 0).all())
    for off in (W.sum(1) - ones, W.sum(0) - ones, W - W.mT):
        assert float(off.abs().max()) < 1e-12
    assert topology.is_connected(W)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("graph", [topology.complete, topology.ring, topology.star, topology.exponential])
def test_graphs_of_every_size_mix(graph: Any, n: int) -> None:
    topology.check_mixing(graph(n), n)


@pytest.mark.parametrize("m", [4, 8, 16])
def test_exponential_graphs_dec_2(m: int) -> None:
    one_peer = topology.exponential(m, one_peer=True)
    product = torch.linalg.multi_dot([one_peer(t) for t in range(int(math.log2(m)))] + [torch.eye(m, dtype=torch.float64)])
    assert torch.allclose(product, torch.full_like(product, 1 / m), atol=1e-15)
    assert rho_lin(topology.exponential(m)) == pytest.approx(1 - 2 / (1 + math.log2(m)), abs=1e-10)
    for W in (topology.exponential(m), one_peer(0), one_peer(5)):
        topology.check_mixing(W, m)
    assert not topology.is_symmetric(topology.exponential(m)) or m == 2


def test_one_peer_at_a_time_needs_a_power_of_two_dec_2() -> None:
    W = topology.exponential(6, one_peer=True)
    assert float((W(2) @ W(1) @ W(0) - 1 / 6).abs().max()) == pytest.approx(0.083, abs=1e-3)


def test_known_spectra_dec_3() -> None:
    def cosine(k: int, n: int) -> float:
        return math.cos(2 * math.pi * k / n)

    for n in (4, 5, 6, 8, 10, 32):
        expected = max(abs(1 + 2 * cosine(k, n)) / 3 for k in range(1, n))
        assert rho_lin(topology.ring(n)) == pytest.approx(expected, abs=1e-10)
    assert rho_lin(topology.star(10)) == pytest.approx(0.9, abs=1e-10)
    for a, b in ((4, 4), (5, 5), (3, 5), (10, 10)):
        pairs = [(p, q) for p in range(a) for q in range(b) if p or q]
        expected = max(abs(1 + 2 * cosine(p, a) + 2 * cosine(q, b)) / 5 for p, q in pairs)
        assert rho_lin(topology.torus(a * b, a)) == pytest.approx(expected, abs=1e-10)
    assert rho_lin(topology.complete(6)) == pytest.approx(0, abs=1e-12)
    assert rho_lin(topology.complete(1)) == 0
    assert rho_lin(topology.metropolis(4, [(0, 1), (2, 3)])) == pytest.approx(1)
    assert topology.rho_sq(topology.ring(10)) == pytest.approx(0.762, abs=1e-3)
    assert topology.spectral_gap(topology.ring(10)) == pytest.approx(1 - 0.8727, abs=1e-4)
    assert rho_lin(topology.ring(10, weights="laplacian")) == pytest.approx(0.936, abs=1e-3)


@pytest.mark.parametrize("name", [*SYMMETRIC, "exponential"])
def test_a_round_keeps_the_mean_and_contracts_dec_4_dec_5(name: str) -> None:
    W = topology.at(get_topology(name, **SYMMETRIC.get(name, {})).mixing(12), 0)
    X = torch.randn(12, 7, dtype=torch.float64)
    assert torch.allclose((W @ X).mean(0), X.mean(0), rtol=0, atol=1e-12)
    assert distance(W @ X) <= rho_lin(W) * distance(X) + 1e-12
    slowest = torch.linalg.svd(W - 1 / 12).Vh[:1].mT  # along it the bound is met
    assert distance(W @ slowest) == pytest.approx(rho_lin(W) * distance(slowest), abs=1e-12)


@pytest.mark.parametrize(("p", "rho_sq"), [(0.5, 0.155), (0.1, 0.638), (0.02, 0.910)])
def test_a_graph_drawn_in_every_round_dec_6(p: float, rho_sq: float) -> None:
    found = topology.expected_rho_sq(topology.erdos_renyi(10, p, every_round=True), rounds=8000)
    assert found == pytest.approx(rho_sq, abs=0.01)
    if p <= 0.02:
        assert found == pytest.approx(1 - p * 10 / 2, abs=0.015)


def test_edges_of_a_round_depend_on_their_names_alone_dec_8() -> None:
    base = graphs.complete(10)
    up = [e for t in range(2000) for e in graphs.active(base, 0.1, 0, t)]
    assert len(up) / (2000 * len(base)) == pytest.approx(0.1, abs=0.004)
    assert graphs.active(base, 0.3, 0, 5) != graphs.active(base, 0.3, 0, 6)
    assert graphs.active(base, 0.3, 0, 5) != graphs.active(base, 0.3, 1, 5)
    more = [e for e in graphs.active(graphs.complete(11), 0.3, 0, 5) if 10 not in e]
    assert more == graphs.active(base, 0.3, 0, 5)
    names, turned = list(range(20, 30)), list(range(29, 19, -1))
    named = {(names[i], names[j]) for i, j in graphs.active(base, 0.3, 0, 5, names)}
    assert named == {(turned[j], turned[i]) for i, j in graphs.active(base, 0.3, 0, 5, turned)}


def test_a_fixed_graph_in_parts_is_refused_and_one_of_a_round_is_not_dec_9(tmp_path: Path) -> None:
    file = tmp_path / "graph.json"
    file.write_text(json.dumps([[0, 1], [2, 3]]))
    with pytest.raises(ValueError, match="'from_file' of 4 nodes is not connected"):
        get_topology("from_file", path=file).mixing(4)
    with pytest.raises(ValueError, match=r"p = 0\.01 was not connected in 1000 draws"):
        topology.erdos_renyi(10, 0.01)
    with pytest.raises(ValueError, match=r"radius 0\.01 was not connected"):
        topology.random_geometric(10, 0.01)
    mixing = get_topology("erdos_renyi", p=0.01, every_round=True).mixing(10)
    assert not topology.is_connected(topology.at(mixing, 0))
    with pytest.raises(ValueError, match="not connected"):
        get_topology("from_file", path=file, activation=0.5).mixing(4)


def test_a_cut_link_leaves_a_doubly_stochastic_matrix_dec_10() -> None:
    W = topology.ring(6)
    cut = topology.without_links(W, [(0, 1), (3, 4)])
    topology.check_mixing(cut, 6)
    assert float((cut.sum(0) - 1).abs().max()) < 1e-12
    assert cut[0, 1] == cut[1, 0] == cut[3, 4] == cut[4, 3] == 0
    assert cut[0, 0] == pytest.approx(2 / 3)
    assert torch.equal(W, topology.ring(6)), "the argument was written into"


def test_weights_by_size_lead_to_the_weighted_mean_dec_11() -> None:
    sizes = torch.tensor([1.0, 5, 2, 2, 10, 4], dtype=torch.float64)
    P = topology.for_sizes(topology.ring(6), sizes.tolist())
    flow = sizes[:, None] * P
    assert torch.allclose(flow, flow.mT, atol=1e-15), "detailed balance"
    assert torch.allclose(sizes @ P, sizes, atol=1e-14)
    assert bool((P.diagonal() >= 0).all())
    X = torch.randn(6, 3, dtype=torch.float64)
    expected = (sizes @ X / sizes.sum()).expand(6, 3)
    assert torch.allclose(torch.linalg.matrix_power(P, 400) @ X, expected, atol=1e-9)
    with pytest.raises(ValueError, match="symmetric"):
        topology.for_sizes(topology.exponential(6), sizes.tolist())
    with pytest.raises(ValueError, match="a positive size each"):
        topology.for_sizes(topology.ring(6), [1, 2, 3])


def test_a_star_has_metropolis_weights() -> None:
    W = topology.metropolis(4, [(0, 1), (0, 2), (3, 0), (0, 3)])
    assert W[0].tolist() == pytest.approx([0.25] * 4)
    assert W[1].tolist() == pytest.approx([0.25, 0.75, 0, 0])
    assert torch.allclose(topology.star(4), W)
    assert topology.star(4, hub=2)[2].tolist() == pytest.approx([0.25] * 4)


def test_weights_of_the_rules() -> None:
    path = [(0, 1), (1, 2)]
    assert topology.max_degree(3, path)[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert topology.lazy(3, path)[1].tolist() == pytest.approx([1 / 6, 2 / 3, 1 / 6])
    assert topology.laplacian(3, path)[0].tolist() == pytest.approx([7 / 9, 2 / 9, 0])  # lambda_max is 3
    assert torch.equal(topology.laplacian(3, []), torch.eye(3, dtype=torch.float64))
    ring = torch.linalg.eigvalsh(topology.ring(8, weights="lazy"))
    assert float(ring.min()) >= -1e-15


def test_shapes_of_graphs() -> None:
    def degrees(n: int, edges: graphs.Edges) -> list[int]:
        return [sum(k in e for e in edges) for k in range(n)]

    assert degrees(12, graphs.torus(12, 3)) == [4] * 12
    assert graphs.torus(12) == graphs.torus(12, 3)
    assert degrees(10, graphs.watts_strogatz(10, 4, 0.0)) == [4] * 10
    assert graphs.watts_strogatz(10, 4, 0.5, seed=1) != graphs.watts_strogatz(10, 4, 0.5, seed=2)
    assert graphs.erdos_renyi(10, 0.5, seed=1) == graphs.erdos_renyi(10, 0.5, seed=1)
    assert graphs.random_geometric(5, 1.5) == list(combinations(range(5), 2))
    assert len(graphs.random_geometric(20, 0.5, seed=1)) < 190


def test_a_trace_of_contacts_comes_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "contacts.json"
    file.write_text("[[], [[1, 0]], [[1, 2], [0, 2]]]")
    mixing = topology.from_file(3, file)
    assert callable(mixing)
    assert [topology.links_of(mixing(t)) for t in range(4)] == [[], [(0, 1)], [(0, 2), (1, 2)], []]
    assert topology.numbers(mixing)["expected"]
    for text, what in (
        ("{}", "holds no list"),
        ("[]", "holds no list"),
        ("[[0, 7]]", r"edge \(0, 7\)"),
        ("nonsense", "JSON|value"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=rf"contacts\.json.*({what})"):
            topology.from_file(3, file)


def test_each_edge_of_any_graph_may_be_up_by_chance() -> None:
    mixing = get_topology("ring", activation=0.5).mixing(6, seed=4)
    assert callable(mixing)
    ring = set(graphs.ring(6))
    seen = [set(topology.links_of(mixing(t))) for t in range(20)]
    assert all(up <= ring for up in seen)
    assert len({frozenset(up) for up in seen}) > 5
    assert sum(map(len, seen)) / 120 == pytest.approx(0.5, abs=0.15)
    assert torch.equal(mixing(3), mixing(3))


def test_the_numbers_of_a_topology() -> None:
    fixed = topology.numbers(topology.ring(10))
    assert fixed["rho_lin"] == pytest.approx(0.8727, abs=1e-4)
    assert not fixed["expected"]
    drawn = topology.numbers(topology.erdos_renyi(10, 0.1, every_round=True), rounds=500)
    assert drawn["rho_lin"] == pytest.approx(drawn["rho_sq"] ** 0.5)
    assert drawn["spectral_gap"] == 1 - drawn["rho_lin"]
    assert drawn["expected"]


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"name": "rings"}, "no topology is called 'rings'; did you mean 'ring'"),
        ({"name": "erdos_renyi", "p": 0.1, "evry_round": True}, "no setting 'evry_round'; did you mean 'every_round'"),
        ({"name": "erdos_renyi"}, "'erdos_renyi' needs p"),
        ({"name": "ring", "weights": "metropols"}, "no rule for weights is called 'metropols'; did you mean 'metropolis'"),
        ({"name": "exponential", "weights": "lazy"}, "'exponential' has no setting 'weights'; it has one_peer"),
        ({"name": "exponential", "activation": 0.5}, "'exponential' has no setting 'activation'"),
        ({"name": "ring", "activation": 1.5}, r"activation must be a probability in \[0, 1\], got 1.5"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        get_topology(**settings)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: topology.ring(0), "at least one node"),
        (lambda: topology.complete(0), "at least one node"),
        (lambda: topology.torus(10), "both sides must be at least 3"),
        (lambda: topology.torus(16, 5), "make no torus of 5 rows"),
        (lambda: topology.watts_strogatz(10, 3), "even number of neighbours"),
        (lambda: topology.watts_strogatz(10, 4, -1), "rewire must be a probability"),
        (lambda: topology.erdos_renyi(4, 1.5), "p must be a probability"),
        (lambda: topology.erdos_renyi(4, 1.5, every_round=True), "p must be a probability"),
        (lambda: topology.metropolis(4, [(1, 1)]), "does not join two"),
        (lambda: topology.metropolis(4, [(0, 4)]), "does not join two"),
        (lambda: topology.metropolis(4, [(-1, 0)]), "does not join two"),
    ],
)
def test_an_impossible_graph_is_named(make: Any, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        make()


@pytest.mark.parametrize(
    ("W", "what"),
    [
        (torch.eye(3), "shape \\(3, 3\\), but there are 4"),
        (torch.eye(4) * 2, "rows of a mixing matrix have sum 1"),
        (torch.tensor([[0.5, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "columns of a mixing matrix"),
        (torch.eye(4) * 2 - 0.25, "no negative"),
    ],
)
def test_what_does_not_mix_is_refused(W: torch.Tensor, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        topology.check_mixing(W, 4)


# --- what a config is refused for, without a matrix ------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    """Keeps the number of entries of the largest tensor that is made."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor):
            self.entries = max(self.entries, found.numel())
        return found


@pytest.mark.parametrize(
    "settings",
    [
        *({"name": name, **given} for name, given in SYMMETRIC.items()),
        {"name": "exponential"},
        {"name": "exponential", "one_peer": True},
        {"name": "ring", "activation": 0.5},
        {"name": "erdos_renyi", "p": 0.01, "every_round": True},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_a_graph_of_many_nodes_is_checked_without_a_matrix(settings: dict[str, Any]) -> None:
    with LargestTensor() as largest:
        get_topology(**settings).check(2025)
    assert largest.entries <= 2025


def test_a_ring_of_twenty_thousand_nodes_is_checked() -> None:
    get_topology("ring").check(20_000)


def test_a_check_refuses_what_the_matrix_would_be_refused_for(tmp_path: Path) -> None:
    file = tmp_path / "graph.json"
    file.write_text(json.dumps([[0, 1], [2, 3]]))
    refused: list[tuple[dict[str, Any], int]] = [
        ({"name": "from_file", "path": file}, 4),
        ({"name": "from_file", "path": file}, 3),
        ({"name": "ring"}, 0),
        ({"name": "exponential"}, 0),
        ({"name": "star", "hub": 4}, 4),
        ({"name": "torus"}, 10),
        ({"name": "torus", "rows": 5}, 16),
        ({"name": "watts_strogatz", "neighbours": 3}, 10),
        ({"name": "erdos_renyi", "p": 1.5}, 10),
        ({"name": "erdos_renyi", "p": 1.5, "every_round": True}, 10),
        ({"name": "erdos_renyi", "p": 0.01}, 10),
        ({"name": "random_geometric", "radius": 0.01}, 10),
    ]
    for settings, n in refused:
        with pytest.raises(ValueError) as of_check:  # noqa: PT011 - the messages are compared
            get_topology(**settings).check(n)
        with pytest.raises(ValueError) as of_mixing:  # noqa: PT011
            get_topology(**settings).mixing(n)
        assert str(of_check.value) == str(of_mixing.value)


def test_a_graph_that_changes_by_the_round_may_be_in_parts_in_one(tmp_path: Path) -> None:
    file = tmp_path / "contacts.json"
    file.write_text("[[], [[1, 0]], [[1, 2], [0, 2]]]")
    get_topology("from_file", path=file).check(3)


def test_every_topology_can_be_checked() -> None:
    assert list(topology.EDGES) == list(topology.TOPOLOGIES)


def test_a_deeply_nested_graph_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "graph.json"
    file.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"graph\.json: .* nested too deeply"):
        get_topology("from_file", path=file).check(3)
