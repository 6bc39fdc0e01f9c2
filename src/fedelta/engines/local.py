"""All clients in this process, one after another: `federate` with a server, `gossip` without.

Both return generators of rounds; the caller owns the loop, and stops by leaving it. What a round computes depends on the seed,
the round and the ids alone, never on the order in which clients were given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from fedelta import sampling, topology
from fedelta.engines.batched import Engine, choose
from fedelta.engines.federation import Federation, Score, Visit, demand_quorum, logger, weigh
from fedelta.engines.links import LinkDrop, hear, loss_rule
from fedelta.engines.rounds import Round, Snapshot
from fedelta.method import Client, ClientUpdate, Method, State
from fedelta.spool import Spooling
from fedelta.topology import Mixing
from fedelta.tree import Adapter
from fedelta.wire import Ledger


def federate(
    method: Method,
    clients: Sequence[Client],
    template: Adapter | None = None,
    *,
    rounds: int,
    cohort: sampling.CohortRule = sampling.everyone,
    seed: int = 0,
    weights: Literal["examples", "uniform"] = "examples",
    quorum: float = 1,
    score: Score | None = None,
    start: Snapshot | None = None,
    debug: bool = False,
    engine: Engine = "auto",
    token_budget: int | None = None,
    spool: Spooling = "auto",
) -> Iterator[Round]:
    """Runs a method with a server; yields each round as it ends.

    A client that fails, or sends what does not fit, is left out with a warning on the logger "fedelta.engines".

    Args:
        method: what to run.
        clients: with different ids.
        template: the adapter to start from, at the largest ranks; by default what the clients hold. To continue from a
            trained adapter give it here, and its parts to the clients: their A must be its leading rows, to the last bit.
        rounds: of the whole run, those before `start` included.
        cohort: who takes part in which round.
        seed: of the run: cohorts and the method's own draws.
        weights: of the updates: p_k = n_k / n over those that arrived, or all alike.
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
        QuorumError: in a round with too few usable updates.
    """
    method = method.for_topology(rounds, lambda: 0.0)
    run = Federation.prepare(method, clients, template, seed, score, debug, spool)
    visit_all = choose(engine, run.clients.values(), token_budget).visits()
    sizes = _sizes(run, weights)

    def play(t: int, state: State) -> _Played:
        ids = run.cohort(t, cohort)
        needed = sampling.share(quorum, len(ids), "quorum", up=True)
        visits = visit_all(run, t, dict.fromkeys(ids, state))
        demand_quorum(t, visits, needed)
        updates = weigh(visits, sizes)
        ledger = Ledger({v.peer.id: v.down for v in visits}, {v.peer.id: v.up for v in visits if v.up is not None})
        return _Played(visits, updates, method.aggregate(t, state, updates), ledger)

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

    Arguments that are not listed mean what they mean in `federate`.

    Args:
        mixing: the matrix W, or t -> W, with rows and columns in the order of ids; `fedelta.topology` has many. On the
            complete graph every node computes what a server with uniform weights would.
        weights: "examples" leads to the mean weighted by the nodes' examples (`topology.for_sizes`).
        link_drop: the probability that a message gets lost, each direction on its own, or (t, sender, receiver) -> whether
            it did. `Round.lost_links` has the links that did not count for it. Needs a symmetric W.

    Raises:
        ValueError: before the first round, for a federation that cannot run; in a round, for a W that does not mix.
        QuorumError: in a round with too few usable updates.
    """
    if method.coordinates == "base":
        raise ValueError(f"{type(method).__name__} moves the base model, which nodes without a server would move apart")
    if not method.decentralised:
        logger.warning("%s is not made for gossip: its nodes may drift apart", type(method).__name__)
    is_lost = loss_rule(link_drop, seed)
    method = method.for_topology(rounds, lambda: topology.expected_rho_sq(mixing))
    run = Federation.prepare(method, clients, template, seed, score, debug, spool)
    visit_all = choose(engine, run.clients.values(), token_budget).visits()
    ids, sizes = list(run.clients), [*_sizes(run, weights).values()]
    needed = sampling.share(quorum, len(ids), "quorum", up=True)

    def play(t: int, state: State) -> _Played:
        visits = visit_all(run, t, {k: state[str(k)] for k in ids})
        demand_quorum(t, visits, needed)
        silent = {v.peer.id for v in visits if v.update is None}
        heard = hear(topology.at(mixing, t), ids, silent, partial(is_lost, t), sizes)
        used = {k: weigh(visits, heard.rows[k]) for k in ids}
        after = {str(k): method.aggregate(t, state[str(k)], used[k]) if used[k] else state[str(k)] for k in ids}
        up = {v.peer.id: v.up * heard.reached[v.peer.id] for v in visits if v.up is not None}
        return _Played(visits, weigh(visits, dict.fromkeys(ids, 1.0)), after, Ledger({}, up), heard.lost)

    def init() -> State:
        return dict.fromkeys(map(str, ids), method.init(run.template, run.peers, seed=seed))

    return _rounds(run, rounds, start, play, init, gossip=True)


def _sizes(run: Federation, weights: str) -> dict[int, float]:
    if weights not in ("examples", "uniform"):
        raise ValueError(f"weights must be 'examples' or 'uniform', got {weights!r}")
    return {p.id: float(p.num_examples) if weights == "examples" else 1.0 for p in run.peers}


@dataclass(frozen=True, eq=False)
class _Played:
    visits: Sequence[Visit]
    updates: Sequence[ClientUpdate]
    state: State
    ledger: Ledger
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
    run.remember(t, played.visits)
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
