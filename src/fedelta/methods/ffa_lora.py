"""FFA-LoRA: A frozen and common, B trained and averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedelta import tree
from fedelta.merging import ClientUpdate
from fedelta.method import Client, ClientState, Method, State
from fedelta.methods._shared.one_factor import averaged, completed, only
from fedelta.methods._shared.sums import added, summand_of
from fedelta.peers import Peer, slice_for, template_for
from fedelta.tree import Adapter, BaseDelta, Message, Tensors


@dataclass(frozen=True, kw_only=True)
class FFALoRA(Method):
    """Training B alone: with a common A the mean of the factors is the mean of the deltas.

    Algorithm:
        init            A random and common to all (r_max rows, client k has the first r_k), B = 0
        client k        trains B (and the head) from what it got; A stays as it is
        server          B <- sum_k p_k B_k,   head <- sum_k p_k head_k
        travels         B and head, up and down: half the bytes. A is in every client's template and never sent
        scale           s_k on B alone, so that A stays common: B <- sum_k p_k (s_k / s) B_k

    Unequal ranks are ours, not the paper's: column j of B is averaged over the clients that have it (their weights
    normalised), and keeps its last value in a round in which none of them takes part; exact at equal ranks only.

    Source: Sun et al., "Improving LoRA in Privacy-preserving Federated Learning", arXiv 2403.12313 (ICLR 2024).
    """

    paper = "Sun et al. 2024, FFA-LoRA, arXiv 2403.12313"
    follows = "the paper"
    reported = (
        "none of its own paper available to us; as a baseline of LoRA-A2, read in that paper: BANKING77 at Dirichlet .1, "
        "RoBERTa-base, 30 clients, r = 8: 77.44 against averaged LoRA 90.47 (LoRA-A2 91.61)"
    )
    hetero_rank = True
    decentralised = True
    coordinates = "factors"
    asks = frozenset({"trainable"})
    sums = "exact"
    travels = "B, head"

    def broadcast(self, t: int, state: State, to: Peer) -> Message:
        return self.upload(slice_for(state["adapter"], to))

    def upload(self, adapter: Adapter) -> Message:
        return only("B", adapter)

    def local_update(self, t: int, down: Message, client_state: ClientState, client: Client) -> tuple[Message, ClientState]:
        start = tree.with_factors(client.template, "B", down["B"], down["dense"])
        return self.upload(client.train(t, start, trainable="B").adapter), client_state

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        return {"adapter": averaged("B", updates, state["adapter"])}

    def deploy(self, down: Message, client_state: ClientState, template: Adapter | None = None) -> Message:
        if template is None:
            raise ValueError("ffa_lora never sends A: pass the participant's template to deploy")
        return {"adapter": tree.with_factors(template, "B", down["B"], down["dense"])}

    def summand(self, t: int, down: Message, up: Message, peer: Peer, ranks: Mapping[str, int] | None = None) -> Tensors:
        return summand_of(down, up, peer, ranks)

    def from_mean(self, t: int, state: State, mean: Tensors) -> State:
        return {"adapter": added(state["adapter"], mean)}

    def position(self, t: int, state: State, update: ClientUpdate) -> tuple[Adapter, BaseDelta | None]:
        return completed("B", update, state["adapter"]), None

    def traffic(self, t: int, template: Adapter, peer: Peer, peers: Sequence[Peer]) -> tuple[int, int]:
        sent = tree.count(self.upload(template_for(peer, template)))
        return sent, sent
