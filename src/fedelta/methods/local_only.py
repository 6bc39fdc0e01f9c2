"""Local training without federation: the lower line of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedelta.merging import ClientUpdate
from fedelta.method import Client, ClientState, Method, State
from fedelta.peers import Peer
from fedelta.tree import Adapter, BaseDelta, Message


@dataclass(frozen=True, kw_only=True)
class LocalOnly(Method):
    """Every client trains on its own data, from its own last adapter; nothing travels.

    A client trains in the rounds whose cohort it is in, as under any other method. So over a run it takes what a federation
    asks of it: in expectation `participation` x rounds x its steps, and with the same seed the very same number.

    Algorithm:
        client k        when in the cohort: trains A, B and head from where it stopped, at first from its template
        server          nothing
        travels         nothing
    """

    paper = "baseline"
    follows = "no paper of its own"
    hetero_rank = True
    personal = True
    one_shot = False
    travels = "nothing"

    def broadcast(self, t: int, state: State, to: Peer) -> Message:
        return {}

    def local_update(self, t: int, down: Message, client_state: ClientState, client: Client) -> tuple[Message, ClientState]:
        result = client.train(t, client_state.get("adapter", client.template))
        return {}, {**client_state, "adapter": result.adapter}

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        return state

    def deploy(self, down: Message, client_state: ClientState, template: Adapter | None = None) -> Message:
        adapter = client_state.get("adapter", template)
        if adapter is None:
            raise ValueError("local_only sends nothing: a participant that has not trained yet needs its template")
        return {"adapter": adapter}

    def position(self, t: int, state: State, update: ClientUpdate) -> tuple[Adapter, BaseDelta | None]:
        # Nothing was sent, so nothing is known but where everybody began.
        return state["adapter"], None

    def check_upload(self, t: int, state: State, update: ClientUpdate) -> None:
        """Accepts everything, since nothing of it is read."""

    def traffic(self, t: int, template: Adapter, peer: Peer, peers: Sequence[Peer]) -> tuple[int, int]:
        return 0, 0
