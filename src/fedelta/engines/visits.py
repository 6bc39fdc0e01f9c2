"""A visit: what one client is sent in a round, what it answers, and what the server makes of it.

The three steps are the seam between server and client. What crosses it, a `Letter` down and a `Reply` up, is bytes or could be;
an engine is a choice of where `answer` runs:

    letter         = send(federation, t, state, k)                      at the server
    reply, memory  = answer(method, client, channel, letter, memory)    at the client, which knows no `Federation`
    visit          = receive(federation, t, state, letter, reply)       at the server

`memory` is the client's own: it comes beside the reply, and the reply has no place for it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, cast

from torch import Tensor

from fedelta import tree
from fedelta.engines.federation import Federation
from fedelta.engines.guards import NOT_FINITE, Size, check_metrics, check_upload, overclaimed, oversized, reason_of, size_of
from fedelta.engines.letters import Letter, Reply, Visit, sizes_of, steps_of
from fedelta.exchange import wire
from fedelta.exchange.channel import OWN, Channel
from fedelta.merging import ClientUpdate
from fedelta.method import Client, ClientState, Method, State, TrainResult, check_count
from fedelta.peers import Peer, template_for
from fedelta.seeding import SERVER
from fedelta.tree import Adapter, BaseDelta, Message, find

logger = logging.getLogger("fedelta.engines")


VisitAll: TypeAlias = Callable[[Federation, int, Mapping[int, State]], list[Visit]]
"""An engine: (federation, t, the state that each client of the cohort is served from, by id) -> the visits in that order.

One that keeps clients' memories in this process has them as its attribute `memories` (`engines.memories.Memories`), and the
run's snapshots then hold them, too.
"""


def send(federation: Federation, t: int, state: State, k: int) -> Letter:
    """Returns the letter to client k: the method's broadcast, through the channel, its bytes counted."""
    peer = federation.peer(k)
    message = federation.channel.down(t, peer, federation.method.broadcast(t, state, peer))
    return Letter(t, peer, message, wire.size(message), federation.remembered.get(k))


def answer(method: Method, client: Client, channel: Channel, letter: Letter, memory: ClientState) -> tuple[Reply, ClientState]:
    """Carries out a round's local update at the client; returns what it sends, and what it remembers.

    Args:
        method: the server's method, with the same hyper-parameters.
        client: the door to data and model.
        channel: the run's stages.
        letter: as it was sent.
        memory: what this function returned when the client last took part and its answer counted; empty at first.

    Raises:
        Exception: whatever the method or the client raises; an engine turns it into `refuse`.
    """
    recorder = _Recorder(client)
    down = channel.arrived(letter.t, letter.peer, letter.message)
    content, kept = method.local_update(letter.t, down, memory, cast("Client", recorder))
    content = tree.map_tensors(Tensor.detach, content)  # a graph would grow with every round
    content, of_stages = channel.encode(letter.t, letter.peer, down, content, memory.get(OWN, {}))
    if of_stages or OWN in kept:
        kept = {**kept, OWN: of_stages}
    return Reply(content, recorder.metrics(), held_version(down)), kept


def held_version(down: Message) -> int:
    """Returns the version of the base that a client holds after a message; 0 if it trained the bare base."""
    return max((base.version for base in find(down, BaseDelta)), default=0)


def receive(federation: Federation, t: int, state: State, letter: Letter, reply: Reply) -> Visit:
    """Returns the visit whose reply has arrived: decoded, checked, scored where the method asks for it, perhaps spooled.

    A reply that does not fit is refused here, with a warning; nothing that a client sends reaches `aggregate` unseen.
    """
    up = None
    try:
        up = wire.size(reply.content)
        down = federation.channel.arrived(letter.t, letter.peer, letter.message)
        content = federation.channel.decode(t, letter.peer, down, reply.content)
        check_metrics(reply.metrics, f"client {letter.peer.id}")
        update = ClientUpdate(letter.peer, 0.0, content, reply.metrics)
        start = _start(federation, letter.peer, down)
        meant = check_upload(federation.method, t, state, update, federation.template, start)
        size = Size() if meant is None else size_of(meant, start)
    except Exception as error:
        return refuse(federation, t, letter, "upload", error, up)
    update = federation.spool.keep(_rated(federation, t, state, update))
    return Visit(letter.peer, letter.size, up, update, size, _bounded(reply, letter.peer, held_version(down)))


