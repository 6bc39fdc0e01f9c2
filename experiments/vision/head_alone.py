"""A line to compare with: the classifier is trained and averaged, the adapter stays as it was drawn, with a delta of zero.

Its traffic is counted with the adapter, which is sent along and never read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fedelta import LoRA, Method
from fedelta.merging import ClientUpdate, merge
from fedelta.method import Client, ClientState, State
from fedelta.tree import Message


@dataclass(frozen=True, kw_only=True)
class HeadAlone(Method):
    """The mean of the classifiers, on a base that nobody changes."""

    paper = "a baseline"
    coordinates = "factors"
    hetero_rank = True
    asks = frozenset({"trainable"})

    def local_update(self, t: int, down: Message, client_state: ClientState, client: Client) -> tuple[Message, ClientState]:
        """Returns the adapter with the client's classifier, the only part that was trained."""
        start = down["adapter"]
        nothing = dict.fromkeys(start.layers)
        trained = client.train(t, start, trainable={**nothing, **dict.fromkeys(start.dense, "dense")})
        return {"adapter": trained.adapter}, client_state

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        """Returns the next adapter of all: layers as they were, the mean of the classifiers."""
        return {"adapter": merge(unchanged, updates, state["adapter"])}


def unchanged(weights: Sequence[float], xs: Sequence[LoRA], old: LoRA) -> LoRA:
    """Returns a layer's delta as the server has it."""
    return old
