"""Draws the adapter that all clients of a federation begin from."""

from __future__ import annotations

import torch
from torch import nn

from fedelta import seeding
from fedelta.lowrank import LoRA
from fedelta.models.base_store import delta_shape
from fedelta.peers import Peer


def initial_layer(name: str, base: nn.Module, peer: Peer, seed: int, dtype: torch.dtype) -> LoRA:
    """Draws one layer of the common initial adapter at a peer's rank and scale, on the CPU.

    A is uniform in +-1/sqrt(i) (Kaiming, as PEFT's Linear layers), or standard normal for an Embedding; B is zero. Each row of
    A has its place in the layer's stream, so a smaller rank is the leading rows of a larger one. PEFT starts Embeddings with A
    zero and B random; here A is the live factor everywhere, since methods that freeze A would otherwise never train them.

    Args:
        name: of the layer, which has a stream of its own.
        base: the layer without its adapter.
        peer: whose rank and scale it gets.
        seed: of the run.
        dtype: of the factors.
    """
    o, i = delta_shape(base)
    rank = peer.rank_of(name)
    generator = seeding.generator(seed, 0, seeding.SERVER, "template", name)
    draw, factor, shift = (torch.randn, 1.0, 0.0) if isinstance(base, nn.Embedding) else (torch.rand, 2 * i**-0.5, -(i**-0.5))
    # In float32 whatever the base: another dtype would take other numbers out of the same stream. Row by row, so that a
    # smaller rank is the leading rows of a larger one.
    rows = [draw(i, generator=generator, dtype=torch.float32) * factor + shift for _ in range(rank)]
    return LoRA(torch.zeros(o, rank, dtype=dtype), torch.stack(rows).to(dtype), peer.scale_of(name, rank))
