"""LoRA-A2: the factors take turns, and each client trains and sends only the components that matter most to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from fedelta import tree
from fedelta.merging import ClientUpdate, in_order, unzip
from fedelta.method import Client, ClientState, Method, State
from fedelta.methods._shared.components import best, check_kept, only_at, put, scores, take
from fedelta.methods._shared.one_factor import averaged, completed, only
from fedelta.peers import Peer, slice_for
from fedelta.tree import Adapter, BaseDelta, Factor, Message


@dataclass(frozen=True, kw_only=True)
class LoRAA2(Method):
    """Alternating freeze with adaptive choice of components.

    Algorithm:
        init            A random and common to all, B = 0, one rank r for all of the N layers
        round t         F = B in even rounds, counted from 0, else A
        client k        trains F for a few steps as a probe; scores every component j of every layer by the norm of what the
                        probe added to dW: s ||dB_j|| ||A_j||, or s ||B_j|| ||dA_j||; keeps the best r_k N of all r N; goes
                        back to what it got, and trains F at the kept components, and the head
        server          F <- F + sum_k p_k dF_k, where a component that a client did not keep counts as zero
        travels         the kept components of F, their numbers, and the head up; A, B and head down
        scale           on B alone, so that all have the server's A; a mean of A takes the A_k as they are

    B goes first: while B = 0 the gradient of A is zero.

    Args:
        budget: r_k, components for each layer on average that a client may train; or a list of them, dealt out by client id
            over and over. Every client holds all r components, so it is budgets and not ranks that differ.
        probe_share: steps of the probe, as a share of the round's steps; 1 epoch beside 5 in the paper.
        lr_ratio: learning rate of rounds that train A, over that of rounds that train B.

    The paper keeps the head frozen; to do so, leave it out of modules_to_save. Its text and its algorithm box disagree on which
    factor goes first.

    Source: Koo, Jang and Ok, "Towards Robust and Efficient Federated Low-Rank Adaptation with Heterogeneous Clients", arXiv
    2410.22815 (ACL 2025).
    """

    budget: int | tuple[int, ...] = 2
    probe_share: float = 0.2
    lr_ratio: float = 0.2

    paper = "Koo et al. 2025, LoRA-A2, arXiv 2410.22815"
    follows = "the paper"
    reported = (
        "BANKING77 at Dirichlet .01, RoBERTa-base, 30 clients, r = 8 / r = 1: 70.13 / 68.88 against averaged LoRA 60.96 "
        "/ 45.78, FFA-LoRA 40.88 / 33.68, FlexLoRA 69.84 / 42.75. Read in the paper"
    )
    coordinates = "factors"
    asks = frozenset({"trainable", "gradient", "num_steps", "lr_scale"})
    travels = "up: kept components of A or B in turn, head; down: A, B, head"
    exempt: ClassVar[Mapping[str, str]] = {"bytes": "a budget is of components over all layers, whose sizes differ"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.budget, int):
            object.__setattr__(self, "budget", tuple(self.budget))  # a config file's list could not be hashed
        budgets = self._budgets()
        if not budgets or min(budgets) < 1 or not 0 < self.probe_share <= 1 or not self.lr_ratio > 0:
            raise ValueError(
                "LoRAA2 needs budgets of at least 1, 0 < probe_share <= 1 and lr_ratio > 0, "
                f"got {list(budgets)}, {self.probe_share} and {self.lr_ratio}"
            )

    def _budgets(self) -> tuple[int, ...]:
        return (self.budget,) if isinstance(self.budget, int) else self.budget

    def factor(self, t: int) -> Factor:
        """Returns the factor that round t trains."""
        return "B" if t % 2 == 0 else "A"

    def upload(self, adapter: Adapter) -> Message:
        return only(self.factor(0), adapter)

    def local_update(self, t: int, down: Message, client_state: ClientState, client: Client) -> tuple[Message, ClientState]:
        start, which = down["adapter"], self.factor(t)
        rate = 1.0 if which == "B" else self.lr_ratio
        steps = math.ceil(self.probe_share * client.num_steps)
        probe = client.train(t, start, trainable=which, num_steps=steps, lr_scale=rate).adapter
        kept = best(scores(which, start, probe), self.budget_of(client.peer) * len(start.layers))
        after = client.train(t, start, trainable=which, gradient=only_at(which, kept), lr_scale=rate).adapter
        chosen = {n: take(which, x, kept[n]) for n, x in tree.factors(after, which).items()}
        return {which: chosen, "kept": kept, "dense": after.dense}, client_state

    def budget_of(self, peer: Peer) -> int:
        """Returns the number of components that a peer may train, for each layer on average."""
        budgets = self._budgets()
        return budgets[peer.id % len(budgets)]

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        unzip(updates, self.factor(t))  # names a sender whose content lacks the factor
        whole = [self._with_all_components(t, state, u) for u in in_order(updates)]
        return {"adapter": averaged(self.factor(t), whole, state["adapter"], equal_ranks=True)}

    def position(self, t: int, state: State, update: ClientUpdate) -> tuple[Adapter, BaseDelta | None]:
        return completed(self.factor(t), self._with_all_components(t, state, update), state["adapter"]), None

    def _with_all_components(self, t: int, state: State, update: ClientUpdate) -> ClientUpdate:
        """Returns the upload with the components that it leaves out, which are the server's, as the sender was sent them."""
        if "kept" not in update.content:
            return update
        which, who = self.factor(t), f"client {update.sender.id}"
        sent, kept = update.content[which], update.content["kept"]
        whole = tree.factors(slice_for(state["adapter"], update.sender), which)
        for part in (sent, kept):
            tree.check_names(part, whole, who, "the server", "layers")
        for layer, x in whole.items():
            check_kept(which, x, kept[layer], sent[layer], f"layer {layer!r}: {who}")
        full = {n: put(which, x, kept[n], sent[n]) for n, x in whole.items()}
        return replace(update, content={**update.content, which: full})
