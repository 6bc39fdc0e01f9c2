"""Aggregates adapters once, without an engine: adapters in, adapters out."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, TypeAlias

import torch

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate, in_order
from fedelta.method import Method, State
from fedelta.methods import get_method
from fedelta.peers import Peer, largest, template_for
from fedelta.tree import Adapter

ScaleRule: TypeAlias = Callable[[str, int], float]
"""(layer, rank) -> scale."""


def aggregate(
    adapters: Sequence[Adapter | str | os.PathLike[str]],
    *,
    weights: Sequence[float] | None = None,
    method: str | Method = "fedavg",
    ranks: Sequence[int] | None = None,
    same_base: bool = False,
    **hyper: Any,
) -> list[Adapter]:
    """Aggregates trained adapters once, as a server would after one round.

    Args:
        adapters: adapters, or folders that PEFT wrote; all of one base model, layers and head.
        weights: one for each adapter, such as the examples that it was trained on; scaled to sum one, uniform by default.
        method: a name, with its hyper-parameters in `hyper`, or a method.
        ranks: ranks of the results. By default there is one result for each adapter, at its own ranks and scales.
        same_base: takes the bases of folders for one, though they have different names; fingerprints count in any case.

    Returns:
        The adapters that the method would send back, in the dtype of the first input. A method that moves the base (flora,
        fedex_lora) returns the whole effective delta, whose rank may exceed what was asked for.

        With `ranks`, result j has rank ranks[j] at every layer. Its scale follows the inputs' rule: lora_alpha / r if all
        inputs of a layer share one lora_alpha, else lora_alpha / sqrt(r) likewise, else their constant scale. Where they
        share nothing it is 1: dW is what is aggregated, so that this changes how it is written and not what it is.

    Raises:
        TypeError: for a single adapter or folder in place of a list.
        ValueError: for adapters that do not fit together, weights that make no mean, a method that needs training, or one
            whose messages cannot carry what these adapters differ in.
    """
    if isinstance(adapters, str | os.PathLike | Adapter):
        raise TypeError(f"aggregate takes a list of adapters, got one {type(adapters).__name__}: put it in a list")
    p = shares(weights, len(adapters))
    rule = _rule(method, hyper)
    loaded = _loaded(adapters, same_base)
    tree.check_alike(loaded)
    senders = [_peer(k, a.layers, lambda n, _, a=a: a.layers[n].scale) for k, a in enumerate(loaded)]
    receivers = senders if ranks is None else _receivers(ranks, loaded)
    return _Once(rule, loaded, senders, receivers).run(p)


@dataclass(frozen=True)
class _Once:
    """One aggregation: its inputs, and the peers that get a result."""

    rule: Method
    adapters: Sequence[Adapter]
    senders: Sequence[Peer]
    receivers: Sequence[Peer]

    def run(self, weights: Sequence[float]) -> list[Adapter]:
        # a receiver of another rank is a peer too: the method must know all ranks that it is to serve
        peers = list(self.senders) if self.receivers is self.senders else [*self.senders, *self.receivers]
        template = self._template(peers)
        self.rule.check(template, peers)
        before = self.rule.init(template, peers, seed=0)
        after = self.rule.aggregate(0, before, self._updates(before, weights))
        return [self._result(after, to, template) for to in self.receivers]

    def _updates(self, state: State, weights: Sequence[float]) -> list[ClientUpdate]:
        sent = zip(self.senders, weights, self.adapters, strict=True)
        updates = [ClientUpdate(peer, w, self.rule.upload(a)) for peer, w, a in sent]
        for u, a in zip(in_order(updates), self.adapters, strict=True):
            _demand_same_model(self.rule.position(0, state, u)[0], a, u.sender.id, type(self.rule).__name__)
        return updates

    def _template(self, peers: Sequence[Peer]) -> Adapter:
        """Returns a start that the inputs could have had: A of the largest input, B = 0, at the largest ranks."""
        top = largest(self.adapters[0], peers)

        def start(layer: str, x: LoRA) -> LoRA:
            widest = max((a.layers[layer] for a in self.adapters), key=lambda x: x.rank)
            rank = top.rank_of(layer)
            live = lr.pad(lr.with_factor(widest, "B", torch.zeros_like(widest.B)), rank)
            return replace(live, scale=top.scale_of(layer, rank))

        return tree.map_named(start, self.adapters[0])

    def _result(self, state: State, to: Peer, template: Adapter) -> Adapter:
        model = self.rule.deploy(self.rule.broadcast(1, state, to), {}, template_for(to, template))
        whole = tree.effective(model["adapter"], model.get("base"))
        return tree.map(lambda x, first: x.to(first.dtype), whole, self.adapters[0])


def _loaded(adapters: Sequence[Adapter | str | os.PathLike[str]], same_base: bool) -> list[Adapter]:
    folders = [a for a in adapters if not isinstance(a, Adapter)]
    if not folders:
        return [a for a in adapters if isinstance(a, Adapter)]
    from fedelta.adapters.reading import read_alike  # slow to import, and not needed for adapters in memory

    read = iter(read_alike(folders, same_base=same_base))
    return [a if isinstance(a, Adapter) else next(read) for a in adapters]


def shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """Returns weights that sum to one: of as many adapters, all equal where none are given."""
    if not count:
        raise ValueError("nothing to aggregate: give at least one adapter")
    given = [1.0] * count if weights is None else [float(w) for w in weights]
    if len(given) != count:
        raise ValueError(f"{len(given)} weights for {count} adapters: give one weight each")
    if not all(math.isfinite(w) and w >= 0 for w in given) or not any(given):
        raise ValueError(f"weights must be finite, not negative, and not all zero, got {given}")
    try:
        total = math.fsum(given)
    except OverflowError:  # only what they are to each other counts
        return shares([w / max(given) for w in given], count)
    return [w / total for w in given]


def _rule(method: str | Method, hyper: Mapping[str, Any]) -> Method:
    if isinstance(method, Method) and hyper:
        raise ValueError(f"{type(method).__name__} is given with its hyper-parameters already; drop {sorted(hyper)}")
    rule = method if isinstance(method, Method) else get_method(method, **hyper)
    if not rule.one_shot:
        raise ValueError(
            f"{type(rule).__name__} is a way of training: without clients there is nothing for it to aggregate. Run it with "
            "federate, or choose another method"
        )
    return rule


def _demand_same_model(read: Adapter, given: Adapter, k: int, method: str) -> None:
    """Raises ValueError if an upload no longer means the adapter that it was made from."""
    for layer, x in given.layers.items():
        if read.layers[layer] is x:
            continue
        y, x = read.layers[layer].to(torch.float64), x.to(torch.float64)
        if lr.dist2(x, y) > 1e-10 * lr.inner(x, x):
            raise ValueError(
                f"layer {layer!r}: {method} does not send all of adapter {k}: its clients share a factor that the adapters "
                "given here do not share. Choose a method that sends both factors, such as flexlora"
            )


def _receivers(ranks: Sequence[int], adapters: Sequence[Adapter]) -> list[Peer]:
    if isinstance(ranks, int) or not all(isinstance(r, Integral) and r >= 1 for r in ranks):
        raise ValueError(f"ranks must be a list of whole numbers of at least 1, one for each result, got {ranks}")
    scale = _scale_rule(adapters)
    return [_peer(len(adapters) + j, dict.fromkeys(adapters[0].layers, r), scale) for j, r in enumerate(ranks)]


def _scale_rule(adapters: Sequence[Adapter]) -> ScaleRule:
    """Returns the scale rule that the inputs share, layer by layer, or a constant 1."""

    def scale(layer: str, rank: int) -> float:
        xs = [a.layers[layer] for a in adapters]
        for power in (1.0, 0.5, 0.0):  # lora_alpha / r, rsLoRA's lora_alpha / sqrt(r), a constant
            numerators = [x.scale * x.rank**power for x in xs]
            if all(math.isclose(n, numerators[0], rel_tol=1e-9) for n in numerators):
                return numerators[0] / rank**power
        return 1.0

    return scale


def _peer(id: int, layers: Mapping[str, LoRA | int], scale: ScaleRule) -> Peer:
    """Returns a peer with exactly these ranks (of the deltas, or as given) and scales."""
    ranks = {n: x.rank if isinstance(x, LoRA) else x for n, x in layers.items()}
    return Peer(
        id=id,
        rank=max(ranks.values(), default=1),
        rank_pattern=ranks,
        alpha_pattern={n: _numerator(scale(n, r), max(r, 1)) for n, r in ranks.items()},
    )


def _numerator(scale: float, rank: int) -> float:
    """Returns a lora_alpha with lora_alpha / rank == scale to the last bit, if floating point has one.

    Identical inputs then come back bit for bit.
    """
    product = scale * rank
    near = (product, math.nextafter(product, math.inf), math.nextafter(product, -math.inf))
    return next((n for n in near if n / rank == scale), product)
