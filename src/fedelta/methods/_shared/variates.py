"""Control variates: the hook that corrects a client's gradients by them, and their sum over clients of unequal ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedelta import lowrank as lr
from fedelta.peers import Peer
from fedelta.tree import Adapter, Tensors


class Correction:
    """A hook that adds c - c_k to the gradients, and sums them up as they were before."""

    def __init__(self, c: Tensors, own: Tensors) -> None:
        # c - c_k, where a variate counts as zero that the server, or this client, does not have yet.
        self.shift: dict[str, Tensor] = {n: -x for n, x in own.items()}
        for n, x in c.items():
            self.shift[n] = x - own[n] if n in own else x
        self.total: dict[str, Tensor] = {}
        self.steps = 0

    def __call__(self, gradients: Tensors, parameters: Tensors, step: int) -> Tensors:
        if step == 0:  # a request that failed in company is answered again, by the same hook
            self.steps, self.total = 0, {}
            # Once for all steps: the parameters may live on a GPU.
            self.shift = {n: self.shift[n].to(x) for n, x in gradients.items() if n in self.shift}
        self.steps += 1
        for n, g in gradients.items():
            wide = g.detach().to(lr.wide(g.dtype))
            self.total[n] = self.total[n] + wide if n in self.total else wide
        return {n: g + self.shift[n] if n in self.shift else g for n, g in gradients.items()}

    def mean(self) -> dict[str, Tensor]:
        """Returns the mean of the gradients over the steps."""
        return {n: (x / self.steps).cpu() for n, x in self.total.items()}


def less(tensors: Tensors, others: Tensors) -> dict[str, Tensor]:
    """Returns the difference by name; what the others lack, since nobody has trained it before, counts as zero."""
    return {n: x - others[n] if n in others else x for n, x in tensors.items()}


def per_scale(tensors: Tensors, adapter: Adapter, power: int = -1) -> dict[str, Tensor]:
    """Returns tensors by flat name, those of a layer times a power of its scale: gradients of factors grow with it."""
    scales = {f"{n}.lora_{which}": x.scale for n, x in adapter.layers.items() for which in "AB"}
    return {n: x * scales.get(n, 1.0) ** power for n, x in tensors.items()}


def owners_of(template: Adapter, peers: Sequence[Peer]) -> dict[str, list[int]]:
    """Returns by layer how many peers have each component."""
    found: dict[str, list[int]] = {}
    for n in template.layers:
        ranks = [peer.rank_of(n) for peer in peers]
        found[n] = [sum(rank > j for rank in ranks) for j in range(max(ranks))]
    return found


def part_of(c: Tensors, to: Peer) -> dict[str, Tensor]:
    """Returns the components of a variate that a peer has."""
    return {n: _leading(n, x, to.rank_of(n.rpartition(".lora_")[0])) for n, x in c.items()}


def moved_by(
    changes: Sequence[Tensors], c: Tensors, like: Tensors, owners: Mapping[str, Sequence[int]], clients: int
) -> dict[str, Tensor]:
    """Returns the server's variate after a round: each component moves by the sum of its owners' changes over their number.

    Args:
        changes: of the cohort, each at its client's own rank.
        c: before.
        like: tensors of the largest ranks, by flat name.
        owners: as `owners_of` returns them.
        clients: N, for what all have.
    """
    found: dict[str, Tensor] = {n: x.clone() for n, x in c.items()}
    for change in changes:
        for n, x in change.items():
            found.setdefault(n, torch.zeros_like(like[n], dtype=x.dtype))
            layer, _, which = n.rpartition(".lora_")
            rank = x.shape[0 if which == "A" else -1]
            count = torch.tensor(owners[layer][:rank] if layer else clients).to(x)
            _leading(n, found[n], rank).add_(x / (count[:, None] if which == "A" else count))
    return found


def _leading(name: str, x: Tensor, rank: int) -> Tensor:
    """Returns the first components of a factor, as a view; all of another tensor."""
    return x[:rank] if name.endswith(".lora_A") else x[:, :rank] if name.endswith(".lora_B") else x
