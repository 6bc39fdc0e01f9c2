"""FLoRIST: FLoRA whose stack is compressed before it is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedelta import lowrank as lr
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate, merge
from fedelta.method import Client, ClientState, Method, State
from fedelta.methods._shared.base_delta import advance
from fedelta.methods.flora import FLoRA
from fedelta.peers import Peer
from fedelta.tree import Adapter, Message

_FLORA = FLoRA()

TOLERANCE = 1e-9
"""Relative slack of the threshold, so that an energy of 4/5 reaches 0.8 in spite of rounding."""


@dataclass(frozen=True, kw_only=True)
class FLoRIST(Method):
    """Exact mean by stacking, cut to the fewest singular values that hold a share of its energy.

    Algorithm:
        init            as FLoRA: base W_0
        client k        as FLoRA: brings its base up to date, trains a fresh A_k and B_k = 0 of its rank
        server          U S V^T = SVD(sum_k p_k s_k B_k A_k), from the stacks;   p the smallest number with
                        sum_{i < p} S_i^2 >= tau sum_i S_i^2;   U_p S_p V_p^T is added to the base;   head <- sum_k p_k head_k
        travels         up: A, B and head at the client's own rank. Down: factors of rank p and the head
        scale           folded into the stack; what is sent has scale 1

    Args:
        tau: the share of energy to keep, by layer, in (0, 1]; 1 keeps all that is not round-off, which is FLoRA's delta at
            its own rank.

    The threshold is inclusive. The SVD is that of thin QR factors of the stacks and a small core: the paper's route, by SVDs
    of both stacks, gives the same numbers.

    Source: Ramesh and Dass, "FLoRIST: Singular Value Thresholding for Efficient and Accurate Federated Fine-Tuning of Large
    Language Models", arXiv 2506.09199 (MLSys 2026). The paper tunes tau for each case; our default is one for all.
    """

    tau: float = 0.99

    paper = "Ramesh and Dass 2026, FLoRIST, arXiv 2506.09199"
    follows = "the paper"
    reported = (
        "MMLU after Dolly, 8 clients of ranks 4 to 64, LLaMA-7B: 35.54 (FLoRIST-O) against FlexLoRA 33.78, FLoRA 32.77, "
        "zero padding .27; TinyLlama: 29.78 against 28.47, 26.82, 31.47. Read in the paper"
    )
    hetero_rank = True
    coordinates = "base"
    asks = frozenset({"base"})
    travels = "up: A, B, head; down: base delta, head"
    lawful: ClassVar[Mapping[str, Any]] = {"tau": 1.0}
    exempt: ClassVar[Mapping[str, str]] = {"bytes": "the energy of each round decides the rank of what goes down"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.tau <= 1:
            raise ValueError(f"tau must be a share of energy in (0, 1], got {self.tau}; 1 keeps everything")

    def init(self, template: Adapter, peers: Sequence[Peer], *, seed: int = 0) -> State:
        return _FLORA.init(template, peers, seed=seed)

    def broadcast(self, t: int, state: State, to: Peer) -> Message:
        return _FLORA.broadcast(t, state, to)

    def local_update(self, t: int, down: Message, client_state: ClientState, client: Client) -> tuple[Message, ClientState]:
        return _FLORA.local_update(t, down, client_state, client)

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        step = merge(self._compressed, updates, state["adapter"])
        return {**state, "adapter": replace(state["adapter"], dense=step.dense), **advance(state, step.layers)}

    def _compressed(self, weights: Sequence[float], xs: Sequence[LoRA], old: LoRA) -> LoRA:
        exact = lr.stack(weights, xs, dtype=torch.float64)
        U, S, Vh = lr.svd(exact)
        # At tau = 1 round-off would count as energy; at least one component travels, so that a zero mean has factors too.
        count = max(1, min(energy_rank(S, self.tau), lr.numerical_rank(S, exact.shape, S.dtype)))
        return LoRA(U[:, :count] * S[:count], Vh[:count]).to(old.dtype)


def energy_rank(S: Tensor, tau: float) -> int:
    """Returns the fewest leading values of a spectrum whose squares sum to at least `tau` of all; 0 for a zero matrix."""
    energy = S.square()
    left = energy.flip(0).cumsum(0).flip(0)  # from the small end: a sum from the large end would swallow it
    return int((left > (1 - tau) * (1 + TOLERANCE) * energy.sum()).sum())
