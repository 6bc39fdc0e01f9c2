"""Mixing matrices: doubly stochastic, with known spectra."""

import math

import pytest
import torch

from fedelta import topology


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("graph", [topology.complete, topology.ring])
def test_rows_and_columns_have_sum_one(graph, n: int) -> None:
    W = graph(n)
    topology.check_mixing(W, n)
    assert W.dtype == torch.float64
    assert torch.allclose(W.sum(0), torch.ones(n, dtype=torch.float64), atol=1e-15)


def test_known_spectra() -> None:
    assert topology.rho(topology.complete(6)) == pytest.approx(0, abs=1e-12)
    for n in (4, 5, 8):
        expected = max(abs((1 + 2 * math.cos(2 * math.pi * k / n)) / 3) for k in range(1, n))
        assert topology.rho(topology.ring(n)) == pytest.approx(expected, abs=1e-12)
    assert topology.rho(topology.metropolis(4, [(0, 1), (2, 3)])) == pytest.approx(1)
    assert topology.rho(topology.complete(1)) == 0
    assert topology.spectral_gap(topology.complete(3)) == pytest.approx(1)


def test_a_star_has_metropolis_weights() -> None:
    W = topology.metropolis(4, [(0, 1), (0, 2), (3, 0), (0, 3)])
    assert W[0].tolist() == pytest.approx([0.25] * 4)
    assert W[1].tolist() == pytest.approx([0.25, 0.75, 0, 0])


@pytest.mark.parametrize(
    ("W", "what"),
    [
        (torch.eye(3), "shape \\(3, 3\\), but there are 4"),
        (torch.eye(4) * 2, "sum 1"),
        (torch.tensor([[0.5, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "symmetric"),
        (torch.eye(4) * 2 - 0.25, "without negative"),
    ],
)
def test_what_does_not_mix_is_refused(W: torch.Tensor, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        topology.check_mixing(W, 4)


@pytest.mark.parametrize("edge", [(1, 1), (0, 4), (-1, 0)])
def test_an_impossible_edge_is_named(edge: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="does not join two"):
        topology.metropolis(4, [edge])


def test_a_graph_has_nodes() -> None:
    with pytest.raises(ValueError, match="at least one node"):
        topology.ring(0)
