"""A toy model and a toy federation, exact in float64: two adapted layers and a head, for tests and explanations.

The model is  y = V tanh(W x) + c  with frozen W (h, i) and V (o, h), adapters on both, and the bias c as a dense trained
tensor. The outer dimensions all differ, so that a transposed factor cannot pass unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fedelta import seeding, tree
from fedelta.adapted import CPU_TOKENS, Batch, JointPass
from fedelta.client import Example, LocalClient, Training
from fedelta.lowrank import LoRA
from fedelta.optim import SGD
from fedelta.peers import Peer, template_for
from fedelta.population import ClientsOnDemand, Population
from fedelta.tree import Adapter, BaseDelta

SIZES = {"hidden": (6, 5), "output": (4, 6)}
"""(o, i) of each adapted layer."""


class _Net(nn.Module):
    def __init__(self, frozen: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.frozen = frozen
        self.adapter = Adapter({})
        self.base: Mapping[str, LoRA | Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self._apply_layer("hidden", x))
        return self._apply_layer("output", hidden) + self.adapter.dense["bias"]

    def _apply_layer(self, name: str, x: Tensor) -> Tensor:
        delta = self.adapter.layers[name]
        y = x @ self.frozen[name].mT + delta.scale * (x @ delta.A.mT) @ delta.B.mT
        return y + x @ tree.dense(self.base[name]).to(x.dtype).mT if name in self.base else y


class ToyModel:
    """An `AdaptedModel` of a few dozen numbers."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        generator = seeding.generator(seed, 0, seeding.SERVER, "toy base")
        frozen = {
            n: torch.randn(o, i, generator=generator, dtype=torch.float64).to(dtype) / i**0.5 for n, (o, i) in SIZES.items()
        }
        self.module = _Net(frozen)
        self.device = torch.device("cpu")
        self._held = BaseDelta(0, {})

    def load(self, adapter: Adapter, base: BaseDelta | None = None) -> None:
        self.module.adapter = tree.map_tensors(lambda x: x.detach().clone(), adapter)
        self._held = tree.catch_up(self._held, base)
        self.module.base = tree.total(self._held)

    def base_weight(self, layer: str) -> Tensor:
        return self.module.frozen[layer]

    def live(self) -> Adapter:
        return self.module.adapter

    def mode(self, dropout: torch.Generator | None) -> torch.Generator | None:
        self.module.train(dropout is not None)
        return dropout

    def tokens(self, batch: Batch) -> int:
        """Counts an example as one token."""
        return len(next(iter(batch.values())))

    def longest(self, batch: Batch) -> int:
        return 1

    def pass_tokens(self) -> int:
        return CPU_TOKENS

    def joint_refusal(self) -> str | None:
        return f"a {type(self).__name__} holds one adapter at a time"

    def joint(
        self, starts: Sequence[Adapter], bases: Sequence[BaseDelta | None], generators: Sequence[torch.Generator]
    ) -> JointPass:
        raise ValueError(self.joint_refusal())


