"""Graphs of who can hear whom, as lists of edges, fixed or of one round.

Nodes are the numbers 0, ..., n - 1. An edge (i, j) has i < j and no direction; lists are sorted. `fedelta.topology` turns a
graph into a mixing matrix.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch

from fedelta import seeding

Edges: TypeAlias = list[tuple[int, int]]

TRIES = 1000
"""Draws of a random graph before it is given up as never connected."""


def edges(n: int, pairs: Iterable[Sequence[int]]) -> Edges:
    """The pairs as edges: each once, sorted, whatever their direction and repetition.

    Raises:
        ValueError: for a graph without nodes, or a pair that is not two different nodes of it.
    """
    if n < 1:
        raise ValueError(f"a graph needs at least one node, got {n}")
    found: set[tuple[int, int]] = set()
    for pair in pairs:
        i, j = min(pair), max(pair)
        if len(pair) != 2 or i == j or i < 0 or j >= n:
            raise ValueError(f"edge {tuple(pair)} does not join two of the nodes 0, ..., {n - 1}")
        found.add((i, j))
    return sorted(found)


def connected(n: int, pairs: Iterable[tuple[int, int]]) -> bool:
    """Returns whether every node can be reached from every other."""
    import networkx as nx  # here, since a run with a server needs none of it

    graph = nx.empty_graph(n)
    graph.add_edges_from(pairs)
    return nx.is_connected(graph)


# --- fixed graphs ----------------------------------------------------------------------------------------------------


def complete(n: int) -> Edges:
    """Every pair."""
    return edges(n, combinations(range(n), 2))


def ring(n: int) -> Edges:
    """k and k + 1, around; one edge for two nodes."""
    return edges(n, [(k, (k + 1) % n) for k in range(n) if n > 1])


def star(n: int, hub: int = 0) -> Edges:
    """The hub and each other node."""
    return edges(n, [(hub, k) for k in range(n) if k != hub])


def torus(n: int, rows: int | None = None) -> Edges:
    """A grid of `rows` x n / rows nodes whose ends meet: four neighbours each. As square as n allows by default.

    Raises:
        ValueError: for sides below 3, whose ends would meet in the same neighbour.
    """
    rows = rows or max(a for a in range(1, int(n**0.5) + 1) if n % a == 0)
    columns = n // rows
    if rows * columns != n or min(rows, columns) < 3:
        raise ValueError(
            f"{n} nodes make no torus of {rows} rows: both sides must be at least 3, as of 9, 12, 15, 16 or 20 nodes"
        )
    right = [(k, k - k % columns + (k + 1) % columns) for k in range(n)]
    down = [(k, (k + columns) % n) for k in range(n)]
    return edges(n, right + down)


# --- random graphs ---------------------------------------------------------------------------------------------------


def erdos_renyi(n: int, p: float, seed: int = 0) -> Edges:
    """Each pair is an edge with probability p; drawn again until the graph is connected.

    Raises:
        ValueError: if no draw of `TRIES` is connected.
    """
    return _first_connected(n, lambda k: active(complete(n), p, seed, k), f"an Erdos-Renyi graph of {n} nodes with p = {p}")


def random_geometric(n: int, radius: float, seed: int = 0) -> Edges:
    """Points drawn in the unit square are joined up to a distance; drawn again until the graph is connected.

    Raises:
        ValueError: if no draw of `TRIES` is connected; a radius well above sqrt(log n / (pi n)) mostly is.
    """

    def draw(k: int) -> Edges:
        points = torch.rand(n, 2, generator=seeding.generator(seed, k, seeding.SERVER, "points"), dtype=torch.float64)
        near = torch.cdist(points, points) <= radius
        return [(i, j) for i, j in complete(n) if near[i, j]]

    return _first_connected(n, draw, f"a random geometric graph of {n} nodes with radius {radius}")


def watts_strogatz(n: int, neighbours: int = 4, rewire: float = 0.1, seed: int = 0) -> Edges:
    """A ring on which each node has its nearest `neighbours`, each edge of it moved at random with probability `rewire`.

    Drawn again until it is connected (Watts and Strogatz 1998).

    Raises:
        ValueError: for an odd number of neighbours, fewer than 2, or as many as there are nodes; or if no draw is connected.
    """
    if neighbours % 2 or not 2 <= neighbours < n:
        raise ValueError(f"a small world of {n} nodes needs an even number of neighbours in [2, {n - 1}], got {neighbours}")
    check_probability("rewire", rewire)
    import networkx as nx

    def draw(k: int) -> Edges:
        graph = nx.watts_strogatz_graph(n, neighbours, rewire, seed=seeding.derive(seed, k, seeding.SERVER, "small world"))
        return edges(n, graph.edges)

    return _first_connected(n, draw, f"a small world of {n} nodes with rewire = {rewire}")


def active(base: Iterable[tuple[int, int]], p: float, seed: int, t: int, names: Sequence[int] | None = None) -> Edges:
    """The edges of a graph that are up in round t: each with probability p, on its own.

    Whether an edge is up depends on (seed, t, its two names) alone, through a hash: every node can compute the whole graph
    without a message, and a node more changes nothing for the others.

    Args:
        base: the edges that may be up.
        p: the probability, in [0, 1].
        names: of the nodes, their numbers by default; only these enter the hash.
    """
    check_probability("p", p)
    return [(i, j) for i, j in base if _uniform(seed, t, *_ordered(i, j, names)) < p]


def lost(seed: int, t: int, sender: int, receiver: int, p: float) -> bool:
    """Returns whether a message of round t gets lost, with probability p; each direction of a link on its own."""
    return _uniform(seed, t, sender, receiver, "lost") < p


def check_probability(name: str, p: float) -> None:
    """Raises ValueError for what is no probability."""
    if not 0 <= p <= 1:
        raise ValueError(f"{name} must be a probability in [0, 1], got {p}")


def _ordered(i: int, j: int, names: Sequence[int] | None) -> tuple[int, int]:
    i, j = (i, j) if names is None else (names[i], names[j])
    return min(i, j), max(i, j)


def _uniform(*key: int | str) -> float:
    """A number in [0, 1): the first 8 bytes of the SHA-256 of the key's parts."""
    digest = hashlib.sha256("|".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _first_connected(n: int, draw: Callable[[int], Edges], what: str) -> Edges:
    for k in range(TRIES):
        found = draw(k)
        if connected(n, found):
            return found
    raise ValueError(
        f"{what} was not connected in {TRIES} draws: nodes in separate parts never agree. Raise the density, or let the graph "
        "change by the round"
    )


# --- files -----------------------------------------------------------------------------------------------------------


def read(path: str | Path, n: int) -> list[Edges]:
    """The graphs of a JSON file: a list of edges [i, j] for one graph, or a list of such lists, one for each round.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, for what is not of that form.
    """
    try:
        content: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        rounds = _as_rounds(content)
        return [edges(n, pairs) for pairs in rounds]
    except RecursionError:
        raise ValueError(
            f"{path}: a graph is a list of edges [i, j], or one such list for each round; it is nested too deeply"
        ) from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: a graph is a list of edges [i, j], or one such list for each round; {error}") from error


def _as_rounds(content: Any) -> list[list[list[int]]]:
    if not isinstance(content, list) or not content:
        raise ValueError("the file holds no list")
    first = next((entry[0] for entry in content if entry), None)  # a round may be without an edge
    return cast("list[list[list[int]]]", [content] if isinstance(first, int) else content)
