"""Adapters, base deltas and messages: trees whose leaves are tensors, and the ways to combine them.

An `Adapter` is what a client trains; a `BaseDelta` is what a method has added to the frozen base; a message is a mapping of
these, of tensors, and of plain values. Everything is a value: nothing here writes into a tensor that it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedelta import lowrank as lr
from fedelta.lowrank import LoRA
from fedelta.tree.flat import flatten, unflatten
from fedelta.tree.value import Adapter, BaseDelta, Checked, Factor, Message, Tensors
from fedelta.tree.walk import count, find, named_tensors

__all__ = [
    "Adapter",
    "BaseDelta",
    "Checked",
    "Factor",
    "Message",
    "Tensors",
    "add",
    "catch_up",
    "check_alike",
    "check_finite",
    "check_fits",
    "check_names",
    "check_weights",
    "count",
    "dense",
    "effective",
    "factors",
    "find",
    "flatten",
    "map",
    "map_named",
    "map_tensors",
    "mean",
    "mean_deltas",
    "mean_factors",
    "merge",
    "named_tensors",
    "parameters",
    "total",
    "unflatten",
    "with_factors",
    "with_parameters",
]


def map(fn: Callable[..., LoRA], adapter: Adapter, *others: Adapter) -> Adapter:
    """`fn` layer by layer; dense tensors and fingerprint come from the first adapter."""
    return replace(adapter, layers={n: fn(x, *(o.layers[n] for o in others)) for n, x in adapter.layers.items()})


def map_named(fn: Callable[[str, LoRA], LoRA], adapter: Adapter) -> Adapter:
    """`fn(name, delta)` layer by layer, for what depends on the layer's name."""
    return replace(adapter, layers={n: fn(n, x) for n, x in adapter.layers.items()})


def merge(
    fn: Callable[[Sequence[float], Sequence[LoRA]], LoRA],
    weights: Sequence[float],
    adapters: Sequence[Adapter],
) -> Adapter:
    """`fn(weights, deltas)` at every layer, the weighted mean at every dense tensor.

    Args:
        fn: combines the deltas of one layer.
        weights: one for each adapter, with sum one.
        adapters: with the same layers, outer shapes, dense tensors and base.

    Raises:
        ValueError: naming the adapter (by position), the layer and the remedy, for what does not fit or is not finite.
    """
    check_weights(weights, len(adapters))
    check_alike(adapters)
    first = adapters[0]
    layers = {n: fn(weights, [a.layers[n] for a in adapters]) for n in first.layers}
    base = next((a.base for a in adapters if a.base is not None), None)
    return Adapter(layers, mean(weights, [a.dense for a in adapters]), base)


def mean(weights: Sequence[float], trees: Sequence[Tensors]) -> dict[str, Tensor]:
    """The weighted mean of plain tensors, name by name."""
    return {k: lr.mean(weights, [x[k] for x in trees]) for k in trees[0]}


def mean_factors(weights: Sequence[float], adapters: Sequence[Adapter]) -> Adapter:
    """The mean of factors: cheap, and biased by the cross terms B_j A_k. Equal ranks; scales are brought to the first's."""
    return merge(lambda w, xs: lr.mean_factors(w, [lr.rescale(x, xs[0].scale) for x in xs]), weights, adapters)


def mean_deltas(weights: Sequence[float], adapters: Sequence[Adapter]) -> Adapter:
    """The mean of deltas: exact, at the sum of the ranks, scale 1, in float64."""
    return merge(lambda w, xs: lr.stack(w, xs, dtype=torch.float64), weights, adapters)


def factors(adapter: Adapter, which: Factor) -> dict[str, Tensor]:
    """One factor of every layer, by layer name."""
    return {n: getattr(x, which) for n, x in adapter.layers.items()}


def with_factors(adapter: Adapter, which: Factor, values: Tensors, dense: Tensors | None = None) -> Adapter:
    """The inverse of `factors`: one factor of every layer replaced, and the dense tensors where given."""
    layers = {n: lr.with_factor(x, which, values[n]) for n, x in adapter.layers.items()}
    return replace(adapter, layers=layers, dense=adapter.dense if dense is None else dense)


