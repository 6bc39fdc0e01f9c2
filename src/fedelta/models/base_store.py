"""Applies what a method has added to the frozen base, on the one base that all clients of a process share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from fedelta import tree
from fedelta.lowrank import LoRA, wide
from fedelta.tree import BaseDelta

Term: TypeAlias = LoRA | Tensor


class BaseSum:
    """Follows what a method adds to a base, from message to message.

    It follows one federation at a time: a delta does not say which run it comes from.

    Attributes:
        version: the one that it has followed the base to.
        total: by layer, all that was added up to it.
    """

    def __init__(self) -> None:
        self.version = 0
        self.total: dict[str, Term] = {}

    def follow(self, base: BaseDelta) -> bool:
        """Brings `total` to the delta's version; returns False if it was there already.

        Raises:
            ValueError: for steps that begin after the version held.
        """
        if base.since == 0:
            if self._repeats(base):
                return False
            self.total = dict(tree.total(base))
        else:
            if not base.since <= self.version <= base.version:
                raise ValueError(
                    f"the base delta leads from version {base.since} to {base.version}, but this model holds version "
                    f"{self.version}; report base_version 0 to be sent the whole sum"
                )
            if self.version == base.version:
                return False
            self._replay(base)
        self.version = base.version
        return True

    def whole(self) -> BaseDelta:
        """Returns all that was added, as one delta."""
        return BaseDelta(self.version, {name: [term] for name, term in self.total.items()})

    def _replay(self, base: BaseDelta) -> None:
        """Adds the steps after the version held, one by one as the server did, so that all bits agree."""
        done = self.version - base.since
        for name, steps in base.terms.items():
            for step in steps[done:]:
                self.total[name] = tree.add(self.total[name], step) if name in self.total else step

    def _repeats(self, base: BaseDelta) -> bool:
        """Returns whether a whole sum is the one held, by its values: another run may have reached the same version."""
        if base.version != self.version or base.terms.keys() != self.total.keys():
            return False
        return all(_equal(term, self.total[n]) for n, term in tree.total(base).items())


class BaseStore:
    """Brings base layers to a version and remembers which one they have.

    Two ways to apply a delta. A floating-point weight is rewritten as pristine + dW, from a copy of the pristine weight that
    is kept for touched layers only. A quantised weight stays as it is and the delta is added in the forward pass, as a frozen
    low-rank term.

    The store knows two things: the sum that it has followed, and whether the layers show it or the pristine base. So a look at
    the pristine base does not lose the history that a later step builds on.

    Args:
        layers: base layers by name: Linear, Conv1D, Embedding, or quantised ones.
        hook: layers to which the delta is added in the forward pass. By default those whose weight is not a plain
            floating-point matrix.
    """

    def __init__(self, layers: Mapping[str, nn.Module], *, hook: bool | None = None) -> None:
        self._sum = BaseSum()
        self._layers = layers
        self._writers = {n: _writer(layer, hook) for n, layer in layers.items()}
        self._last: BaseDelta | None = None
        self._shown: set[str] = set()

    @property
    def version(self) -> int:
        """The version of the sum that it has followed."""
        return self._sum.version

    @property
    def total(self) -> Mapping[str, Term]:
        """The sum that it has followed, by layer."""
        return self._sum.total

    def apply(self, base: BaseDelta | None) -> None:
        """Makes the layers show the base delta; does nothing if they show that very one already.

        Raises:
            ValueError: for a layer that the model does not adapt, a shape that is not the layer's, or steps that begin after
                the version held.
        """
        if base is None or base.version == 0:
            self._show({})
        elif base is not self._last or not self._shown:
            for name, terms in base.terms.items():
                self._check(name, terms)
            fresh = self._sum.follow(base)
            self._show(self.total, rewrite=fresh)
            self._last = base

    def pristine(self, name: str) -> Tensor:
        """Returns the pretrained weight of a layer as (o, i): the model's own memory, on its device, to be read only.

        Raises:
            ValueError: for a layer whose weight is no plain matrix of floating-point numbers.
        """
        if not is_plain(self._layers[name]):
            raise ValueError(
                f"layer {name!r}: its weight is quantised or packed, so that no start can be made of it: load the base in "
                "bfloat16 or float32, or take a method whose start is drawn"
            )
        writer, layer = self._writers[name], self._layers[name]
        kept = writer.pristine if isinstance(writer, _WeightWriter) else None
        weight: Any = layer.weight if kept is None else kept
        return oriented(layer, weight.detach())

    def _show(self, total: Mapping[str, Term], *, rewrite: bool = True) -> None:
        for name in self._shown - total.keys():
            self._writers[name](None)
        for name, term in total.items():
            if rewrite or name not in self._shown:
                self._writers[name](term)
        self._shown = set(total)

    def _check(self, name: str, terms: Sequence[Term]) -> None:
        if name not in self._layers:
            raise ValueError(
                f"the base delta names layer {name!r}, which carries no adapter here; it has {list(self._layers)[:3]} ..."
            )
        expected = delta_shape(self._layers[name])
        found = next((tuple(t.shape) for t in terms if tuple(t.shape) != expected), expected)
        if found != expected:
            raise ValueError(f"layer {name!r}: the base delta has (d_out, d_in) = {found}, the layer {expected}")


def delta_shape(layer: nn.Module) -> tuple[int, int]:
    """Returns (o, i) of a layer's dW in PEFT's orientation; an Embedding maps i = num_embeddings to o = embedding_dim."""
    any_layer: Any = layer
    if isinstance(layer, nn.Embedding):
        return layer.embedding_dim, layer.num_embeddings
    if isinstance(layer, Conv1D):
        i, o = layer.weight.shape
        return o, i
    return any_layer.out_features, any_layer.in_features


def oriented(layer: nn.Module, delta: Tensor) -> Tensor:
    """Returns dW (o, i) as the layer stores its weight: Conv1D and Embedding keep the transpose."""
    return delta.mT if isinstance(layer, Conv1D | nn.Embedding) else delta


def added(layer: nn.Module, pristine: Tensor, term: Term) -> Tensor:
    """Returns pristine + dW in the layer's orientation and dtype."""
    delta = oriented(layer, tree.dense(term)).to(pristine.device)
    # Summed in float32 or wider: in half precision a small delta would vanish before it is added.
    dtype = torch.promote_types(wide(pristine.dtype), delta.dtype)
    return (pristine.to(dtype) + delta.to(dtype)).to(pristine.dtype)


