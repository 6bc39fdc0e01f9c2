"""What a method does that says nothing but how it aggregates."""

from collections.abc import Sequence

import torch

from fedelta.merging import ClientUpdate
from fedelta.method import Method, State
from fedelta.models.toy import random_adapter
from fedelta.peers import Peer


class Nothing(Method):
    """Keeps what it has."""

    hetero_rank = True

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        return state


def test_by_default_each_peer_gets_the_leading_components_that_it_can_hold() -> None:
    peers, template = [Peer(0, 1, lora_alpha=4.0), Peer(1, 3, lora_alpha=4.0)], random_adapter(4, seed=0)
    state = Nothing().init(template, peers)
    for n, x in state["adapter"].layers.items():
        assert (x.rank, x.scale) == (3, 4 / 3)
        assert torch.equal(x.A, template.layers[n].A[:3])
    for peer in peers:
        for n, x in Nothing().broadcast(0, state, peer)["adapter"].layers.items():
            whole = template.layers[n]
            assert (x.rank, x.scale) == (peer.rank, 4 / peer.rank)
            torch.testing.assert_close(x.dense(), whole.B[:, : x.rank] @ whole.A[: x.rank], rtol=1e-12, atol=1e-12)
