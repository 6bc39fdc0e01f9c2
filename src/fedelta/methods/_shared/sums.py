"""Uploads as terms of one sum, for the methods whose server needs no more than that.

A summand is a difference to what an idle client would send, so that an idle client's is exactly zero and a clip of it is a clip
of what was learned. Scales are folded in: entries of B are multiplied by the sender's scale. Beside them stands, for every
component, whether its sender has it: at unequal ranks a mean over owners is a quotient of two sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.lowrank import LoRA
from fedelta.peers import Peer
from fedelta.tree import Adapter, Factor, Message, Tensors

Absent: TypeAlias = Literal["keep", "fade"]
"""The value of a component that not all have: the mean over those who do, or one in which the others count as zero."""

OWNED = "owned"


def summand_of(
    down: Message, up: Message, peer: Peer, ranks: Mapping[str, int] | None, *, raw: bool = False
) -> dict[str, Tensor]:
    """Returns what a client adds to the sum, by flat name: differences of the factors and dense tensors that it sent.

    Args:
        down: the broadcast, an "adapter" or bare factors "A", "B" and "dense".
        up: the method's upload.
        peer: the client, whose scale is folded into B.
        ranks: by layer, the rank that all are padded to with zeros; the client's own without it.
        raw: leaves factors as they are whatever their scales.
    """
    summand: dict[str, Tensor] = {}
    owned: dict[str, Tensor] = {}
    for which in ("B", "A"):
        sent, got = _factors(up, peer, which, raw), _factors(down, peer, which, raw)
        for layer, x in sent.items():
            rank = x.shape[1 if which == "B" else 0]
            held = got[layer]
            change = x - (held[:, :rank] if which == "B" else held[:rank])  # a client may send fewer than it was sent
            size = rank if ranks is None else ranks[layer]
            summand[f"{layer}.lora_{which}"] = _padded(change, size, which)
            owned[f"{layer}.{OWNED}"] = (torch.arange(size) < rank).to(change)
    old = _dense(down)
    dense = {n: x - old[n] for n, x in _dense(up).items()}
    return {**summand, **owned, **dense}


def added(old: Adapter, mean: Tensors, *, absent: Absent = "keep", raw: bool = False) -> Adapter:
    """Returns the server's adapter after the mean of the cohort's summands.

    Args:
        old: the adapter at the round's start.
        mean: sum_k p_k summand_k.
        absent: the rule for components that not all have.
        raw: as in `summand_of`.
    """

    def at(layer: str, x: LoRA) -> LoRA:
        scale = 1.0 if raw else x.scale
        for which in ("B", "A"):
            change = mean.get(f"{layer}.lora_{which}")
            if change is not None:
                change = change / scale if which == "B" else change
                x = lr.with_factor(x, which, _shifted(x, which, change, mean[f"{layer}.{OWNED}"], absent))
        return x

    layers = tree.map_named(at, old).layers
    dense = {n: x + mean[n].to(x) if n in mean else x for n, x in old.dense.items()}
    return Adapter(layers, dense, old.base)


def _shifted(x: LoRA, which: Factor, change: Tensor, owned: Tensor, absent: Absent) -> Tensor:
    """Returns one factor after the cohort's mean change; `owned` is the share of the weight behind each component."""
    old = x.B if which == "B" else x.A
    change, share = change.to(old), owned.to(old)
    if which == "A":
        share = share[:, None]
    if absent == "fade":
        return old * share + change
    # The sum runs over owners alone, so that the mean over them is the quotient by their share.
    return old + torch.where(share > 0, change / share.clamp(min=torch.finfo(share.dtype).tiny), torch.zeros_like(change))


def _factors(message: Message, peer: Peer, which: Factor, raw: bool) -> dict[str, Tensor]:
    """Returns one factor of every layer of a message; B is multiplied by its scale, unless `raw`."""
    if "adapter" in message:
        layers: Mapping[str, LoRA] = message["adapter"].layers
        return {n: x.A if which == "A" else x.B if raw else x.B * x.scale for n, x in layers.items()}
    bare: Tensors = message.get(which, {})
    if which == "A" or raw:
        return dict(bare)
    return {n: B * peer.scale_of(n, B.shape[1]) for n, B in bare.items()}


def _dense(message: Message) -> Tensors:
    return message["adapter"].dense if "adapter" in message else message.get("dense", {})


def _padded(change: Tensor, rank: int, which: Factor) -> Tensor:
    """Returns `change` with zero columns (B) or rows (A) up to `rank`."""
    missing = rank - change.shape[1 if which == "B" else 0]
    return torch.nn.functional.pad(change, (0, missing) if which == "B" else (0, 0, 0, missing))
