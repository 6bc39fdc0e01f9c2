"""What each node hears in a round of gossip, after messages that got lost and nodes that failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from fedelta import topology
from fedelta.topology import graphs

LinkDrop: TypeAlias = float | Callable[[int, int, int], bool]
"""The probability that a message between neighbours gets lost, or (t, sender, receiver) -> whether it did."""


@dataclass(frozen=True)
class Heard:
    """What reached whom.

    Attributes:
        rows: rows[i][j] is the weight of node j at node i; rows have sum one.
        reached: by id, the number of neighbours that its message reached.
        lost: the links that did not count because a message on them got lost, as pairs of ids.
    """

    rows: Mapping[int, Mapping[int, float]]
    reached: Mapping[int, int]
    lost: Sequence[tuple[int, int]]


def hear(W: Tensor, ids: Sequence[int], silent: Set[int], is_lost: Callable[[int, int], bool], sizes: Sequence[float]) -> Heard:
    """Cuts the links that do not count out of W: an edge counts only if both ends hold each other's update.

    What such a link weighed goes back to both its ends, so that a symmetric W stays doubly stochastic; were only the end that
    heard nothing to leave it out, the mean of all nodes would move.

    Args:
        W: of the round, in the order of `ids`.
        silent: nodes without a usable update. They keep what they have.
        is_lost: (sender, receiver) -> whether the message between them got lost.
        sizes: of the nodes, to lead to the mean weighted by them; all alike for the plain mean.

    Raises:
        ValueError: for a W that does not mix, or for a directed one with lost messages or unequal sizes.
    """
    topology.check_mixing(W, len(ids))
    links = topology.links_of(W)
    sent = [(a, b) for i, j in links for a, b in ((i, j), (j, i)) if W[b, a] > 0]
    missing = {(a, b) for a, b in sent if is_lost(ids[a], ids[b])}
    lost = [(i, j) for i, j in links if {(i, j), (j, i)} & missing]
    if lost and not topology.is_symmetric(W):
        raise ValueError("link_drop needs a symmetric mixing matrix: on a directed graph a lost message moves the mean")
    cut = {*lost, *((i, j) for i, j in links if silent & {ids[i], ids[j]})}
    W = topology.without_links(W, cut)
    W = topology.for_sizes(W, sizes) if len(set(sizes)) > 1 else W
    rows = {k: dict(zip(ids, row, strict=True)) for k, row in zip(ids, W.tolist(), strict=True)}
    reached = {k: sum(a == n for a, b in sent if (a, b) not in missing) for n, k in enumerate(ids)}
    return Heard(rows, reached, [(ids[i], ids[j]) for i, j in lost])


def loss_rule(drop: LinkDrop, seed: int) -> Callable[[int, int, int], bool]:
    """(t, sender, receiver) -> whether a message got lost: the callable itself, or draws that depend on these and the seed.

    Raises:
        ValueError: for what is no probability.
    """
    if callable(drop):
        return drop
    graphs.check_probability("link_drop", drop)
    return lambda t, sender, receiver: drop > 0 and graphs.lost(seed, t, sender, receiver, drop)
