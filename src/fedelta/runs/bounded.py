"""Bounds the messages that reach a site in a round; the terms of the run are bounded before."""

from __future__ import annotations

from typing import Any

from fedelta.method import Client, TrainResult
from fedelta.runs.config.node import Allow, Refusal
from fedelta.runs.config.terms import demand_steps
from fedelta.tree import Adapter


class Bounded:
    """A client that trains no larger adapter than is its own, and in all requests of a round takes no more steps than allowed.

    Every method trains through it, whatever the form of its messages. Made for one message.
    """

    def __init__(self, client: Client, allow: Allow) -> None:
        self._client, self._allow, self._asked = client, allow, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def train(self, t: int, start: Adapter, *, num_steps: int | None = None, **request: Any) -> TrainResult:
        self._asked += num_steps or self._client.num_steps
        demand_steps(self._asked, self._allow)
        for name, x in start.layers.items():
            most = self._client.peer.rank_of(name)
            if x.rank > most:
                raise Refusal(f"layer {name!r:.80} arrived with rank {x.rank}, where this site trains {most} at the most")
        return self._client.train(t, start, num_steps=num_steps, **request)
