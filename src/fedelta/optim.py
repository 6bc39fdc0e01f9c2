"""Local optimisers: pure hyper-parameters with `init` and `update`, in the manner of optax.

`update` writes into the parameters and the state that it is given, which belong to one call of a client's training; it keeps
nothing. The arithmetic is torch's own functional form, so a step costs what torch.optim's costs and gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from fedelta.naming import nearest

OptimizerState: TypeAlias = dict[str, dict[str, Tensor]]
"""By slot, such as `second_moment`: tensors by parameter name."""


class Optimizer(Protocol):
    """What `client.train` asks of an optimiser."""

    def init(self, params: dict[str, Tensor]) -> OptimizerState:
        """A fresh state for these parameters."""
        ...

    def update(self, params: dict[str, Tensor], grads: dict[str, Tensor], state: OptimizerState, learning_rate: float) -> None:
        """One step, in place on `params` and `state`; parameters without a gradient are not in `grads` and stay."""
        ...


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW (Loshchilov and Hutter 2019): decoupled weight decay, bias-corrected moments.

    Every entry is updated by itself, so that tensors of several clients may be stacked.

    Args:
        betas: decay of the first and second moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled, times the learning rate.
    """

    elementwise: ClassVar[bool] = True

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def init(self, params: dict[str, Tensor]) -> OptimizerState:
        return {
            "first_moment": {n: torch.zeros_like(p) for n, p in params.items()},
            "second_moment": {n: torch.zeros_like(p) for n, p in params.items()},
            "step": {n: torch.zeros((), dtype=torch.float32) for n in params},
        }

    def update(self, params: dict[str, Tensor], grads: dict[str, Tensor], state: OptimizerState, learning_rate: float) -> None:
        names = list(grads)
        adamw(
            [params[n] for n in names],
            [grads[n] for n in names],
            [state["first_moment"][n] for n in names],
            [state["second_moment"][n] for n in names],
            [],
            [state["step"][n] for n in names],
            foreach=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=learning_rate,
            weight_decay=self.weight_decay,
            eps=self.eps,
            maximize=False,
        )


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent, with heavy-ball momentum where asked; entry by entry, as AdamW.

    Args:
        momentum: 0 keeps no buffer.
        weight_decay: added to the gradient.
    """

    elementwise: ClassVar[bool] = True

    momentum: float = 0.0
    weight_decay: float = 0.0

    def init(self, params: dict[str, Tensor]) -> OptimizerState:
        return {"momentum": {n: torch.zeros_like(p) for n, p in params.items()}} if self.momentum else {}

    def update(self, params: dict[str, Tensor], grads: dict[str, Tensor], state: OptimizerState, learning_rate: float) -> None:
        names = list(grads)
        buffers: list[Tensor | None] = [state["momentum"][n] if self.momentum else None for n in names]
        sgd(
            [params[n] for n in names],
            [grads[n] for n in names],
            buffers,
            foreach=True,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=learning_rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )


OPTIMIZERS: dict[str, type[AdamW] | type[SGD]] = {"adamw": AdamW, "sgd": SGD}


def get_optimizer(name: str, **settings: Any) -> Optimizer:
    """An optimiser by name.

    Raises:
        ValueError: for an unknown name or setting, naming the nearest known one.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"no optimizer is called {name!r}{nearest(name, OPTIMIZERS)}; there are {', '.join(OPTIMIZERS)}")
    known = [f.name for f in fields(OPTIMIZERS[name])]
    for setting in settings:
        if setting not in known:
            raise ValueError(f"optimizer {name!r} has no {setting!r}{nearest(setting, known)}; it has {', '.join(known)}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    return OPTIMIZERS[name](**values)
