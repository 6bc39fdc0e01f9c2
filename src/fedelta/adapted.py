"""The protocol of a model: all that a client, or an engine that trains several clients in one pass, may ask of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, Self, TypeAlias

import torch
from torch import Tensor, nn

from fedelta.tree import Adapter, BaseDelta, Tensors

Batch: TypeAlias = dict[str, Tensor]
Loss: TypeAlias = Callable[[nn.Module, Batch], Tensor]

CPU_TOKENS = 2048
"""The tokens of one pass on a CPU; with more the activations fall out of its caches."""


class AdaptedModel(Protocol):
    """A frozen base with an adapter that can be exchanged; all that a client and an engine know of a model."""

    @property
    def module(self) -> nn.Module:
        """The model itself, which a loss calls."""
        ...

    @property
    def device(self) -> torch.device: ...

    def load(self, adapter: Adapter, base: BaseDelta | None = None) -> None:
        """Takes over the adapter's values, of any rank and scale, and brings the base to `base`."""
        ...

    def base_weight(self, layer: str) -> Tensor:
        """Returns a layer's pretrained weight (o, i), without any base delta; see `fedelta.method.Client.base_weight`."""
        ...

    def live(self) -> Adapter:
        """The trained tensors themselves, not copies: what gradients are taken of."""
        ...

    def mode(self, dropout: torch.Generator | None) -> torch.Generator | None:
        """Sets training, with adapter dropout drawn from the generator; or evaluation, for None.

        Returns what is drawn from, on the model's device, so that a pass can be repeated with the same draws."""
        ...

    def tokens(self, batch: Batch) -> int:
        """Counts the tokens of a batch that a pass computes."""
        ...

    def longest(self, batch: Batch) -> int:
        """Returns the tokens of the longest sequence of a batch; batches of like length share a pass."""
        ...

    def pass_tokens(self) -> int:
        """Returns the tokens for which one pass has room on the model's device."""
        ...

    def joint_refusal(self) -> str | None:
        """Says why several clients cannot train in one pass of this model; returns None if they can."""
        ...

    def joint(
        self, starts: Sequence[Adapter], bases: Sequence[BaseDelta | None], generators: Sequence[torch.Generator]
    ) -> JointPass:
        """Loads several adapters at once.

        Args:
            starts: the adapters, of any ranks and scales; copied.
            bases: the base delta of each, all of one version.
            generators: the source of each client's adapter dropout.

        Raises:
            ValueError: naming the layer, for an adapter that does not fit; or the reason of `joint_refusal`.
        """
        ...


class JointPass(Protocol):
    """Several clients' adapters in one model, inside a `with` block; client k is the k-th of those that are left."""

    @property
    def stacked(self) -> Tensors:
        """The leaves that gradients are taken of, by flat name: (K, ...), smaller ranks padded with zeros."""
        ...

    @property
    def generators(self) -> Sequence[torch.Generator]:
        """The source of each client's adapter dropout, on the model's device."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def train_only(self, names: set[str]) -> None:
        """Says of which of the stacked tensors gradients are taken."""
        ...

    def own(self, k: int, name: str, padded: Tensor) -> Tensor:
        """Returns client k's part of a tensor of the shape of `stacked[name][k]`: a view without the padding."""
        ...

    def parameters(self, k: int) -> dict[str, Tensor]:
        """Returns client k's tensors by flat name: views into the stacked ones, to be written."""
        ...

    def live(self) -> Sequence[Adapter]:
        """Returns each client's adapter, joined to the leaves, for penalties."""
        ...

    def losses(self, losses: Sequence[Loss], batches: Sequence[Batch]) -> list[Tensor]:
        """Computes each client's loss on its own batch in one pass."""
        ...

    def gradients(self, objective: Tensor) -> dict[str, Tensor]:
        """Returns the gradients of the leaves that train and that the objective reaches, stacked as they are."""
        ...

    def keep(self, which: Sequence[int]) -> None:
        """Goes on with these of the clients; views taken before no longer write into `stacked`."""
        ...
