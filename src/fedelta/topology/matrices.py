"""Mixing matrices for gossip: weights on the edges of a graph, and topologies by name.

A mixing matrix W (n, n) is float64 and doubly stochastic: W[i, j] is the weight that node i gives to what it hears from node
j, W[i, i] to its own; rows and columns have sum one, so that the mean over nodes stays. All but the exponential graphs are
symmetric. Nodes are numbered in the order of their ids.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedelta.registry import check_name, check_settings
from fedelta.topology import graphs
from fedelta.topology.graphs import Edges, active, check_probability, connected
from fedelta.topology.rates import Mixing, at, is_connected, is_symmetric, links_of

# --- weights ---------------------------------------------------------------------------------------------------------


def metropolis(n: int, edges: Iterable[tuple[int, int]]) -> Tensor:
    """W[i, j] = 1 / (1 + max(degree_i, degree_j)) on the edges of a graph, the rest on the diagonal (Xiao and Boyd 2004).

    A node needs the degrees of its neighbours alone.

    Args:
        n: nodes.
        edges: pairs of nodes; direction and repetition do not matter.

    Raises:
        ValueError: for an edge from a node to itself or to a node that does not exist.
    """
    adjacent = _adjacency(n, edges)
    degree = adjacent.sum(1)
    return _with_diagonal(adjacent / (1 + torch.maximum(degree[:, None], degree[None, :])))


def max_degree(n: int, edges: Iterable[tuple[int, int]]) -> Tensor:
    """W[i, j] = 1 / (1 + the largest degree of all); arguments and errors as `metropolis`."""
    adjacent = _adjacency(n, edges)
    return _with_diagonal(adjacent / (1 + adjacent.sum(1).max()))


def lazy(n: int, edges: Iterable[tuple[int, int]]) -> Tensor:
    """(I + W) / 2 of the Metropolis W: no eigenvalue is negative; arguments and errors as `metropolis`."""
    return (torch.eye(n, dtype=torch.float64) + metropolis(n, edges)) / 2


def laplacian(n: int, edges: Iterable[tuple[int, int]]) -> Tensor:
    """I - a L with L the graph's Laplacian and a = 2 / (3 lambda_max(L)), the choice of Dec-LoRA (arXiv 2501.15361).

    Never negative, since lambda_max exceeds the largest degree. Slower than `metropolis` on a ring. Arguments and errors as
    `metropolis`.
    """
    adjacent = _adjacency(n, edges)
    top = torch.linalg.eigvalsh(torch.diag(adjacent.sum(1)) - adjacent)[-1]
    return _with_diagonal(adjacent * (2 / (3 * top))) if top > 0 else torch.eye(n, dtype=torch.float64)


RULES: Mapping[str, Callable[[int, Iterable[tuple[int, int]]], Tensor]] = {
    "metropolis": metropolis,
    "max_degree": max_degree,
    "lazy": lazy,
    "laplacian": laplacian,
}
"""How a graph becomes a mixing matrix, by name."""


def for_sizes(W: Tensor, sizes: Sequence[float]) -> Tensor:
    """P[i, j] = W[i, j] min(1, n_j / n_i), the rest on the diagonal: repeated, it leads to the mean weighted by sizes.

    Detailed balance n_i P[i, j] = n_j P[j, i] holds, so the weighted mean stays in every round; columns no longer have sum one.

    Args:
        W: symmetric and doubly stochastic.
        sizes: one positive number for each node, such as its examples.

    Raises:
        ValueError: for a W that is not symmetric, or sizes that are not n positive numbers.
    """
    n = torch.tensor(list(sizes), dtype=torch.float64)
    if n.shape != W.shape[:1] or not bool((n > 0).all()):
        raise ValueError(f"{W.shape[0]} nodes need a positive size each, got {list(sizes)}")
    if not is_symmetric(W):
        raise ValueError("weights by size need a symmetric mixing matrix: use uniform weights on a directed graph")
    return _with_diagonal(W * (n[None, :] / n[:, None]).clamp(max=1))


def without_links(W: Tensor, links: Iterable[tuple[int, int]]) -> Tensor:
    """W without these links: what an end gave to the other goes back to its own weight.

    A symmetric W stays doubly stochastic. A link that is cut at one end only would move the mean of all nodes.
    """
    W = W.clone()
    for i, j in links:
        W[i, i], W[j, j] = W[i, i] + W[i, j], W[j, j] + W[j, i]
        W[i, j] = W[j, i] = 0
    return W


def _adjacency(n: int, pairs: Iterable[tuple[int, int]]) -> Tensor:
    adjacent = torch.zeros(n, n, dtype=torch.float64)
    if found := graphs.edges(n, pairs):
        i, j = torch.tensor(found).T
        adjacent[i, j] = adjacent[j, i] = 1
    return adjacent


def _with_diagonal(W: Tensor) -> Tensor:
    """W with the diagonal that gives every row the sum one."""
    W = W - torch.diag(W.diagonal())
    return W + torch.diag(1 - W.sum(1))


# --- topologies ------------------------------------------------------------------------------------------------------


def complete(n: int, *, weights: str = "metropolis") -> Tensor:
    """All nodes hear all nodes. With Metropolis weights every entry is 1 / n: one round reaches the mean."""
    if weights == "metropolis":
        graphs.edges(n, [])
        return torch.full((n, n), 1 / n, dtype=torch.float64)  # to the last bit, so that all nodes agree to the last bit
    return _weigh(weights, n, graphs.complete(n))


def ring(n: int, *, weights: str = "metropolis") -> Tensor:
    """Each node hears its two neighbours; Metropolis weights are 1/3 each for n >= 3, rho_lin 1/3 + 2/3 cos(2 pi / n)."""
    return _weigh(weights, n, graphs.ring(n))


def star(n: int, hub: int = 0, *, weights: str = "metropolis") -> Tensor:
    """All nodes hear the hub alone, which hears all: rho_lin 1 - 1 / n with Metropolis weights."""
    return _weigh(weights, n, graphs.star(n, hub))


def torus(n: int, rows: int | None = None, *, weights: str = "metropolis") -> Tensor:
    """A grid of `rows` x n / rows nodes whose ends meet, as square as n allows by default; sides of at least 3."""
    return _weigh(weights, n, graphs.torus(n, rows))


def exponential(n: int, *, one_peer: bool = False) -> Mixing:
    """Directed: each node hears those 1, 2, 4, ... places before it, with equal weights (Ying et al., NeurIPS 2021).

    Args:
        one_peer: one of these in each round, in turn, with weight 1/2. For n a power of two, log2 n rounds reach the mean.
    """
    graphs.edges(n, [])
    steps = [2**k for k in range(math.ceil(math.log2(n)))]
    eye = torch.eye(n, dtype=torch.float64)
    shifted = [eye.roll(-step, 1) for step in steps]
    if one_peer and steps:
        return lambda t: (eye + shifted[t % len(steps)]) / 2
    return torch.stack([eye, *shifted]).mean(0)


def erdos_renyi(n: int, p: float, *, every_round: bool = False, weights: str = "metropolis", seed: int = 0) -> Mixing:
    """Each pair is joined with probability p: once, drawn again until the graph is connected, or anew in every round.

    Raises:
        ValueError: if no draw of a fixed graph is connected. That of a single round need not be.
    """
    if every_round:
        return activated(n, graphs.complete(n), p, weights=weights, seed=seed)
    return _weigh(weights, n, graphs.erdos_renyi(n, p, seed))


def random_geometric(n: int, radius: float, *, weights: str = "metropolis", seed: int = 0) -> Tensor:
    """Nodes at random places of the unit square hear each other up to a distance; drawn again until connected."""
    return _weigh(weights, n, graphs.random_geometric(n, radius, seed))


def watts_strogatz(n: int, neighbours: int = 4, rewire: float = 0.1, *, weights: str = "metropolis", seed: int = 0) -> Tensor:
    """A ring with `neighbours` for each node, edges moved at random with probability `rewire`; drawn again until connected."""
    return _weigh(weights, n, graphs.watts_strogatz(n, neighbours, rewire, seed))


def from_file(n: int, path: str | Path, *, weights: str = "metropolis") -> Mixing:
    """The graph of a JSON file: a list of edges [i, j], or one such list for each round, which start again after the last."""
    found = [_weigh(weights, n, edges) for edges in graphs.read(path, n)]
    return found[0] if len(found) == 1 else lambda t: found[t % len(found)]


def activated(
    n: int,
    edges: Edges | Callable[[int], Edges],
    p: float,
    *,
    weights: str = "metropolis",
    seed: int = 0,
    names: Sequence[int] | None = None,
) -> Callable[[int], Tensor]:
    """t -> W of the edges that are up in round t, each with probability p; see `fedelta.topology.graphs.active`."""
    check_probability("p", p)

    def draw(t: int) -> Tensor:
        return _weigh(weights, n, active(edges(t) if callable(edges) else edges, p, seed, t, names))

    return draw


def _weigh(rule: str, n: int, edges: Edges) -> Tensor:
    check_name("rule for weights", rule, RULES)
    return RULES[rule](n, edges)


TOPOLOGIES: Mapping[str, Callable[..., Mixing]] = {
    f.__name__: f for f in (complete, ring, star, torus, exponential, erdos_renyi, random_geometric, watts_strogatz, from_file)
}
"""What a config can name."""


DRAWN = 500_000
"""Pairs of nodes up to which a random graph is drawn to see whether it can be had: those of 1000 nodes."""


def _always_connected(n: int, seed: int, *, one_peer: bool = False) -> None:
    graphs.edges(n, [])


def _drawn(draw: Callable[..., Edges]) -> Callable[..., Edges | None]:
    """The edges of a random graph, or None for one too large to be drawn only to be looked at."""

    def edges(n: int, seed: int, **settings: Any) -> Edges | None:
        return None if n * (n - 1) // 2 > DRAWN else draw(n, **settings, seed=seed)

    return edges


def _erdos_renyi(n: int, seed: int, p: float, *, every_round: bool = False) -> Edges | None:
    check_probability("p", p)
    return None if every_round else _drawn(graphs.erdos_renyi)(n, seed, p=p)


def _read(n: int, seed: int, path: str | Path) -> Edges | None:
    rounds = graphs.read(path, n)
    return rounds[0] if len(rounds) == 1 else None


EDGES: Mapping[str, Callable[..., Edges | None]] = {
    "complete": _always_connected,
    "ring": lambda n, seed: graphs.ring(n),
    "star": lambda n, seed, **given: graphs.star(n, **given),
    "torus": lambda n, seed, **given: graphs.torus(n, **given),
    "exponential": _always_connected,
    "erdos_renyi": _erdos_renyi,
    "random_geometric": _drawn(graphs.random_geometric),
    "watts_strogatz": lambda n, seed, **given: graphs.watts_strogatz(n, **given, seed=seed),
    "from_file": _read,
}
"""(n, seed, settings) -> the edges of a topology that must be connected; None where nothing of the kind is demanded.

