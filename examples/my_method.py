"""A method of one's own in a file: FedAvg in which large clients lead less. `compare_methods.py` runs it beside others.

fedelta check examples/my_method.py
fedelta run quickstart --set method=examples/my_method.py --set lora.rank=8
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedelta import LoRA, Method
from fedelta import lowrank as lr
from fedelta.merging import ClientUpdate, merge
from fedelta.method import State


@dataclass(frozen=True, kw_only=True)
class RootMean(Method):
    """The mean of the factors, weighted by a power of the clients' weights.

    Args:
        power: 1 for FedAvg, 0 for a mean in which all count alike.
    """

    paper = "an example"
    coordinates = "factors"

    power: float = 0.5

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        """Returns the next adapter of all."""
        roots = [u.weight**self.power for u in updates]
        weighted = [replace(u, weight=root / sum(roots)) for u, root in zip(updates, roots, strict=True)]
        return {"adapter": merge(mean, weighted, state["adapter"])}


def mean(weights: Sequence[float], xs: Sequence[LoRA], old: LoRA) -> LoRA:
    """Returns the mean of one layer's factors; refuses ranks that differ."""
    if any(x.rank != old.rank for x in xs):
        raise ValueError(f"needs rank {old.rank} of all; for other ranks take flexlora")
    return lr.mean_factors(weights, [lr.rescale(x, old.scale) for x in xs])
