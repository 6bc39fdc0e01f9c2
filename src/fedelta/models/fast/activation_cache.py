"""Keeps each example's hidden states below the lowest layer that trains, for later epochs, rounds and evaluations.

Down there nothing changes and nothing is drawn, so an example's hidden states are the same whenever it comes. They are kept by
its tokens, their positions and their types. A batch whose examples are all known skips the layers below; any other batch runs
them for all its examples, and is known from then on. Answers are the same but for rounding: the sums inside a matrix product
may depend on its number of rows. So a resumed run, which begins with nothing kept, may differ in the last bits.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn

from fedelta.models.layer_stack import is_plain_pass, transformer_layers
from fedelta.models.packing import packing_of, scattered
from fedelta.models.passes import FastPass, PassSettings, Trained
from fedelta.models.trial import agrees, answers, trial

SETTING, ORDER = "cache_activations", 4  # the last, so that it keeps what all other passes compute

logger = logging.getLogger("fedelta.models")

MIB = 1 << 20

READ = ("input_ids", "token_type_ids", "position_ids")
"""The inputs, beside the attention mask, that the layers below depend on."""

UNREAD = ("attention_mask", "labels", "return_dict", "logits_to_keep")
"""Inputs that do not matter to the hidden states of real tokens below; a pass with any other is not taken from the cache."""


def install(model: Trained, settings: PassSettings) -> FastPass | None:
    """Gives the model a cache if one is asked for; see `caching`."""
    budget = settings.cache_activations
    return caching(model.module, model.trained_modules, budget) if budget else None


class Store:
    """Keeps tensors by key within a budget; those not asked for the longest leave first.

    Args:
        budget: in bytes.
    """

    def __init__(self, budget: int) -> None:
        self.budget, self.size = budget, 0
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._has_dropped = False

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, keys: Sequence[bytes]) -> list[Tensor] | None:
        """Returns the tensors of all keys; None if one is missing."""
        for key in filter(self._kept.__contains__, keys):
            self._kept.move_to_end(key)
        return [self._kept[key] for key in keys] if all(key in self._kept for key in keys) else None

    def keep(self, key: bytes, x: Tensor) -> None:
        """Takes over a copy of the tensor."""
        if key in self._kept or x.nbytes > self.budget:
            return
        self._kept[key] = x.detach().clone()
        self.size += x.nbytes
        while self.size > self.budget:
            self.size -= self._kept.popitem(last=False)[1].nbytes
            self._tell_once()

    def clear(self) -> None:
        """Forgets everything."""
        self._kept.clear()
        self.size = 0

    def _tell_once(self) -> None:
        if not self._has_dropped:
            self._has_dropped = True
            logger.warning(
                "the activation cache of %.0f MiB is full with %d examples, and a batch gains nothing unless all its examples "
                "are kept: give cache_activations room for all examples, or 0 to do without",
                self.budget / MIB,
                len(self),
            )


@dataclass(frozen=True, eq=False)
class Rows:
    """The examples of one batch.

    Args:
        mask: (R, L), true at real tokens.
        counts: R numbers of real tokens.
        keys: what each example is kept by.
    """

    mask: Tensor
    counts: Sequence[int]
    keys: Sequence[bytes]

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> Rows | None:
        """Names the examples; returns None where more than tokens, positions and types decides what the layers compute."""
        given = {n: v for n, v in inputs.items() if v is not None and v is not False}
        ids = given.get("input_ids")
        if not isinstance(ids, Tensor) or any(n not in (*READ, *UNREAD) for n in given):
            return None
        mask, *fields = given.get("attention_mask", torch.ones_like(ids)), *(given[n] for n in READ if n in given)
        shapes = ids.shape, (1, ids.shape[-1])
        if not all(isinstance(x, Tensor) and x.shape in shapes for x in (mask, *fields)):
            return None
        place = torch.arange(ids.shape[-1], device=ids.device)
        table = torch.stack([x.expand_as(ids) for x in (place, *fields)], -1).flatten(0, -3)
        mask = mask.expand_as(ids).flatten(0, -2).bool()
        counts: list[int] = mask.sum(1).tolist()
        names = " ".join(n for n in READ if n in given).encode()
        each = table[mask].cpu().split(counts)
        return cls(mask, counts, [blake2b(names + x.numpy().tobytes(), digest_size=16).digest() for x in each])

    def take(self, hidden: Tensor) -> Sequence[Tensor] | None:
        """Returns each example's hidden states (n, d), of a grid (R, L, d) or packed (1, N, d)."""
        if packing_of(hidden) is not None:
            return hidden[0].split(list(self.counts))
        return hidden[self.mask].split(list(self.counts)) if hidden.shape[:2] == self.mask.shape else None

    def put(self, parts: Sequence[Tensor], like: Tensor) -> Tensor:
        """Puts each example's hidden states back into the form of others; zero at padding, which nobody reads."""
        flat = torch.cat(list(parts))
        if packing_of(like) is not None:
            return flat[None]
        return scattered(flat, self.mask.flatten().nonzero().squeeze(1), self.mask.numel()).view(*self.mask.shape, -1)


