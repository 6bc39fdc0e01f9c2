"""The server's side of a run at real sites: letters as parcels, and what of an answer is believed. Any carrier will do.

A site's answer is a `Parcel`, or the error for which none came. Whatever is wrong with it, the client is left out of the round
by name, as in a run in one process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fedelta.engines.federation import Federation
from fedelta.engines.guards import ElsewhereError
from fedelta.engines.letters import Letter, Reply, Visit
from fedelta.engines.rounds import Round
from fedelta.engines.visits import refuse
from fedelta.exchange import wire
from fedelta.exchange.parcels import Parcel
from fedelta.peers import Peer

Terms = Mapping[str, Any]
"""What of the server's config changes numbers, as it travels in the header of every parcel."""

ROOM = 1 << 20
"""Bytes that a reply may be longer than its numbers: names, shapes, notes."""

SLACK = 4
"""Times the numbers that a method declares (`Method.traffic`), at eight bytes each, beyond which a reply is not read."""


def train_parcel(letter: Letter, run: str, terms: Terms, body: bytes) -> Parcel:
    """Returns the parcel that carries a letter.

    Args:
        letter: to a client.
        run: the name under which the site keeps what it remembers.
        terms: of the run.
        body: the letter's message, encoded.
    """
    header = {
        "run": run,
        "terms": terms,
        "t": letter.t,
        "remembered": letter.remembered,
        "base_version": letter.peer.base_version,
    }
    return Parcel("train", header, body)


def opened(federation: Federation, t: int, letter: Letter, run: str, answer: Parcel | Exception) -> Reply | Visit:
    """Returns the reply in an answer, for `receive`; or the visit of a client that is left out, since there is none in it.

    Two steps, so that the caller can let go of the answer's bytes before it looks at the tensors that were made of them.

    Args:
        federation: of the run.
        t: the round.
        letter: as it was sent.
        run: the run's name at the sites.
        answer: the parcel, or why there is none.
    """
    if isinstance(answer, Exception):
        return refuse(federation, t, letter, "site", answer)
    try:
        return reply_of(letter, run, answer, longest_reply(federation, t, letter.peer))
    except ElsewhereError as error:
        return refuse(federation, t, letter, "local update", error)
    except Exception as error:
        return refuse(federation, t, letter, "upload", error, len(answer.body))


def longest_reply(federation: Federation, t: int, peer: Peer) -> int:
    """Returns the bytes beyond which a client's reply is not even decoded: far above what the method declares."""
    numbers = max(federation.method.traffic(t, federation.template, peer, [peer]))
    return SLACK * 8 * numbers + ROOM


def reply_of(letter: Letter, run: str, parcel: Parcel, longest: int) -> Reply:
    """Returns the reply that a parcel holds; whether its numbers can be used is for `engines.visits.receive` to say.

    Raises:
        ElsewhereError: for a refusal, with the site's reason.
        ValueError: for a parcel that does not answer this letter, is too long, or holds no message.
    """
    _demand_answer("train", letter.t, run, parcel)
    if len(parcel.body) > longest:
        raise ValueError(f"the reply has {len(parcel.body)} bytes, where {longest} are the most that it could need")
    metrics: Any = parcel.header.get("metrics")
    if not isinstance(metrics, Mapping):
        raise ValueError(f"the reply's metrics are a {type(metrics).__name__}, not figures by name")
    return Reply(wire.decode(parcel.body), metrics, parcel.header.get("base_version", 0))


def evaluation_parcel(done: Round, peer: Peer, run: str, terms: Terms) -> Parcel:
    """Returns the parcel that asks a site to score, on its own rows, what its participant runs after a round.

    The whole base goes along, since what a site still holds of it is not known here.
    """
    message = done.method.broadcast(done.t + 1, done.node_state(peer), replace(peer, base_version=0))
    header = {"run": run, "terms": terms, "t": done.t, "remembered": done.snapshot.client_rounds.get(peer.id)}
    return Parcel("evaluate", header, wire.encode(message))


def scores_of(done: Round, run: str, parcel: Parcel) -> dict[str, float]:
    """Returns the scores in a site's answer to `evaluation_parcel`; none for a site without rows to score on.

    Raises:
        ElsewhereError: for a refusal, with the site's reason.
        ValueError: for a parcel that is no such answer.
    """
    _demand_answer("evaluate", done.t, run, parcel)
    scores: Any = parcel.header.get("scores")
    if not isinstance(scores, Mapping) or not all(_is_number(x) for x in scores.values()):
        raise ValueError(f"the scores are {scores!r:.60}, not numbers by name")
    return {str(name): float(value) for name, value in scores.items()}


def _demand_answer(kind: str, t: int, run: str, parcel: Parcel) -> None:
    """Raises unless a parcel answers what was asked, in this run and this round."""
    if parcel.kind == "refusal":
        raise ElsewhereError(str(parcel.header.get("reason", "it gives no reason")))
    if parcel.kind != kind:
        raise ValueError(f"the answer is of kind {parcel.kind!r}, where {kind!r} was asked")
    if parcel.header.get("run") != run:
        raise ValueError(f"the answer is of another run, {parcel.header.get('run')!r:.40}")
    if parcel.header.get("t") != t:
        raise ValueError(f"the answer is to round {parcel.header.get('t')!r:.20}, this is round {t}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
