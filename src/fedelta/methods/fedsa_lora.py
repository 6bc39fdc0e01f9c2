"""FedSA-LoRA: A is shared, B and the head stay with the client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from fedelta import tree
from fedelta.merging import ClientUpdate, in_order, merge, unzip
from fedelta.method import Client, ClientState, Method, State
from fedelta.methods._shared.one_factor import completed, of_owners
from fedelta.methods._shared.sums import added, summand_of
from fedelta.peers import Peer, slice_for, template_for
from fedelta.tree import Adapter, BaseDelta, Message, Tensors


@dataclass(frozen=True, kw_only=True)
class FedSALoRA(Method):
    """Both factors are trained, A alone is averaged: every client has a model of its own over common rows of A.

    Algorithm:
        init            A random and common to all (r_max rows, client k has the first r_k), B = 0
        client k        trains the broadcast A, its own last B and its own last head; keeps B and head
        server          A <- sum_k p_k A_k
        travels         A, up and down
        scale           on B's side, which never travels: A is averaged as it is, so that its rows stay common

    A client that has lost its memory, or never took part, has the B and the head of its template: B = 0 in a fresh run.

    Unequal ranks are ours: row i of A is averaged over the clients that have it (their weights normalised), and keeps its last
    value in a round in which none of them takes part.

    Source: Guo et al., "Selective Aggregation for Low-Rank Adaptation in Federated Learning", arXiv 2410.01463 (ICLR 2025).
    The full text was not available: this follows the authors' published code.
    """

    paper = "Guo et al. 2025, FedSA-LoRA, arXiv 2410.01463"
    follows = "the authors' code"
    reported = "none available to us"
    hetero_rank = True
    decentralised = True
    coordinates = "factors"
    sums = "exact"
    personal = True
    one_shot = False
    travels = "A"

    def broadcast(self, t: int, state: State, to: Peer) -> Message:
        return self.upload(slice_for(state["adapter"], to))

    def upload(self, adapter: Adapter) -> Message:
        return {"A": tree.factors(adapter, "A")}

    def local_update(self, t: int, down: Message, client_state: ClientState, client: Client) -> tuple[Message, ClientState]:
        after = client.train(t, _personal(down, client_state, client.template)).adapter
        return self.upload(after), {**client_state, "B": tree.factors(after, "B"), "dense": after.dense}

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        unzip(updates, "A")  # names a sender whose content lacks it
        adapters = [self.position(t, state, u)[0] for u in in_order(updates)]
        return {"adapter": merge(partial(of_owners, "A"), updates, state["adapter"], adapters=adapters)}

    def summand(self, t: int, down: Message, up: Message, peer: Peer, ranks: Mapping[str, int] | None = None) -> Tensors:
        return summand_of(down, up, peer, ranks)

    def from_mean(self, t: int, state: State, mean: Tensors) -> State:
        return {"adapter": added(state["adapter"], mean)}

    def deploy(self, down: Message, client_state: ClientState, template: Adapter | None = None) -> Message:
        if template is None:
            raise ValueError("fedsa_lora never sends B: pass the participant's template to deploy")
        return {"adapter": _personal(down, client_state, template)}

    def position(self, t: int, state: State, update: ClientUpdate) -> tuple[Adapter, BaseDelta | None]:
        # Nothing is known of the client's B and head but where everybody began.
        known = replace(update, content={**update.content, "dense": state["adapter"].dense})
        return completed("A", known, state["adapter"]), None

    def traffic(self, t: int, template: Adapter, peer: Peer, peers: Sequence[Peer]) -> tuple[int, int]:
        sent = tree.count(self.upload(template_for(peer, template)))
        return sent, sent


def _personal(down: Message, client_state: ClientState, template: Adapter) -> Adapter:
    """Returns the common A under a client's own B and head, at first those of its template."""
    shared = tree.with_factors(template, "A", down["A"])
    return tree.with_factors(shared, "B", client_state["B"], client_state["dense"]) if client_state else shared
