"""A run without a server: `gossip`. Each node is the server of its own neighbourhood."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from fedelta import sampling, topology
from fedelta.engines.choice import visitor
from fedelta.engines.conduct import Outcome, conduct, largest_used, visited
from fedelta.engines.federation import Federation, counted, demand_quorum, logger, shares_of, weigh
from fedelta.engines.guards import Size, overclaimed, oversized
from fedelta.engines.letters import Visit, sizes_of, steps_of
from fedelta.engines.participants import samples
from fedelta.engines.rounds import Round, Snapshot
from fedelta.engines.settings import RunSettings, Score, Weights, check_given
from fedelta.engines.visits import VisitAll, leave_out
from fedelta.exchange.channel import Channel
from fedelta.exchange.spool import Spooling
from fedelta.exchange.wire import Ledger
from fedelta.merging import ClientUpdate
from fedelta.method import Client, Method, State
from fedelta.topology import Mixing
from fedelta.topology.links import LinkDrop, hear, loss_rule
from fedelta.tree import Adapter


def gossip(
    method: Method,
    clients: Sequence[Client],
    template: Adapter | None = None,
    *,
    rounds: int,
    mixing: Mixing,
    weights: Weights | None = None,
    link_drop: LinkDrop = 0.0,
    seed: int = 0,
    quorum: float = 0.5,
    score: Score | None = None,
    start: Snapshot | None = None,
    debug: bool = False,
    engine: str | VisitAll = "auto",
    token_budget: int | None = None,
    spool: Spooling = "auto",
    channel: Channel = Channel(),  # noqa: B008 - frozen and empty
) -> Iterator[Round]:
    """Runs a method without a server: each node trains, sends to its neighbours, and aggregates with its row of W.

    The states of `Round` and `Snapshot` are mappings from a node's id, as a string, to its own state. A link counts only if
    both ends hold the other's update: what it weighed else goes back to both. So a node that is left out keeps its state, one
    without a neighbour in a round its own update. The ledger counts an upload once for each neighbour that it reached.

    Arguments that are not listed mean what they mean in `federate`.

    Args:
        mixing: the matrix W, or t -> W, with rows and columns in the order of ids; `fedelta.topology` has many. On the
            complete graph every node computes what a server with uniform weights would.
        weights: "uniform" (None, too) leads to the plain mean, "examples" to the mean weighted by the nodes' examples
            (`topology.for_sizes`).
        link_drop: the probability that a message gets lost, each direction on its own, or (t, sender, receiver) -> whether
            it did. `Round.lost_links` has the links that did not count for it. Needs a symmetric W.

    Raises:
        TypeError: for a method, clients, a template or a mixing that are of another kind.
        ValueError: before the first round, for a federation that cannot run, a fixed W that does not mix among it; in a round,
            for a W of that round that does not.
        QuorumError: in a round with too few usable updates, or with some that lead to no finite state.
    """
    settings = RunSettings(
        rounds=rounds,
        seed=seed,
        weights=weights,
        quorum=quorum,
        link_drop=link_drop,
        score=score,
        start=start,
        debug=debug,
        engine=engine,
        token_budget=token_budget,
        spool=spool,
        channel=channel,
    )
    check_given(method, clients, template)
    check_graph(mixing)
    channel.demand_no_server()
    is_lost = loss_rule(link_drop, seed)
    method = settled(method, rounds, mixing)
    federation = Federation.prepare(method, clients, template, settings)
    visit_all = visitor(settings, samples(federation.clients))
    ids, shares = list(federation.clients), [*shares_of(federation.peers, settings.weights or "uniform").values()]
    needed = sampling.share(quorum, len(ids), "quorum", up=True)
    if isinstance(mixing, Tensor):
        topology.check_mixing(mixing, len(ids))
        try_on_a_link(partial(is_lost, 0 if start is None else start.t), mixing, ids)

    def outcome(t: int, state: State) -> Outcome:
        began = time.perf_counter()
        visits = visited(federation, visit_all, t, {k: state[str(k)] for k in ids})
        training = time.perf_counter() - began
        demand_quorum(t, visits, needed)
        silent = {v.peer.id for v in visits if v.update is None}
        sizes, steps = sizes_of(visits), steps_of(visits)

        def refused(node: int, senders: Sequence[int]) -> Mapping[int, str]:
            return refused_at(federation, node, senders, sizes, steps)

        heard = hear(topology.at(mixing, t), ids, silent, partial(is_lost, t), shares, refused)
        visits = _without_refused(federation, t, visits, heard.refused)
        demand_quorum(t, visits, needed)
        up = {v.peer.id: v.up * heard.reached[v.peer.id] for v in visits if v.up is not None}
        with counted(Ledger({}, up)):
            nodes = {k: aggregated_at(federation, t, state[str(k)], visits, heard.rows[k], sizes) for k in ids}
        after = {str(k): node.state for k, node in nodes.items()}
        largest = {k: node.largest for k, node in nodes.items()}
        lost = [*heard.lost, *((k, sender) for k, node in nodes.items() for sender in node.without)]
        return Outcome(visits, weigh(visits, dict.fromkeys(ids, 1.0)), after, Ledger({}, up), largest, lost, training)

    def init() -> State:
        return dict.fromkeys(map(str, ids), method.init(federation.template, federation.peers, seed=seed))

    return conduct(federation, visit_all, outcome, init, gossip=True)


def check_graph(mixing: object) -> None:
    """Raises TypeError for what is no graph, and ValueError for a fixed W that does not mix."""
    if isinstance(mixing, Tensor):
        topology.check_mixing(mixing, len(mixing) if mixing.ndim else 0)
    elif not callable(mixing):
        named = f", such as topology.{mixing}(n)" if mixing in topology.TOPOLOGIES else ""
        raise TypeError(
            f"mixing must be a mixing matrix W or a function t -> W, got {mixing!r:.60}: fedelta.topology has many{named}; a "
            "name belongs to federation.topology of a config"
        )


def try_on_a_link(is_lost: Callable[[int, int], bool], W: Tensor, ids: Sequence[int]) -> None:
    """Raises ValueError for a rule of lost messages that fails on the first link of a fixed W."""
    for receiver, sender in W.clone().fill_diagonal_(0).nonzero().tolist()[:1]:
        try:
            is_lost(ids[sender], ids[receiver])
        except Exception as error:
            pair = f"from {ids[sender]} to {ids[receiver]}"
            raise ValueError(
                f"link_drop is asked as (t, sender, receiver), and fails on the message {pair}: {error!r}"
            ) from error


def settled(method: Method, rounds: int, mixing: Mixing) -> Method:
    """Returns a method as it is used without a server on this graph; raises ValueError for one that cannot be."""
    if method.coordinates == "base":
        raise ValueError(f"{type(method).__name__} moves the base model, which nodes without a server would move apart")
    if not method.decentralised:
        logger.warning("%s is not made for gossip: its nodes may drift apart", type(method).__name__)
    return method.for_topology(rounds, lambda: topology.expected_rho_sq(mixing))


def refused_at(
    federation: Federation, node: int, senders: Sequence[int], sizes: Mapping[int, Size], steps: Mapping[int, float]
) -> Mapping[int, str]:
    """Returns by sender why a node does not take an update: it is far larger, or claims far more steps, than the others there.

    Args:
        federation: remembers what each node accepted in the last rounds.
        node: its id.
        senders: of the updates that the node holds, its own included.
        sizes, steps: of the updates, by sender.
    """
    too_large = oversized({k: sizes[k] for k in senders}, federation.sizes.get(node, ()))
    return overclaimed({k: steps[k] for k in senders if k in steps}) | too_large


@dataclass(frozen=True, eq=False)
class AtNode:
    """Holds the result of a round at one node.

    Attributes:
        state: its next one; the old one where it held no update.
        used: the updates that it aggregated, with their weights.
        largest: size of them.
        without: the senders of updates that it held and could not use. Their links count at the other end alone, so that the
            mean over nodes moves, which the list of links shows.
    """

    state: State
    used: Sequence[ClientUpdate]
    largest: Size
    without: Sequence[int]


def aggregated_at(
    federation: Federation, t: int, state: State, visits: Sequence[Visit], row: Mapping[int, float], sizes: Mapping[int, Size]
) -> AtNode:
    """Aggregates the updates that a node holds, each with its weight in the node's row of W, in which all peers stand."""
    given = weigh(visits, row)
    after, used = federation.aggregated(t, state, given, sizes) if given else (state, given)
    kept = {u.sender.id for u in used}
    return AtNode(after, used, largest_used(used, sizes), [u.sender.id for u in given if u.sender.id not in kept])


def _without_refused(
    federation: Federation, t: int, visits: Sequence[Visit], refused: Mapping[int, Mapping[int, str]]
) -> Sequence[Visit]:
    """The visits without the updates that their own nodes refuse; what one node refuses of another costs it a link."""
    for node, reasons in refused.items():
        for sender in reasons.keys() - {node}:
            logger.warning("node %s does not take the update of client %s in round %s: %s", node, sender, t, reasons[sender])
    return leave_out(federation, t, visits, {k: reasons[k] for k, reasons in refused.items() if k in reasons})
