"""The links of a round of gossip that count, after messages that got lost and nodes that failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from fedelta import topology
from fedelta.topology import graphs

LinkDrop: TypeAlias = float | Callable[[int, int, int], bool]
"""The probability that a message between neighbours gets lost, or (t, sender, receiver) -> whether it did."""

Refusal: TypeAlias = Callable[[int, Sequence[int]], Mapping[int, str]]
"""(node, the senders whose updates it holds, its own included) -> by sender, why it does not take one."""


@dataclass(frozen=True)
class Heard:
    """The messages that reached their receivers, and the weights that come of it.

    Attributes:
        rows: rows[i][j] is the weight of node j at node i; rows have sum one.
        reached: by id, the number of neighbours that its message reached.
        lost: the links that did not count because a message on them got lost, as pairs of ids.
        refused: refused[i][j] is why node i does not take the update of j, whose link then does not count either; if i is j,
            it is silent.
    """

    rows: Mapping[int, Mapping[int, float]]
    reached: Mapping[int, int]
    lost: Sequence[tuple[int, int]]
    refused: Mapping[int, Mapping[int, str]]


def hear(
    W: Tensor,
    ids: Sequence[int],
    silent: Set[int],
    is_lost: Callable[[int, int], bool],
    sizes: Sequence[float],
    refuse: Refusal = lambda node, senders: {},
) -> Heard:
    """Cuts the links that do not count out of W: an edge counts only if both ends hold each other's update.

    What such a link weighed goes back to both its ends, so that a symmetric W stays doubly stochastic; were only the end that
    heard nothing to leave it out, the mean of all nodes would move.

    Args:
        W: of the round, in the order of `ids`.
        silent: nodes without a usable update. They keep what they have.
        is_lost: (sender, receiver) -> whether the message between them got lost.
        sizes: of the nodes, to lead to the mean weighted by them; all alike for the plain mean.
        refuse: says whose updates a node does not take, of those that reached it.

    Raises:
        ValueError: for a W that does not mix, or for a directed one with lost messages or unequal sizes.
    """
    topology.check_mixing(W, len(ids))
    links = topology.links_of(W)
    both_ways = [pair for i, j in links for pair in ((i, j), (j, i))]
    sent = [(a, b) for a, b in both_ways if W[b, a] > 0]
    missing = {(a, b) for a, b in sent if is_lost(ids[a], ids[b])}
    lost = [(i, j) for i, j in links if {(i, j), (j, i)} & missing]
    if lost and not topology.is_symmetric(W):
        raise ValueError("link_drop needs a symmetric mixing matrix: on a directed graph a lost message moves the mean")
    arrived = [pair for pair in sent if pair not in missing]
    refused = _refused(ids, silent, arrived, refuse)
    silent = silent | {k for k, reasons in refused.items() if k in reasons}  # who refuses its own update has none to send
    unused = [(i, j) for i, j in links if silent & {ids[i], ids[j]} or _one_refuses(refused, ids[i], ids[j])]
    cut = {*lost, *unused}
    W = topology.without_links(W, cut)
    W = topology.for_sizes(W, sizes) if len(set(sizes)) > 1 else W
    rows = {k: dict(zip(ids, row, strict=True)) for k, row in zip(ids, W.tolist(), strict=True)}
    messages = Counter(sender for sender, _ in arrived)
    reached = {k: messages[n] for n, k in enumerate(ids)}
    return Heard(rows, reached, [(ids[i], ids[j]) for i, j in lost], refused)


def _refused(
    ids: Sequence[int], silent: Set[int], arrived: Sequence[tuple[int, int]], refuse: Refusal
) -> dict[int, Mapping[int, str]]:
    """Returns which updates each node that is not silent refuses, its own among them; nodes that take all are left out."""
    senders = {k: [k] for k in ids if k not in silent}
    for a, b in arrived:
        if ids[a] in senders and ids[b] in senders:
            senders[ids[b]].append(ids[a])
    found = {k: refuse(k, heard) for k, heard in senders.items()}
    return {k: reasons for k, reasons in found.items() if reasons}


def _one_refuses(refused: Mapping[int, Mapping[int, str]], i: int, j: int) -> bool:
    return j in refused.get(i, ()) or i in refused.get(j, ())


def loss_rule(drop: LinkDrop, seed: int) -> Callable[[int, int, int], bool]:
    """(t, sender, receiver) -> whether a message got lost: the callable itself, or draws that depend on these and the seed.

    Raises:
        ValueError: for what is no probability.
    """
    if callable(drop):
        return drop
    graphs.check_probability("link_drop", drop)
    return lambda t, sender, receiver: drop > 0 and graphs.lost(seed, t, sender, receiver, drop)
