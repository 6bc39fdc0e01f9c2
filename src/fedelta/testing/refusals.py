"""Laws of guards: what must be refused, and by whose name."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fedelta import tree
from fedelta.lowrank import LoRA
from fedelta.models.toy import random_adapter, toy_template
from fedelta.testing.purity import trains_only
from fedelta.testing.reports import law
from fedelta.testing.scene import Scene, demand_refusal


@law("weights", silent=trains_only)
def weights(scene: Scene) -> None:
    """Updates whose weights do not sum to one, and no updates at all, are refused."""
    done, method = scene.rounds[-1], scene.served()
    heavy = [replace(u, weight=1.0) for u in done.updates]
    demand_refusal(lambda: method.aggregate(1, done.before, heavy), "a sum of weights of 3", "weights")
    demand_refusal(lambda: method.aggregate(1, done.before, []), "a round without updates", "no update")


@law("finite", silent=trains_only)
def finite(scene: Scene) -> None:
    """NaN and Inf are refused, by client and tensor."""
    done, method = scene.rounds[-1], scene.served()
    for poison in (float("nan"), float("inf")):

        def spoil(x: Tensor, poison: float = poison) -> Tensor:
            return torch.full_like(x, poison)

        bad = replace(done.updates[1], content=tree.map_tensors(spoil, done.updates[1].content))
        updates = [done.updates[0], bad, *done.updates[2:]]
        demand_refusal(lambda u=updates: method.aggregate(1, done.before, u), f"an update of {poison}", "client 1: ")


def _sends_adapters(scene: Scene) -> str | None:
    if trains_only(scene) is None and "adapter" not in scene.method.upload(toy_template(2)):
        return "no whole adapter travels; the engine's guards check what an upload stands for"
    return trains_only(scene)


@law("fits", silent=_sends_adapters)
def fits(scene: Scene) -> None:
    """An upload with other layers, shapes, base, head or too high a rank is refused by client."""
    done, method = scene.rounds[-1], scene.served()
    first, others = done.updates[0], done.updates[1:]
    good = random_adapter(done.position(first)[0].layers["hidden"].rank, seed=5)
    cases = {
        "an upload that lacks a layer": replace(good, layers={"hidden": good.layers["hidden"]}),
        "a transposed upload": tree.map(lambda x: LoRA(x.A.mT, x.B.mT), good),
        "an upload from another base": replace(good, base="other"),
        "an upload above the largest rank": random_adapter(6, seed=5),
        "an upload with another head": replace(good, dense={"bias": torch.zeros(9).double()}),
    }
    for what, adapter in cases.items():
        updates = [replace(first, content={**first.content, "adapter": adapter}), *others]
        demand_refusal(lambda u=updates: method.aggregate(1, done.before, u), what, "client 0")
    empty = [replace(first, content={}), *others]
    demand_refusal(lambda: method.aggregate(1, done.before, empty), "an empty upload", "client 0", kinds=(KeyError, ValueError))