def refuse(federation: Federation, t: int, letter: Letter, stage: str, error: Exception, up: int | None = None) -> Visit:
    """Returns the visit of a client that is left out, with a warning that says why.

    The client counts as having lost what the round sent it.

    Args:
        federation: in a run with `debug` the error is raised, with a note of client, round and stage.
        t: the round.
        letter: what it was sent.
        stage: where it failed: "local update", "upload".
        error: what went wrong.
        up: the bytes that arrived, if any.
    """
    return _left_out(federation, t, Visit(letter.peer, letter.size, up), stage, error)


def leave_out(federation: Federation, t: int, visits: Sequence[Visit], reasons: Mapping[int, str]) -> list[Visit]:
    """Returns the visits without the updates of those clients, by id, that there is a reason against."""

    def checked(visit: Visit) -> Visit:
        if visit.update is None or visit.peer.id not in reasons:
            return visit
        return _left_out(federation, t, visit, "upload", ValueError(reasons[visit.peer.id]))

    return [checked(visit) for visit in visits]


def screened(federation: Federation, t: int, visits: Sequence[Visit]) -> list[Visit]:
    """Returns the visits as a server takes them in: without those that are far larger, or claim far more steps, than others."""
    too_large = oversized(sizes_of(visits), federation.sizes.get(SERVER, ()))
    return leave_out(federation, t, visits, overclaimed(steps_of(visits)) | too_large)


def _left_out(federation: Federation, t: int, visit: Visit, stage: str, error: Exception) -> Visit:
    """Says that a client is left out of a round and returns its visit; no other place leaves one out."""
    k = visit.peer.id
    if federation.settings.debug:
        error.add_note(f"client {k}, round {t}, stage: {stage}")
        raise error
    reason = f"{stage}: {reason_of(error)}"
    logger.warning("client %s is left out of round %s: %s", k, t, reason)
    logger.debug("client %s, round %s", k, t, exc_info=error)
    return Visit(visit.peer, visit.down, visit.up, reason=reason, not_finite=isinstance(error, NOT_FINITE))


def _start(federation: Federation, peer: Peer, down: Message) -> Adapter:
    """Returns the adapter that a client began from, as far as the server knows it.

    A personal part is in the client's memory alone; of it an upload says nothing either, so that both are compared with
    what everybody began with.
    """
    return federation.method.deploy(down, {}, template_for(peer, federation.template))["adapter"]


def _rated(federation: Federation, t: int, state: State, update: ClientUpdate) -> ClientUpdate:
    score = federation.settings.score
    if score is None or not federation.method.needs_validation:
        return update
    scores = score(*federation.method.position(t, state, update))
    # Prefixed, since a training loss and a validation loss would share the name.
    return replace(update, metrics={**update.metrics, **{f"validation_{name}": x for name, x in scores.items()}})


def _bounded(reply: Reply, peer: Peer, newest: int) -> int:
    """Returns the version that a client says it holds, if it has been sent such a one; else 0, which gets the whole base."""
    claimed: Any = reply.base_version
    if isinstance(claimed, int) and 0 <= claimed <= newest:
        return claimed
    logger.warning(
        "client %s says that it holds version %r of the base, where the newest is %s: it is sent the whole base next",
        peer.id,
        claimed,
        newest,
    )
    return 0


class _Recorder:
    """A client that remembers how its training went, for the metrics of its reply."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._results: list[tuple[int, float]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def train(self, t: int, start: Adapter, **request: Any) -> TrainResult:
        # A client of a user's own may train in place, as a plain loop does: not on the server's tensors.
        own = start if getattr(self._client, "copies_start", False) else tree.map_tensors(Tensor.clone, start)
        result = self._client.train(t, own, **request)
        check_count(result.num_steps, "steps", f"client {self._client.peer.id}")
        self._results.append((result.num_steps, result.loss))
        return result

    def metrics(self) -> dict[str, float]:
        """Returns `num_steps`, and `loss`, the mean over the steps of all requests; nothing if there was none."""
        steps = sum(n for n, _ in self._results)
        if not steps:
            return {}
        loss = math.fsum(n * x for n, x in self._results) / steps
        return {"num_steps": float(steps), **({"loss": loss} if math.isfinite(loss) else {})}