def toy_template(rank: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Adapter:
    """Draws the common initial adapter at `rank` and scale 1: A is random, B and the bias are zero."""
    layers = {}
    for name, (o, i) in SIZES.items():
        generator = seeding.generator(seed, 0, seeding.SERVER, "template", name)
        A = torch.rand(rank, i, generator=generator, dtype=torch.float64) * 2 - 1
        layers[name] = LoRA(torch.zeros(o, rank, dtype=dtype), (A / i**0.5).to(dtype))
    return Adapter(layers, {"bias": torch.zeros(SIZES["output"][0], dtype=dtype)}, "toy")


def toy_federation(
    ranks: Sequence[int] = (2, 2, 2),
    *,
    num_examples: Sequence[int] | None = None,
    lora_alpha: float | Sequence[float] | None = None,
    rslora: bool = False,
    disagreement: float = 0.3,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    training: Training | None = None,
    **peer_fields: Any,
) -> list[LocalClient]:
    """Makes clients that fit a common target, each with a deviation of its own, on one shared toy model.

    Args:
        ranks: one for each client.
        num_examples: one for each client, 12 + 4 k by default.
        lora_alpha: as in `Peer`, of all or one for each.
        rslora: as in `Peer`.
        disagreement: size of each client's own deviation from the common target.
        seed: of targets, data and training.
        dtype: of everything.
        training: 4 steps of plain SGD at 0.05 by default.
        peer_fields: further fields of each `Peer`.
    """
    sizes = num_examples or [12 + 4 * k for k in range(len(ranks))]
    make = _maker(max(ranks), disagreement, seed, dtype, training)
    alphas = list(lora_alpha) if isinstance(lora_alpha, Sequence) else [lora_alpha] * len(ranks)
    peers = [
        Peer(k, rank, size, lora_alpha=alpha, rslora=rslora, **peer_fields)
        for k, (rank, size, alpha) in enumerate(zip(ranks, sizes, alphas, strict=True))
    ]
    return [make(peer) for peer in peers]


def toy_population(
    peers: Population,
    *,
    disagreement: float = 0.3,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    training: Training | None = None,
) -> ClientsOnDemand:
    """The clients of `toy_federation` for any number of peers, each made with its data when it is asked for.

    Args:
        peers: who they are.
        disagreement: as in `toy_federation`, and so are the others.
        seed: of targets, data and training.
        dtype: of everything.
        training: how they train.
    """
    rank = max(peer.rank for peer in peers.kinds)
    return ClientsOnDemand(peers, _maker(rank, disagreement, seed, dtype, training))


def _maker(
    rank: int, disagreement: float, seed: int, dtype: torch.dtype, training: Training | None
) -> Callable[[Peer], LocalClient]:
    """Returns what makes the client of a peer, on one model that they share; the template has rank `rank`."""
    training = training or Training(local_steps=4, batch_size=8, learning_rate=0.05, optimizer=SGD())
    model, template = ToyModel(seed, dtype), toy_template(rank, seed=seed, dtype=dtype)
    target = _weights(seed, seeding.SERVER, dtype)

    def make(peer: Peer) -> LocalClient:
        own = {n: target[n] + disagreement * w for n, w in _weights(seed, peer.id, dtype).items()}
        examples = _examples(own, peer.num_examples, seed, peer.id, dtype)
        return LocalClient(peer, template_for(peer, template), model, examples, _collate, toy_loss, training, seed)

    return make


def toy_loss(module: nn.Module, batch: Batch) -> Tensor:
    """Returns the mean squared error of a batch."""
    return (module(batch["x"]) - batch["y"]).square().mean()


def random_adapter(
    ranks: int | Mapping[str, int], *, seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> Adapter:
    """Draws a toy adapter that looks trained: both factors and the bias are random."""
    generator = seeding.generator(seed, 0, seeding.SERVER, "toy adapter")
    layers = {}
    for name, (o, i) in SIZES.items():
        rank = ranks if isinstance(ranks, int) else ranks[name]
        B, A = (torch.randn(*s, generator=generator, dtype=torch.float64).to(dtype) for s in ((o, rank), (rank, i)))
        layers[name] = LoRA(B, A, scale)
    return Adapter(layers, {"bias": torch.randn(SIZES["output"][0], generator=generator, dtype=torch.float64).to(dtype)}, "toy")


def with_peer(client: LocalClient, **changes: Any) -> LocalClient:
    """Returns the same client under a changed peer, such as one with another id."""
    peer = replace(client.peer, **changes)
    return LocalClient(
        peer, client.template, client.model, client.examples, client.collate, client.loss, client.training, client.seed
    )


def _weights(seed: int, peer: int, dtype: torch.dtype) -> dict[str, Tensor]:
    return _random_weights(seeding.generator(seed, 0, peer, "toy target"), dtype)


def _random_weights(generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    return {n: torch.randn(o, i, generator=generator, dtype=torch.float64).to(dtype) / i**0.5 for n, (o, i) in SIZES.items()}


def _examples(weights: Mapping[str, Tensor], size: int, seed: int, peer: int, dtype: torch.dtype) -> list[Example]:
    generator = seeding.generator(seed, 0, peer, "toy data")
    x = torch.randn(size, SIZES["hidden"][1], generator=generator, dtype=torch.float64).to(dtype)
    y = torch.tanh(x @ weights["hidden"].mT) @ weights["output"].mT
    return [{"x": a, "y": b} for a, b in zip(x, y, strict=True)]


def _collate(examples: Sequence[Example]) -> Batch:
    return {k: torch.stack([e[k] for e in examples]) for k in ("x", "y")}
