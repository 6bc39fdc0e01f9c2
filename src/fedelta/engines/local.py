"""All clients in this process, one after another: `federate` with a server, `gossip` without.

Both return generators of rounds; the caller owns the loop, and stops by leaving it. What a round computes depends on the seed,
the round and the ids alone, never on the order in which clients were given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from fedelta import sampling, topology
from fedelta.engines.federation import Federation, Score, Visit, demand_quorum, logger, sizes_of, weigh
from fedelta.engines.guards import Size, largest_of, oversized, warn_of_claims
from fedelta.engines.rounds import Round, Snapshot
from fedelta.engines.runners.batched import Engine, choose
from fedelta.exchange.spool import Spooling
from fedelta.exchange.wire import Ledger
from fedelta.merging import ClientUpdate
from fedelta.method import Client, Method, State
from fedelta.seeding import SERVER
from fedelta.topology import Mixing
from fedelta.topology.links import LinkDrop, hear, loss_rule
from fedelta.tree import Adapter


def federate(
    method: Method,
    clients: Sequence[Client],
    template: Adapter | None = None,
    *,
    rounds: int,
    cohort: sampling.CohortRule = sampling.everyone,
    seed: int = 0,
    weights: Literal["examples", "uniform"] = "examples",
    max_share: float | None = None,
    quorum: float = 1,
    score: Score | None = None,
    start: Snapshot | None = None,
    debug: bool = False,
    engine: Engine = "auto",
    token_budget: int | None = None,
    spool: Spooling = "auto",
) -> Iterator[Round]:
    """Runs a method with a server; yields each round as it ends.

    A client that fails, or sends what does not fit or is far larger than what the others send, is left out with a warning on
    the logger "fedelta.engines".

    Args:
        method: what to run.
        clients: with different ids.
        template: the adapter to start from, at the largest ranks; by default what the clients hold. To continue from a
            trained adapter give it here, and its parts to the clients: their A must be its leading rows, to the last bit.
        rounds: of the whole run, those before `start` included.
        cohort: who takes part in which round.
        seed: of the run: cohorts and the method's own draws.
        weights: of the updates: p_k = n_k / n over those that arrived, or all alike.
        max_share: the largest weight of an update, in (0, 1], whatever number of examples its sender claims; the others share
            what is cut off. Below one over their number it makes all weights alike.
        quorum: the updates that a round needs, as an int, or as a fraction of its cohort (1.0 is all of it).
        score: rates uploads, for a method that needs validation.
        start: the snapshot after which to go on.
        debug: a client's error is raised, with a note of client, round and stage, rather than turned into a warning.
        engine: "sequential", one client after another; "batched", many in one pass of the model; "auto" takes the faster.
        token_budget: tokens in a pass of the batched engine; chosen for the device if not given.
        spool: whether updates wait for their aggregation on disk: True, False, or "auto" for those beyond the first GiB of a
            round. The numbers are the same to the bit.

    Raises:
        ValueError: before the first round, for a federation that cannot run, saying why.
        QuorumError: in a round with too few usable updates, or with some that lead to no finite state.
    """
    method = method.for_topology(rounds, lambda: 0.0)
    run = Federation.prepare(method, clients, template, seed, score, debug, spool)
    visit_all = choose(engine, run.clients.values(), token_budget).visits()
    shares = _shares(run, weights)
    if max_share is not None and not 0 < max_share <= 1:
        raise ValueError(f"max_share must lie in (0, 1], got {max_share}")
    if weights == "examples":
        warn_of_claims(run.peers, max_share)

    def play(t: int, state: State) -> _Played:
        ids = run.cohort(t, cohort)
        needed = sampling.share(quorum, len(ids), "quorum", up=True)
        visits = run.screened(t, visit_all(run, t, dict.fromkeys(ids, state)))
        demand_quorum(t, visits, needed)
        sizes, updates = sizes_of(visits), weigh(visits, shares, max_share)
        after, used = run.aggregated(t, state, updates, sizes)
        if len(used) < len(updates):
            failed = {u.sender.id for u in updates} - {u.sender.id for u in used}
            visits = run.leave_out(t, visits, dict.fromkeys(failed, "with it, the largest, the updates cannot be aggregated"))
            demand_quorum(t, visits, needed)
        ledger = Ledger({v.peer.id: v.down for v in visits}, {v.peer.id: v.up for v in visits if v.up is not None})
        return _Played(visits, used, after, ledger, {SERVER: _largest(used, sizes)})

    return _rounds(run, rounds, start, play, lambda: method.init(run.template, run.peers, seed=seed))


def gossip(
    method: Method,
    clients: Sequence[Client],
    template: Adapter | None = None,
    *,
    rounds: int,
    mixing: Mixing,
    weights: Literal["examples", "uniform"] = "uniform",
    link_drop: LinkDrop = 0.0,
    seed: int = 0,
    quorum: float = 1,
    score: Score | None = None,
    start: Snapshot | None = None,
    debug: bool = False,
    engine: Engine = "auto",
    token_budget: int | None = None,
    spool: Spooling = "auto",
) -> Iterator[Round]:
    """Runs a method without a server: each node trains, sends to its neighbours, and aggregates with its row of W.

    The states of `Round` and `Snapshot` are mappings from a node's id, as a string, to its own state. A link counts only if
    both ends hold the other's update: what it weighed else goes back to both. So a node that is left out keeps its state, one
    without a neighbour in a round its own update. The ledger counts an upload once for each neighbour that it reached.

    Args:
        mixing: the matrix W, or t -> W, with rows and columns in the order of ids; `fedelta.topology` has many. On the
            complete graph every node computes what a server with uniform weights would.
        weights: "examples" leads to the mean weighted by the nodes' examples (`topology.for_sizes`).
        link_drop: the probability that a message gets lost, each direction on its own, or (t, sender, receiver) -> whether
            it did. `Round.lost_links` has the links that did not count for it. Needs a symmetric W.
        method, clients, template, rounds, seed, quorum, score, start, debug, engine, token_budget, spool: as in `federate`.

    Raises:
        ValueError: before the first round, for a federation that cannot run; in a round, for a W that does not mix.
        QuorumError: in a round with too few usable updates, or with some that lead to no finite state.
    """
    if method.coordinates == "base":
        raise ValueError(f"{type(method).__name__} moves the base model, which nodes without a server would move apart")
    if not method.decentralised:
        logger.warning("%s is not made for gossip: its nodes may drift apart", type(method).__name__)
    is_lost = loss_rule(link_drop, seed)
    method = method.for_topology(rounds, lambda: topology.expected_rho_sq(mixing))
    run = Federation.prepare(method, clients, template, seed, score, debug, spool)
    visit_all = choose(engine, run.clients.values(), token_budget).visits()
    ids, shares = list(run.clients), [*_shares(run, weights).values()]
    needed = sampling.share(quorum, len(ids), "quorum", up=True)

    def play(t: int, state: State) -> _Played:
        visits = visit_all(run, t, {k: state[str(k)] for k in ids})
        demand_quorum(t, visits, needed)
        silent, sizes = {v.peer.id for v in visits if v.update is None}, sizes_of(visits)

        def refuse(node: int, senders: Sequence[int]) -> Mapping[int, str]:
            return oversized({k: sizes[k] for k in senders}, run.sizes.get(node, ()))

        heard = hear(topology.at(mixing, t), ids, silent, partial(is_lost, t), shares, refuse)
        visits = _without_refused(run, t, visits, heard.refused)
        demand_quorum(t, visits, needed)
        given = {k: weigh(visits, heard.rows[k]) for k in ids}
        done = {k: run.aggregated(t, state[str(k)], own, sizes) if own else (state[str(k)], own) for k, own in given.items()}
        after = {str(k): own for k, (own, _) in done.items()}
        largest = {k: _largest(used, sizes) for k, (_, used) in done.items()}
        up = {v.peer.id: v.up * heard.reached[v.peer.id] for v in visits if v.up is not None}
        return _Played(visits, weigh(visits, dict.fromkeys(ids, 1.0)), after, Ledger({}, up), largest, heard.lost)

    def init() -> State:
        return dict.fromkeys(map(str, ids), method.init(run.template, run.peers, seed=seed))

    return _rounds(run, rounds, start, play, init, gossip=True)


def _without_refused(
    run: Federation, t: int, visits: Sequence[Visit], refused: Mapping[int, Mapping[int, str]]
) -> Sequence[Visit]:
    """The visits without the updates that their own nodes refuse; what one node refuses of another costs it a link."""
    for node, reasons in refused.items():
        for sender in reasons.keys() - {node}:
            logger.warning("node %s does not take the update of client %s in round %s: %s", node, sender, t, reasons[sender])
    return run.leave_out(t, visits, {k: reasons[k] for k, reasons in refused.items() if k in reasons})


def _largest(updates: Sequence[ClientUpdate], sizes: Mapping[int, Size]) -> Size:
    return largest_of([sizes[u.sender.id] for u in updates])


def _shares(run: Federation, weights: str) -> dict[int, float]:
    if weights not in ("examples", "uniform"):
        raise ValueError(f"weights must be 'examples' or 'uniform', got {weights!r}")
    return {p.id: float(p.num_examples) if weights == "examples" else 1.0 for p in run.peers}


@dataclass(frozen=True, eq=False)
class _Played:
    visits: Sequence[Visit]
    updates: Sequence[ClientUpdate]
    state: State
    ledger: Ledger
    largest: Mapping[int, Size]
    lost: Sequence[tuple[int, int]] = ()


def _rounds(
    run: Federation,
    count: int,
    start: Snapshot | None,
    play: Callable[[int, State], _Played],
    init: Callable[[], State],
    *,
    gossip: bool = False,
) -> Iterator[Round]:
    """The rounds that are left. A round is remembered only once it is whole: an error in it changes nothing."""
    if start is not None:
        run.take_over(start)
    state = start.state if start is not None else init()

    def generate(state: State) -> Iterator[Round]:
        for t in range(start.t if start is not None else 0, count):
            began = time.perf_counter()
            run.spool.begin()
            done = _round(run, t, state, play(t, state), began, gossip)
            state = done.state
            yield done
            del done  # or its updates would stay until the next ones are there

    return generate(state)


def _round(run: Federation, t: int, before: State, played: _Played, began: float, gossip: bool) -> Round:
    run.remember(t, played.visits, played.largest)
    return Round(
        t=t,
        before=before,
        updates=played.updates,
        state=played.state,
        dropped={v.peer.id: v.reason for v in played.visits if v.reason is not None},
        bytes=played.ledger,
        seconds=time.perf_counter() - began,
        method=run.method,
        template=run.template,
        peers=run.peers,
        snapshot=run.snapshot(t + 1, played.state),
        gossip=gossip,
        lost_links=played.lost,
    )