Settings that make no graph of n nodes are refused; no matrix is formed.
"""


@dataclass(frozen=True)
class Topology:
    """A graph by its name, for any number of nodes.

    Args:
        name: one of `TOPOLOGIES`.
        settings: what that function takes, but for the nodes and the seed.
        activation: the probability with which each edge is up in a round; 1 is always.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    activation: float = 1.0

    def check(self, n: int, *, seed: int = 0) -> None:
        """Refuses what `mixing` would refuse, from the edges alone: no matrix is formed, whose n^2 entries may be gigabytes.

        A random graph of more than `DRAWN` pairs of nodes is not drawn here: whether it is connected shows in `mixing`.

        Raises:
            ValueError: as `mixing`.
        """
        given = {k: v for k, v in self.settings.items() if k != "weights"}
        found = EDGES[self.name](n, seed, **given)
        if found is not None and not connected(n, found):
            raise ValueError(self._in_parts(n))

    def mixing(self, n: int, *, seed: int = 0) -> Mixing:
        """The mixing matrix for n nodes, or t -> that of round t.

        Raises:
            ValueError: for settings that do not fit n, or a fixed graph in parts, whose nodes would never agree.
        """
        given = {**self.settings, **({"seed": seed} if "seed" in _parameters(self.name) else {})}
        found = TOPOLOGIES[self.name](n, **given)
        if isinstance(found, Tensor) and not is_connected(found):
            raise ValueError(self._in_parts(n))
        if self.activation == 1:
            return found
        weights = self.settings.get("weights", "metropolis")
        return activated(n, lambda t: links_of(at(found, t)), self.activation, weights=weights, seed=seed)

    def _in_parts(self, n: int) -> str:
        return f"the topology {self.name!r} of {n} nodes is not connected: nodes in separate parts never agree"


def get_topology(name: str, *, activation: float = 1.0, **settings: Any) -> Topology:
    """A topology by its name.

    Raises:
        ValueError: for an unknown name or setting, with the nearest known one, or for one that is missing or out of range.
    """
    check_name("topology", name, TOPOLOGIES)
    known = [k for k in _parameters(name) if k not in ("n", "seed")]
    options = [*known, *([] if name == "exponential" else ["activation"])]  # activation draws edges without a direction
    check_settings(f"topology {name!r}", [*settings, *(["activation"] if activation != 1 else [])], options)
    needed = [k for k in known if _parameters(name)[k].default is inspect.Parameter.empty and k not in settings]
    if needed:
        raise ValueError(f"topology {name!r} needs {', '.join(needed)}")
    _weigh(settings.get("weights", "metropolis"), 1, [])
    check_probability("activation", activation)
    return Topology(name, settings, activation)


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(TOPOLOGIES[name]).parameters
