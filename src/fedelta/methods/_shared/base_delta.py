"""The account of a base that moves: the sum of what was added, and the latest steps for clients that are nearly up to date.

The state of a method whose base moves has the entries of a `BaseAccount`, and those of the method itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, TypedDict

from torch import Tensor

from fedelta import tree
from fedelta.lowrank import LoRA
from fedelta.method import State
from fedelta.peers import Peer
from fedelta.tree import Adapter, BaseDelta

Step: TypeAlias = Mapping[str, LoRA | Tensor]
"""The addition of one round to the base, by layer."""


class BaseAccount(TypedDict):
    """The server's memory of a base that moves.

    Attributes:
        base: the whole sum.
        steps: the latest additions, the last of which made the present version.
    """

    base: BaseDelta
    steps: Sequence[Step]


def open_base(start: Mapping[str, LoRA]) -> BaseAccount:
    """Returns the account at round 0: version 0, or version 1 if the run starts from deltas that are not zero."""
    opened = BaseAccount(base=BaseDelta(0, {}), steps=[])
    return advance(opened, start) if any(x.B.any() and x.A.any() for x in start.values()) else opened


def advance(state: State, step: Mapping[str, LoRA]) -> BaseAccount:
    """Returns the account after one more addition, in factors while these are smaller than dW."""
    base, small = state["base"], {n: _smaller(x) for n, x in step.items()}
    old = tree.total(base)
    # Added one by one with `tree.add`, so that a client which replays the steps has the server's bits.
    terms = {n: [tree.add(old[n], x) if n in old else x] for n, x in small.items()}
    grown = BaseDelta(base.version + 1, terms)
    return {"base": grown, "steps": _worth_keeping([*state["steps"], small], _size(tree.total(grown)))}


def base_for(state: State, to: Peer) -> BaseDelta:
    """Returns the steps that bring a peer's base up to date, or the whole sum where that is smaller."""
    base: BaseDelta = state["base"]
    missed = base.version - to.base_version
    if not 0 <= missed <= len(state["steps"]) or to.base_version == 0:
        return base
    steps: Sequence[Step] = state["steps"][len(state["steps"]) - missed :]
    if sum(map(_size, steps)) >= _size(tree.total(base)):
        return base
    terms = {n: [step[n] for step in steps] for n in base.terms} if steps else {}  # a peer that is up to date misses nothing
    return BaseDelta(base.version, terms, since=to.base_version)


def step_entries(template: Adapter, ranks: Mapping[str, int]) -> int:
    """Returns the numbers in one addition of these ranks by layer: factors, or dW where that is smaller."""
    shapes = {n: x.shape for n, x in template.layers.items()}
    return sum(min(ranks[n] * (o + i), o * i) for n, (o, i) in shapes.items())


def _worth_keeping(steps: Sequence[Step], limit: int) -> list[Step]:
    """Returns the latest steps that together are smaller than the whole sum; once they are not, they never will be again."""
    kept: list[Step] = []
    total = 0
    for step in reversed(steps):
        total += _size(step)
        if total >= limit:
            break
        kept.insert(0, step)
    return kept


def _size(step: Step) -> int:
    return sum(x.numel() if isinstance(x, Tensor) else x.A.numel() + x.B.numel() for x in step.values())


def _smaller(x: LoRA) -> LoRA | Tensor:
    o, i = x.shape
    return x if x.rank * (o + i) <= o * i else tree.dense(x)
