"""Several clients' adapters in one model at once, trained in one pass over the frozen base that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedelta import tree
from fedelta.adapted import Batch, Loss
from fedelta.client import gradients_of
from fedelta.models.base_store import BaseStore
from fedelta.models.checkpointing import recompute
from fedelta.models.cohort.grouped import Rows
from fedelta.models.cohort.joint_batch import answered, asked, join, parts_of, reply, rows_of_answer
from fedelta.models.cohort.layers import CohortHead, CohortLayer
from fedelta.models.products import Product
from fedelta.tree import Adapter, BaseDelta


class Shared(Protocol):
    """A model as a joint pass knows it: whose layers it runs, and what it asks of it."""

    module: nn.Module
    base_store: BaseStore

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the trained tensors."""
        ...

    @property
    def product(self) -> Product:
        """Forms the products with frozen weights."""
        ...

    @property
    def adapted_layers(self) -> Mapping[str, nn.Module]:
        """PEFT's layers by name."""
        ...

    def head_tensors(self) -> list[tuple[nn.Module, dict[str, str]]]:
        """Returns each module whose own tensors train, with their flat names by attribute."""
        ...

    def live(self) -> Adapter:
        """Returns the adapter that is loaded."""
        ...

    def mode(self, dropout: torch.Generator | None) -> torch.Generator | None:
        """Sets training, or evaluation for None; returns what dropout is drawn from."""
        ...

    def source(self, dropout: torch.Generator) -> torch.Generator:
        """Returns the generator on this model's device that stands for one on the CPU."""
        ...


class Cohort:
    """Holds K adapters in the layers of one model, each tensor stacked to (K, ...); smaller ranks are padded with zeros.

    Inside a `with` block the adapted layers and the heads of the model work for all clients; after it the model is as it was.

    Args:
        model: one that `fedelta.models.cohort.sharing.refusal` does not refuse.
        starts: the adapters, of any ranks and scales; copied.
        bases: the base delta of each, all of one version.
        generators: the source of each client's adapter dropout.

    Attributes:
        stacked: by flat name, the leaves that gradients are taken of.
        rows: whose the rows of the pass are.

    Raises:
        ValueError: naming the layer, for an adapter that does not fit the model.
    """

    def __init__(
        self,
        model: Shared,
        starts: Sequence[Adapter],
        bases: Sequence[BaseDelta | None],
        generators: Sequence[torch.Generator],
    ) -> None:
        for start, base in zip(starts, bases, strict=True):
            tree.check_fits(start, model.live(), "the adapter", "the model")
            model.base_store.apply(base)
        model.mode(None)
        self.model, self.starts = model, list(starts)
        self.product: Product = model.product
        self.generators: Sequence[torch.Generator] = [model.source(g) for g in generators]
        flat = [tree.parameters(start) for start in starts]
        self.stacked: Mapping[str, Tensor] = {n: self._stack(n, [values[n] for values in flat]) for n in flat[0]}
        self.rows = Rows((), {})  # nobody's, until `losses` joins batches
        self._scales = self._read_scales()

    def __enter__(self) -> Cohort:
        for name, layer in self.model.adapted_layers.items():
            layer.forward = CohortLayer(self, name, layer)
        for holder, names in self.model.head_tensors():
            holder.forward = CohortHead(self, holder, names)
        recompute(self.model.module, lambda: self.generators)
        return self

    def __exit__(self, *error: object) -> None:
        recompute(self.model.module, None)
        for layer in self.model.adapted_layers.values():
            del layer.forward
        for holder, _ in self.model.head_tensors():
            del holder.forward

    def train_only(self, names: set[str]) -> None:
        """Chooses the stacked tensors of which gradients are taken."""
        for name, tensor in self.stacked.items():
            tensor.requires_grad_(name in names)

    def own(self, k: int, name: str, padded: Tensor) -> Tensor:
        """Returns client k's part of a tensor of the shape of `stacked[name][k]`: a view without the padding."""
        layer, _, factor = name.rpartition(".lora_")
        if layer not in self.starts[k].layers:
            return padded
        rank = self.starts[k].layers[layer].rank
        return padded[:rank] if factor == "A" else padded[:, :rank]

    def parameters(self, k: int) -> dict[str, Tensor]:
        """Returns client k's tensors by flat name: views into the stacked ones, to be written."""
        return {n: self.own(k, n, tensor.detach()[k]) for n, tensor in self.stacked.items()}

    def live(self) -> list[Adapter]:
        """Returns each client's adapter, joined to the leaves, for penalties."""
        parts = {n: tensor.unbind() for n, tensor in self.stacked.items()}
        adapters: list[Adapter] = []
        for k, start in enumerate(self.starts):
            own = {n: self.own(k, n, part[k]) for n, part in parts.items()}
            adapters.append(tree.with_parameters(start, own))
        return adapters

    def losses(self, losses: Sequence[Loss], batches: Sequence[Batch]) -> list[Tensor]:
        """Computes each client's loss on its own batch, from one pass of the model.

        A loss is called twice: to learn what it asks of the model, and with its own rows of the joint answer.

        Raises:
            ValueError: for inputs that cannot be joined, or a model that mixes rows.
        """
        module: Any = self.model.module
        pairs = list(zip(losses, batches, strict=True))
        questions = [asked(loss, module, batch) for loss, batch in pairs]
        joint, self.rows = join(questions, getattr(module.config, "pad_token_id", None) or 0)
        outputs = reply(module, joint, by_sequence=[holder for holder, _ in self.model.head_tensors()])
        answers = parts_of(outputs, [rows_of_answer(question) for question in questions], self.rows)
        return [answered(loss, module, batch, answer) for (loss, batch), answer in zip(pairs, answers, strict=True)]

    def gradients(self, objective: Tensor) -> dict[str, Tensor]:
        """Returns the gradients of the leaves that train and that the objective reaches, stacked as they are."""
        return gradients_of(objective, {n: t for n, t in self.stacked.items() if t.requires_grad})

    def keep(self, which: Sequence[int]) -> None:
        """Goes on with these clients alone; views taken before no longer write into `stacked`."""
        self.starts = [self.starts[k] for k in which]
        self.generators = [self.generators[k] for k in which]
        self.stacked = {n: t.detach()[list(which)].requires_grad_(t.requires_grad) for n, t in self.stacked.items()}
        self._scales = self._read_scales()

    def adapted(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Returns A (K, r, i), B (K, o, r) and the scales (K,) of a layer."""
        return self.stacked[f"{name}.lora_A"], self.stacked[f"{name}.lora_B"], self._scales[name]

    def _read_scales(self) -> dict[str, Tensor]:
        scales: dict[str, Tensor] = {}
        for name in self.model.adapted_layers:
            each = [start.layers[name].scale for start in self.starts]
            scales[name] = torch.tensor(each, device=self.model.device, dtype=self.model.dtype)
        return scales

    def _stack(self, name: str, tensors: Sequence[Tensor]) -> Tensor:
        shapes = [t.shape for t in tensors]
        shape = [max(sizes) for sizes in zip(*shapes, strict=True)]
        stacked = torch.zeros(len(tensors), *shape, device=self.model.device, dtype=self.model.dtype)
        for k, tensor in enumerate(tensors):
            self.own(k, name, stacked[k]).copy_(tensor.detach())
        return stacked
