"""A rank other than 0: it answers the letters that it is sent, with the engine that the run chose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedelta.engines.guards import text_of
from fedelta.engines.letters import Letter
from fedelta.engines.runners._in_process import Answered, Asked, InProcess
from fedelta.engines.runners.sharded.ranks import Leader, LostRankError, left
from fedelta.engines.visits import VisitAll
from fedelta.exchange.channel import Channel
from fedelta.method import Client, ClientState, Method
from fedelta.tree import Message


@dataclass(frozen=True)
class Shard:
    """All that a rank needs to answer.

    Attributes:
        method: as it was settled for the run.
        clients: all of the run, by id; a rank hears of some of them only.
        channel: the run's stages.
        runner: the engine of this rank's part of a cohort.
        facts: plain values for rank 0, which compares them with its own.
    """

    method: Method
    clients: Mapping[int, Client]
    channel: Channel
    runner: InProcess
    facts: Mapping[str, Any]


def shard_of(
    method: Method,
    clients: Sequence[Client],
    channel: Channel,
    runner: VisitAll,
    facts: Mapping[str, Any],
    cohort: Callable[[], int] | None = None,
) -> Shard:
    """Returns the shard of these clients, as the method has them (`Method.population`, which explains `cohort`).

    Raises:
        ValueError: for an engine that is not in-process.
    """
    if not isinstance(runner, InProcess):
        raise ValueError(f"a {type(runner).__name__} does not answer in this process, and cannot be split over several")
    known = method.population(sorted(clients, key=lambda client: client.peer.id), cohort)
    return Shard(method, {client.peer.id: client for client in known}, channel, runner, facts)


def serve(build: Callable[[str], Shard]) -> None:
    """Answers letters until rank 0 has no more runs.

    Args:
        build: makes the shard from the settled config of a run, as rank 0 sends it.

    Raises:
        LostRankError: if rank 0 has ended before the run.
    """
    leader = Leader()
    try:
        _answer_until_the_end(leader, build)
    except LostRankError:
        raise
    except Exception as error:
        leader.tell({"kind": "failed", "reason": text_of(error)})
        raise
    finally:
        left()


def _answer_until_the_end(leader: Leader, build: Callable[[str], Shard]) -> None:
    shard, waiting = None, list[Asked]()
    while (message := leader.hear())["kind"] != "end":
        if shard is None or message["kind"] == "settle":
            try:
                shard = build(message["settings"])
            except Exception as error:  # most likely a file that only this machine lacks: rank 0 says it, for all
                leader.tell({"kind": "failed", "reason": text_of(error)})
                return
            leader.tell({"kind": "ready", "facts": shard.facts})
        elif message["kind"] == "restore":
            _restore(shard, message)
        elif message["kind"] == "letter":
            waiting.append((_read(shard, message), message["memory"]))
        else:
            _answer_all(leader, shard, waiting)
            waiting.clear()
    leader.tell({"kind": "end"})


def _answer_all(leader: Leader, shard: Shard, asked: Sequence[Asked]) -> None:
    """Sends what each client answers, as it comes."""
    before = {letter.peer.id: memory for letter, memory in asked}
    for letter, answered in shard.runner.answers(shard, asked):
        k = letter.peer.id
        try:
            leader.tell(_written(k, answered, before[k]))
        except (TypeError, ValueError) as error:  # of this client: it answers with what cannot travel
            leader.tell(_written(k, error, before[k]))


def _restore(shard: Shard, message: Message) -> None:
    for k in message["ids"]:
        restore: Callable[[Any], None] | None = getattr(shard.clients[k], "restore", None)
        if restore is not None:
            restore(message["base"])


def _read(shard: Shard, message: Message) -> Letter:
    peer = replace(shard.clients[message["id"]].peer, base_version=message["base_version"])
    return Letter(message["t"], peer, message["message"], message["size"], message["remembered"])


def _written(k: int, answered: Answered, before: ClientState) -> Message:
    if isinstance(answered, Exception):
        return {"kind": "refusal", "id": k, "reason": text_of(answered)}
    reply, memory = answered
    return {
        "kind": "reply",
        "id": k,
        "content": reply.content,
        "metrics": dict(reply.metrics),
        "base_version": reply.base_version,
        "memory": None if memory is before else memory,  # the same is known at rank 0
    }
