"""A run with a server: `federate`.

It returns a generator of rounds; the caller owns the loop, and stops by leaving it. What a round computes depends on the seed,
the round and the ids alone, never on the order in which clients were given.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from fedelta import sampling
from fedelta.engines.choice import visitor
from fedelta.engines.conduct import Outcome, conduct, largest_used, visited
from fedelta.engines.federation import Federation, counted, demand_quorum, ledger_of, shares_of, weigh
from fedelta.engines.guards import warn_of_claims
from fedelta.engines.letters import sizes_of
from fedelta.engines.participants import samples
from fedelta.engines.rounds import Round, Snapshot
from fedelta.engines.settings import RunSettings, Score, Weights, check_given
from fedelta.engines.visits import VisitAll, leave_out, screened
from fedelta.exchange.channel import Channel
from fedelta.exchange.spool import Spooling
from fedelta.method import Client, Method, State
from fedelta.seeding import SERVER
from fedelta.tree import Adapter


def federate(
    method: Method,
    clients: Sequence[Client],
    template: Adapter | None = None,
    *,
    rounds: int,
    cohort: sampling.CohortRule = sampling.everyone,
    seed: int = 0,
    weights: Weights | None = None,
    max_share: float | None = None,
    quorum: float = 0.5,
    score: Score | None = None,
    start: Snapshot | None = None,
    debug: bool = False,
    engine: str | VisitAll = "auto",
    token_budget: int | None = None,
    spool: Spooling = "auto",
    channel: Channel = Channel(),  # noqa: B008 - frozen and empty
) -> Iterator[Round]:
    """Runs a method with a server; yields each round as it ends.

    A client that fails, or sends what does not fit or is far larger than what the others send, is left out with a warning on
    the logger "fedelta.engines".

    Args:
        method: what to run.
        clients: with different ids; a list, or `population.ClientsOnDemand`.
        template: the adapter to start from, at the largest ranks; by default what the clients hold. To continue from a
            trained adapter give it here, and its parts to the clients: their A must be its leading rows, to the last bit.
        rounds: of the whole run, those before `start` included.
        cohort: who takes part in which round.
        seed: of the run: cohorts and the method's own draws.
        weights: of the updates: "examples" (None, too) is p_k = n_k / n over those that arrived, "uniform" all alike.
        max_share: the largest weight of an update, in (0, 1], whatever number of examples its sender claims; the others share
            what is cut off. Below one over their number it makes all weights alike.
        quorum: the updates that a round needs, as an int, or as a fraction of its cohort (1.0 is all of it).
        score: rates uploads, for a method that needs validation.
        start: the snapshot after which to go on.
        debug: a client's error is raised, with a note of client, round and stage, rather than turned into a warning.
        engine: "sequential", one client after another; "batched", many in one pass of the model; "auto" takes the faster; or a
            function that visits a cohort (`engines.visits.VisitAll`).
        token_budget: tokens in a pass of the batched engine; chosen for the device if not given.
        spool: whether updates wait for their aggregation on disk: True, False, or "auto" for those beyond the first GiB of a
            round. The numbers are the same to the bit.
        channel: stages between the method and the wire; none by default.

    Raises:
        TypeError: for a method, clients or a template that are of another kind.
        ValueError: before the first round, for a federation that cannot run, saying why.
        QuorumError: in a round with too few usable updates, or with some that lead to no finite state.
    """
    settings = RunSettings(
        rounds=rounds,
        seed=seed,
        cohort=cohort,
        weights=weights,
        max_share=max_share,
        quorum=quorum,
        score=score,
        start=start,
        debug=debug,
        engine=engine,
        token_budget=token_budget,
        spool=spool,
        channel=channel,
    )
    check_given(method, clients, template)
    method = method.for_topology(rounds, lambda: 0.0)
    federation = Federation.prepare(method, clients, template, settings)
    visit_all = visitor(settings, samples(federation.clients))
    if settings.weights != "uniform":
        warn_of_claims(federation.peers, max_share)

    def outcome(t: int, state: State) -> Outcome:
        ids = federation.cohort(t)
        needed = sampling.share(federation.settings.quorum, len(ids), "quorum", up=True)
        began = time.perf_counter()
        visits = visited(federation, visit_all, t, dict.fromkeys(ids, state))
        training = time.perf_counter() - began
        visits = screened(federation, t, visits)
        demand_quorum(t, visits, needed)
        shares = shares_of([v.peer for v in visits], settings.weights or "examples")
        sizes, updates = sizes_of(visits), weigh(visits, shares, max_share)
        with counted(ledger_of(visits)):
            after, used = federation.aggregated(t, state, updates, sizes)
        if len(used) < len(updates):
            failed = {u.sender.id for u in updates} - {u.sender.id for u in used}
            reason = "with it, the largest, the updates cannot be aggregated"
            visits = leave_out(federation, t, visits, dict.fromkeys(failed, reason))
            demand_quorum(t, visits, needed)
        return Outcome(visits, used, after, ledger_of(visits), {SERVER: largest_used(used, sizes)}, training=training)

    return conduct(federation, visit_all, outcome, lambda: method.init(federation.template, federation.peers, seed=seed))