def parameters(adapter: Adapter) -> dict[str, Tensor]:
    """All tensors by a flat name: `<layer>.lora_A`, `<layer>.lora_B`, and the dense ones by theirs."""
    flat = {f"{n}.lora_{w}": t for n, x in adapter.layers.items() for w, t in (("A", x.A), ("B", x.B))}
    return {**flat, **adapter.dense}


def with_parameters(adapter: Adapter, values: Tensors) -> Adapter:
    """The inverse of `parameters`; names that `values` lacks keep their tensors."""
    layers = {
        n: LoRA(values.get(f"{n}.lora_B", x.B), values.get(f"{n}.lora_A", x.A), x.scale) for n, x in adapter.layers.items()
    }
    return replace(adapter, layers=layers, dense={k: values.get(k, v) for k, v in adapter.dense.items()})


def map_tensors(fn: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """`fn` on every tensor of a message, adapter or base delta; plain values pass."""
    flat, structure = flatten(tree)
    return unflatten({k: fn(v) for k, v in flat.items()}, structure)


def total(base: BaseDelta) -> dict[str, LoRA | Tensor]:
    """The sum of the terms of each layer: factors while they are smaller than dW, else dense (o, i)."""
    return {n: _sum(terms) for n, terms in base.terms.items()}


def _sum(terms: Sequence[LoRA | Tensor]) -> LoRA | Tensor:
    result = terms[0]
    for term in terms[1:]:
        result = add(result, term)
    return result


def add(x: LoRA | Tensor, y: LoRA | Tensor) -> LoRA | Tensor:
    """x + y for deltas of one layer, in factors while the stacked rank is at most o i / (o + i).

    Always the same bits for the same sequence of additions, so that a client that replays them agrees with the server.
    """
    if isinstance(x, LoRA) and isinstance(y, LoRA):
        o, i = x.shape
        if (x.rank + y.rank) * (o + i) <= o * i:
            return lr.stack([1.0, 1.0], [x, y])
    return dense(x) + dense(y)


def catch_up(held: BaseDelta, base: BaseDelta | None) -> BaseDelta:
    """The whole base delta that a client holds after receiving `base`: what it held, plus the terms that it lacks.

    Args:
        held: with `since` 0; `BaseDelta(0, {})` for a pretrained base.
        base: None, or version 0, means the pretrained base itself.

    Raises:
        ValueError: if terms are missing between what is held and what arrived.
    """
    if base is None or base.version == 0:
        return BaseDelta(0, {})
    if base.version == held.version:
        return held
    if base.since == 0:
        return BaseDelta(base.version, {n: (x,) for n, x in total(base).items()})
    if not base.since <= held.version < base.version:
        raise ValueError(
            f"a base delta from version {base.since} to {base.version} arrived, but version {held.version} is held; "
            "report base_version 0 to get the whole of it"
        )
    known = total(held)
    new = {n: terms[held.version - base.since :] for n, terms in base.terms.items()}
    return BaseDelta(base.version, {n: (_sum([*([known[n]] if n in known else []), *new[n]]),) for n in new})


def dense(x: LoRA | Tensor) -> Tensor:
    """A delta, factored or not, as a matrix (o, i); in float32 or wider, since sums that go on for rounds need it."""
    return x.to(lr.wide(x.dtype)).dense() if isinstance(x, LoRA) else x


def effective(adapter: Adapter, base: BaseDelta | None = None) -> Adapter:
    """Adapter and base delta as one adapter: what PEFT can load on the pretrained base. Its rank may be large."""
    if base is None:
        return adapter
    layers = dict(adapter.layers)
    for name, term in total(base).items():
        term = term if isinstance(term, LoRA) else lr.from_dense(term)
        layers[name] = lr.stack([1.0, 1.0], [term, layers[name]]) if name in layers else term
    return replace(adapter, layers=layers)


def check_weights(weights: Sequence[float], count: int) -> None:
    """Raises ValueError unless there is one finite weight for each of `count` >= 1 updates and they sum to one."""
    if not count:
        raise ValueError("nothing to aggregate: no update arrived; lower the quorum or check the clients' warnings")
    if len(weights) != count:
        raise ValueError(f"{len(weights)} weights for {count} updates: give one weight each")
    if not all(w >= 0 for w in weights) or abs(sum(weights) - 1) > 1e-6:
        raise ValueError(f"weights must be non-negative with sum 1, got {list(weights)}")


def check_alike(adapters: Sequence[Adapter], names: Sequence[str] | None = None) -> None:
    """Raises ValueError unless all adapters have the same layers, outer shapes, dense tensors and base.

    `names` says what a message calls them; by default they are counted.
    """
    who = names or [f"adapter {k}" for k in range(len(adapters))]
    like = next((k for k, a in enumerate(adapters) if a.base is not None), 0)  # an unknown base would match two that differ
    for k, adapter in enumerate(adapters):
        check_fits(adapter, adapters[like], who[k], who[like])


def check_fits(adapter: Adapter, like: Adapter, who: str, other: str) -> None:
    """Raises ValueError unless `adapter` has finite values and the layers, outer shapes, dense tensors and base of `like`.

    Ranks and scales may differ. `who` and `other` name the two in the message.
    """
    if adapter.base is not None and like.base is not None and adapter.base != like.base:
        raise ValueError(
            f"{who} was trained on base {adapter.base}, {other} on {like.base}: adapters of different base models "
            "cannot be merged"
        )
    check_names(adapter.layers, like.layers, who, other, "layers")
    check_names(adapter.dense, like.dense, who, other, "dense tensors")
    for name, x in adapter.layers.items():
        if x.shape != like.layers[name].shape:
            raise ValueError(
                f"layer {name!r}: {who} has (d_out, d_in) = {x.shape}, {other} has {like.layers[name].shape}; "
                "both must adapt the same weight"
            )
    for name, tensor in adapter.dense.items():
        if tensor.shape != like.dense[name].shape:
            raise ValueError(
                f"dense tensor {name!r}: {who} has shape {tuple(tensor.shape)}, {other} {tuple(like.dense[name].shape)}; "
                "both must have the same head (same labels)"
            )
    check_finite(adapter, who)


def check_names(mine: Mapping[str, Any], others: Mapping[str, Any], who: str, other: str, what: str) -> None:
    """Raises ValueError, saying what is missing and what is too much, unless both have the same keys."""
    if mine.keys() == others.keys():
        return
    missing, extra = sorted(others.keys() - mine.keys()), sorted(mine.keys() - others.keys())
    told = [f"{word} {names[:3]}" for word, names in (("lacks", missing), ("adds", extra)) if names]
    raise ValueError(
        f"{who} and {other} do not adapt the same {what}: {who} {' and '.join(told)}; "
        "use one LoRA configuration (target modules, modules_to_save) for all"
    )


class NotFiniteError(ValueError):
    """Some tensor of a tree holds NaN or Inf."""


def check_finite(
    tree: Any, who: str, remedy: str = "lower the learning rate or clip gradients, or leave the client out"
) -> None:
    """Raises NotFiniteError, naming `who` and the tensor, if a tensor of the tree, `Checked` ones aside, holds NaN or Inf."""
    for name, tensor in named_tensors(_unchecked(tree)):
        if tensor.is_floating_point() and not lr.is_finite(tensor):
            count = int((~torch.isfinite(tensor)).sum())
            raise NotFiniteError(f"{who}: {name} holds {count} NaN or Inf of {tensor.numel()} values; {remedy}")


def _unchecked(tree: Any) -> Any:
    if isinstance(tree, Checked):
        return {}
    return replace(tree, layers=_unchecked(tree.layers), dense=_unchecked(tree.dense)) if isinstance(tree, Adapter) else tree
