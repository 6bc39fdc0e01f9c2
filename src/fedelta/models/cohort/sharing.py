"""Finds out if the clients of a model can train in one pass of it, from what is known of the model and by a trial."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fedelta import tree
from fedelta.models.adapter_files import Layout
from fedelta.models.cohort.cohort import Cohort, Shared
from fedelta.models.trial import near, trial
from fedelta.tree import Adapter, BaseDelta

logger = logging.getLogger("fedelta.models")


class Shareable(Shared, Protocol):
    """A model as a rehearsal knows it."""

    base_dropout: bool
    layout: Layout

    def load(self, adapter: Adapter, base: BaseDelta | None = None) -> None:
        """Takes over an adapter."""
        ...


_rehearsed: WeakKeyDictionary[Shareable, bool] = WeakKeyDictionary()


def refusal(model: Shareable) -> str | None:
    """Says why a model's clients cannot train in one pass; returns None if they can."""
    if model.base_dropout:
        return "the base model's own dropout draws from one generator for all clients"
    if model.layout.embeddings:
        return f"the adapted layer {min(model.layout.embeddings)!r} is an Embedding"
    heads = [holder for holder, _ in model.head_tensors()]
    if any(_holds_another(head, heads) for head in heads):
        return "a trained module with tensors of its own holds another"
    taken = (*model.adapted_layers.values(), *heads)
    if any("forward" in vars(layer) for layer in taken):
        return "another library runs the adapted layers"
    if model not in _rehearsed:
        _rehearsed[model] = rehearsed(model)
    return None if _rehearsed[model] else "the model answers a client otherwise when others are in the pass"


def _holds_another(head: nn.Module, heads: Sequence[nn.Module]) -> bool:
    return any(inner in heads for inner in head.modules() if inner is not head)


def rehearsed(model: Shareable) -> bool:
    """Returns whether two clients of different adapters and lengths get in one pass the answers that each gets alone.

    They do not if a layer mixes padding into a sequence or a head reads the last place (ConvBERT, FNet, XLNet), or if an
    adapted layer sees rows that belong to no client (the relative positions of DeBERTa). A model that takes no tokens, or more
    inputs than the trial has, cannot be tried and counts as fit: its sequences are not padded, or its layers check their rows.
    The model keeps its adapter; it shows the pristine base until the next `load`.
    """
    before = model.live()
    adapters = [_moved(before, seed) for seed in (1, 2)]
    try:
        with torch.no_grad():
            batches = _apart(trial(model.module))
            expected = [_alone(model, *case) for case in zip(adapters, batches, range(2), strict=True)]
    except Exception as error:
        logger.debug("%s is not rehearsed", type(model.module).__name__, exc_info=error)
        return True
    finally:
        model.load(before)
    try:
        with torch.no_grad(), Cohort(model, adapters, [None, None], [_draws(k) for k in range(2)]) as cohort:
            found = cohort.losses([_logits, _logits], batches)
    except Exception as error:  # whatever it is, a joint pass would meet it
        logger.debug("clients of a %s cannot share a pass", type(model.module).__name__, exc_info=error)
        return False
    return all(near(x, y, model.module) for x, y in zip(found, expected, strict=True))


def _moved(adapter: Adapter, seed: int) -> Adapter:
    """Returns an adapter no part of which is zero."""
    draw = torch.Generator().manual_seed(seed)
    values = {n: x.detach() + 0.1 * torch.randn(x.shape, generator=draw).to(x) for n, x in tree.parameters(adapter).items()}
    return tree.with_parameters(adapter, values)


def _apart(batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Returns the first and the last sequence of a padded batch, each without its padding."""
    lengths: list[int] = batch["attention_mask"].sum(1).tolist()

    def alone(k: int) -> dict[str, Tensor]:
        return {name: x[[k], : lengths[k]] for name, x in batch.items()}

    return [alone(0), alone(-1)]


def _alone(model: Shareable, adapter: Adapter, batch: Mapping[str, Tensor], k: int) -> Tensor:
    model.load(adapter)
    model.mode(_draws(k))
    return _logits(model.module, batch)


def _draws(k: int) -> torch.Generator:
    return torch.Generator().manual_seed(k)


def _logits(module: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    return module(**batch).logits
