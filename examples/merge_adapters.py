"""Inspects two published adapters, merges two of unequal rank, and checks the result against dense matrices.

    python examples/merge_adapters.py ADAPTER OTHER

ADAPTER and OTHER are PEFT folders of different base models, such as one of GPT-2 and one of GPT-Neo. They are looked at, and
that they cannot be merged is shown. Then ADAPTER is merged with one of half its rank on the same base. No model is loaded.
"""

# Tested with: {data}/adapters/gpt2_tigrinya {data}/adapters/gpt_neo_125m_movies_r8

import sys
from pathlib import Path

import torch

import fedelta
from fedelta.adapters.fidelity import fidelity
from fedelta.adapters.inspection import describe
from fedelta.lowrank import LoRA
from fedelta.tree import Adapter

WEIGHTS = [900, 300]
"""The examples that each was trained on, if one knows them."""


def look(folder: str) -> Adapter:
    """Prints the layer that changes its weight most; returns the adapter."""
    adapter = fedelta.load_adapter(folder)
    facts = max(describe(adapter), key=lambda layer: layer.norm)
    print(f"{Path(folder).name}: {len(adapter.layers)} layers of rank {facts.rank}; most changed is {facts.layer},")
    print(f"    ||dW|| = {facts.norm:.2f}, effective rank {facts.effective_rank:.1f}")
    return adapter


def sister(adapter: Adapter, rank: int) -> Adapter:
    """Stands for a second adapter of the base: each layer has the leading part of the next layer of its shape."""
    following: dict[str, LoRA] = {}
    names = list(adapter.layers)
    for k, name in enumerate(names):
        others = names[k + 1 :] + names[: k + 1]
        following[name] = next(adapter.layers[n] for n in others if adapter.layers[n].shape == adapter.layers[name].shape)
    (half,) = fedelta.aggregate([Adapter(following)], method="flexlora", ranks=[rank])
    return half


def dense_answer(adapters: list[Adapter], layer: str, rank: int) -> torch.Tensor:
    """Returns the best approximation of the weighted mean of one layer, by a singular value decomposition of the matrix."""
    shares = [weight / sum(WEIGHTS) for weight in WEIGHTS]
    matrices = [share * a.layers[layer].to(torch.float64).dense() for share, a in zip(shares, adapters, strict=True)]
    U, S, Vh = torch.linalg.svd(torch.stack(matrices).sum(0), full_matrices=False)
    return U[:, :rank] * S[:rank] @ Vh[:rank]


def main(first: str, other: str) -> None:
    given = look(first)
    look(other)
    try:
        fedelta.aggregate([first, other], method="flexlora", ranks=[8])
    except ValueError as refusal:
        print(f"\nThese two are refused: {refusal}\n")
    else:
        raise SystemExit("adapters of different bases were merged")

    rank = next(iter(given.layers.values())).rank
    adapters = [given, sister(given, rank // 2)]
    (merged,) = fedelta.aggregate(adapters, method="flexlora", ranks=[rank], weights=WEIGHTS)
    found = fidelity(merged, adapters, [weight / sum(WEIGHTS) for weight in WEIGHTS])
    print(f"ranks {rank} and {rank // 2} merged to rank {rank}: {found.energy:.1%} of the energy of the exact mean,")
    print(f"    at a distance of {found.distance:.1%}; the least there is at this rank is {found.least:.1%}")

    # The first layers are enough to compare by: dense matrices take their time.
    for layer in list(merged.layers)[:3]:
        expected = dense_answer(adapters, layer, rank)
        error = float((merged.layers[layer].to(torch.float64).dense() - expected).norm() / expected.norm())
        print(f"    {layer}: {error:.0e} from the dense answer")
        assert error < 1e-5, layer

    fedelta.save_adapter(merged, "merged", like=first)
    print("wrote merged/, a PEFT folder")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