@dataclass(frozen=True, eq=False)
class _Recalled:
    """The forward pass of the last of the skipped layers, while all examples of a batch are known.

    Args:
        rows: the examples.
        parts: the hidden states of each.
    """

    rows: Rows
    parts: Sequence[Tensor]

    def __call__(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return self.rows.put(self.parts, hidden_states)


class ActivationCache(FastPass):
    """Lets a model's passes skip the layers below those that train, for examples that it has seen, until `remove`.

    A pass is left as it is in training mode, under gradient checkpointing, and where hidden states, attention weights or a
    key-value cache are asked for. Everything is forgotten when a tensor below is replaced or written to; a write through
    `.data` goes unseen. What a pass returns for a key-value cache without being asked lacks the layers that it skipped.

    Args:
        module: a transformers model.
        depth: how many of its layers are below.
        inputs: the modules that run before the first layer.
        budget: in MiB, on the device where the model is.

    Attributes:
        store: what is kept.
        recalled: how many passes have skipped the layers below.
    """

    def __init__(self, module: nn.Module, depth: int, inputs: Sequence[nn.Module], budget: int) -> None:
        self.store, self.recalled = Store(budget * MIB), 0
        self._layers = transformer_layers(module)
        self._inputs = [m for m in inputs if [*m.parameters(recurse=False), *m.buffers(recurse=False)]]
        self._skipped = self._layers[:depth]
        self._held = self._tensors_below()
        self._state = _state_of(self._held)
        # Of the pass that runs: rows to be kept, or recalled ones; None if the cache has nothing to do with it.
        self._pass: Rows | _Recalled | None = None
        self._handles = [
            module.register_forward_pre_hook(self._before, with_kwargs=True),
            module.register_forward_hook(self._after, always_call=True),
            self._skipped[-1].register_forward_hook(self._computed),
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self.store.clear()

    def _before(self, module: Any, args: Any, inputs: dict[str, Any]) -> None:
        plain = not args and is_plain_pass(module, self._layers, inputs)
        self._pass = rows = Rows.of(inputs) if plain else None
        if rows is None:
            return
        self._forget_if_changed()
        parts = self.store.find(rows.keys)
        if parts is not None:
            self.recalled += 1
            self._pass = _Recalled(rows, parts)
            for layer in self._skipped:
                layer.forward = _unchanged
            self._skipped[-1].forward = self._pass

    def _after(self, *_: Any) -> None:
        if isinstance(self._pass, _Recalled):
            for layer in self._skipped:
                del layer.forward
        self._pass = None

    def _computed(self, layer: Any, args: Any, output: Any) -> None:
        rows = self._pass
        if not isinstance(rows, Rows) or not isinstance(output, Tensor) or output.requires_grad:
            return
        parts = rows.take(output)
        if parts is not None:
            for key, part in zip(rows.keys, parts, strict=True):
                self.store.keep(key, part)

    def _forget_if_changed(self) -> None:
        tensors = self._tensors_below()
        state = _state_of(tensors)
        if state != self._state:
            # The tensors are held: if one were freed, a new one could get its identity and address, and pass for it.
            self._held, self._state = tensors, state
            self.store.clear()

    def _tensors_below(self) -> list[Tensor]:
        found: list[Tensor] = []
        # A module that is entered early counts for its own tensors alone: the whole model is one of them.
        for module in self._inputs:
            found += [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        for layer in self._skipped:
            found += [*layer.parameters(), *layer.buffers()]
        return found


def _state_of(tensors: Sequence[Tensor]) -> list[Any]:
    """Returns what changes with any of the tensors, and with the precision that products are formed in."""
    precision = ((torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in ("cpu", "cuda"))
    return [*((id(x), x.data_ptr(), x._version) for x in tensors), *precision]


def _unchanged(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def caching(module: nn.Module, trained: Sequence[nn.Module], budget: int) -> ActivationCache | None:
    """Gives a model an activation cache if that spares a layer and leaves its answers as they are, which is tried.

    Args:
        module: a transformers model.
        trained: the modules that train.
        budget: in MiB.

    Returns:
        None where it does not; the log says why.
    """
    reason, cache = "it does not run on token ids and a mask alone", None
    for by_choice in (False, True):
        try:
            reason, cache = _prepared(module, trained, budget, by_choice)
            break
        except Exception as error:  # a model that needs other inputs
            logger.debug("a trial pass of %s failed", type(module).__name__, exc_info=error)
    if cache is None:
        logger.warning("cache_activations has no effect on this %s: %s", type(module).__name__, reason)
    return cache


def _prepared(
    module: nn.Module, trained: Sequence[nn.Module], budget: int, by_choice: bool
) -> tuple[str, ActivationCache | None]:
    """Returns a cache, or why there is none; tried with sequences (3, L), or (3, 1, L) for a model that chooses among some."""
    layers = transformer_layers(module)
    if not layers or any("forward" in vars(layer) for layer in layers):
        return "it is not one stack of layers that this library runs", None
    batch = {n: x[:, None] if by_choice else x for n, x in trial(module).items()}
    order, expected = _entered(module, batch)
    if any(m not in order for m in trained):
        return "some of what trains is not run as a module of its own", None
    first = min(map(order.index, trained))
    depth = sum(order.index(layer) < first for layer in layers) - 1
    if depth < 1:
        return "nothing lies below what trains; adapt upper layers only, by layers_to_transform or target_modules", None
    cache = ActivationCache(module, depth, order[: order.index(layers[0])], budget)
    if _leaves_answers(cache, module, batch, expected):
        return "", cache
    cache.remove()
    return "its layers do not compute each example's tokens by themselves", None


def _entered(module: nn.Module, batch: Mapping[str, Tensor]) -> tuple[list[nn.Module], Tensor]:
    """Returns the modules in the order in which a pass first enters them, and its answers."""
    order = dict[nn.Module, None]()
    handles = [m.register_forward_pre_hook(lambda m, _: order.setdefault(m)) for m in module.modules()]
    try:
        expected = answers(module, batch)
    finally:
        for handle in handles:
            handle.remove()
    return list(order), expected


def _leaves_answers(cache: ActivationCache, module: nn.Module, batch: Mapping[str, Tensor], expected: Tensor) -> bool:
    """Says if a batch is answered as before from what each of its sequences left behind alone."""
    for k, length in enumerate(batch["attention_mask"].sum(-1).flatten().tolist()):
        answers(module, {n: x[k : k + 1, ..., :length] for n, x in batch.items()})
    agreed = agrees(module, batch, expected) and cache.recalled == 1
    cache.store.clear()
    cache.recalled = 0
    return agreed
