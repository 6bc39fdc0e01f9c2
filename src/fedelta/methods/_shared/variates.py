"""Control variates at a client, for the methods that correct gradients by them."""

from __future__ import annotations

from torch import Tensor

from fedelta import lowrank as lr
from fedelta.tree import Tensors


class Correction:
    """A hook that adds c - c_k to the gradients, and sums them up as they were before."""

    def __init__(self, c: Tensors, own: Tensors) -> None:
        # c - c_k, where a variate counts as zero that the server, or this client, does not have yet.
        self.shift: dict[str, Tensor] = {n: -x for n, x in own.items()}
        for n, x in c.items():
            self.shift[n] = x - own[n] if n in own else x
        self.total: dict[str, Tensor] = {}
        self.steps = 0

    def __call__(self, gradients: Tensors, parameters: Tensors, step: int) -> Tensors:
        if step == 0:  # a request that failed in company is answered again, by the same hook
            self.steps, self.total = 0, {}
            # Once for all steps: the parameters may live on a GPU.
            self.shift = {n: self.shift[n].to(x) for n, x in gradients.items() if n in self.shift}
        self.steps += 1
        for n, g in gradients.items():
            wide = g.detach().to(lr.wide(g.dtype))
            self.total[n] = self.total[n] + wide if n in self.total else wide
        return {n: g + self.shift[n] if n in self.shift else g for n, g in gradients.items()}

    def mean(self) -> dict[str, Tensor]:
        """Returns the mean of the gradients over the steps."""
        return {n: (x / self.steps).cpu() for n, x in self.total.items()}