def is_plain(layer: nn.Module) -> bool:
    """Returns True if the weight is a floating-point matrix of the expected shape, that is, not quantised or packed."""
    weight: Any = getattr(layer, "weight", None)
    return (
        type(weight) in (nn.Parameter, Tensor)
        and weight.is_floating_point()
        and tuple(oriented(layer, weight.detach()).shape) == delta_shape(layer)
    )


def _equal(x: Term, y: Term) -> bool:
    if isinstance(x, LoRA) and isinstance(y, LoRA):
        return x.scale == y.scale and x.rank == y.rank and torch.equal(x.B, y.B) and torch.equal(x.A, y.A)
    return isinstance(x, Tensor) and isinstance(y, Tensor) and torch.equal(x, y)


# --- two ways to apply a delta ---------------------------------------------------------------------------------------


def _writer(layer: nn.Module, hook: bool | None) -> Callable[[Term | None], None]:
    use_hook = not is_plain(layer) if hook is None else hook
    return _HookWriter(layer) if use_hook else _WeightWriter(layer)


class _WeightWriter:
    """Rewrites the weight in place, from a pristine copy that is made when it is first touched."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer, self.pristine = layer, None

    def __call__(self, term: Term | None) -> None:
        weight: Any = self.layer.weight
        # Always from the pristine weight: subtracting a delta from a rewritten one would not give back its bits.
        if self.pristine is None:
            self.pristine = weight.detach().clone()
        value = self.pristine if term is None else added(self.layer, self.pristine, term)
        with torch.no_grad():
            weight.copy_(value)


class _HookWriter:
    """Adds x dW^T to the layer's output, in factors where the term has them."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer, self.term, self.handle = layer, None, None

    def __call__(self, term: Term | None) -> None:
        if self.handle is not None:
            self.handle.remove()
        self.term = None if term is None else _frozen(term)
        self.handle = None if term is None else self.layer.register_forward_hook(self.add)

    def add(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        term, x = self.term, inputs[0]
        if term is None:
            return output
        self.term = term = term.to(output.device)
        apply = _embed if isinstance(layer, nn.Embedding) else _multiply
        extra = apply(x, term)
        return output + (extra * getattr(layer, "embed_scale", 1.0)).to(output.dtype)


def _frozen(term: Term) -> Term:
    if isinstance(term, LoRA):
        return LoRA(term.B.detach().to(wide(term.dtype)), term.A.detach().to(wide(term.dtype)), term.scale)
    return term.detach().to(wide(term.dtype))


def _multiply(x: Tensor, term: Term) -> Tensor:
    if isinstance(term, LoRA):
        return F.linear(F.linear(x.to(term.dtype), term.A), term.B) * term.scale
    return F.linear(x.to(term.dtype), term)


def _embed(x: Tensor, term: Term) -> Tensor:
    if isinstance(term, LoRA):
        return F.linear(F.embedding(x, term.A.mT), term.B) * term.scale
    return F.embedding(x, term.mT)
