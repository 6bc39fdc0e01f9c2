"""Local optimisers: pure hyper-parameters with `init` and `update`, in the manner of optax.

`update` writes into the parameters and the state that it is given, which belong to one call of a client's training; it keeps
nothing. The arithmetic is torch's own functional form: SGD gives torch.optim's bits, AdamW those of its fused kernel, which
reads and writes each tensor once and agrees with the other forms to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol, TypeAlias, cast, runtime_checkable

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from fedelta.demands import Check, demand_all, number
from fedelta.registry import check_name, check_settings

OptimizerState: TypeAlias = dict[str, dict[str, Tensor]]
"""By slot, such as `second_moment`: tensors by parameter name."""


@runtime_checkable
class Optimizer(Protocol):
    """The optimiser that `client.train` takes: two functions and a state that is passed between them."""

    def init(self, params: dict[str, Tensor]) -> OptimizerState:
        """A fresh state for these parameters."""
        ...

    def update(self, params: dict[str, Tensor], grads: dict[str, Tensor], state: OptimizerState, learning_rate: float) -> None:
        """One step, in place on `params` and `state`; parameters without a gradient are not in `grads` and stay."""
        ...


_decay = number(least=0, below=1)


def _two_decays(name: str, value: object) -> None:
    """Checks the decays of two moments."""
    if not isinstance(value, tuple | list) or len(cast("tuple[object, ...]", value)) != 2:
        raise ValueError(f"{name} must be two numbers, such as (0.9, 0.999), got {value!r:.60}")
    for decay in cast("tuple[object, ...]", value):
        _decay(f"each of {name}", decay)


CHECKS: Mapping[str, Check] = {
    "betas": _two_decays,
    "eps": number(above=0),
    "momentum": _decay,
    "weight_decay": number(least=0),
}
"""The bounds of the optimisers' settings: beyond them a step grows without end, or is no descent."""


def _check_settings_of(optimizer: AdamW | SGD) -> None:
    names = [entry.name for entry in fields(optimizer)]
    demand_all(optimizer, {name: check for name, check in CHECKS.items() if name in names})


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW (Loshchilov and Hutter 2019): decoupled weight decay, bias-corrected moments.

    Every entry is updated by itself, so that tensors of several clients may be stacked.

    Args:
        betas: decay of the first and second moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled, times the learning rate.

    Raises:
        ValueError: for a setting beyond its bounds (`CHECKS`); so do the others.
    """

    elementwise: ClassVar[bool] = True

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_settings_of(self)

    def init(self, params: dict[str, Tensor]) -> OptimizerState:
        return {
            "first_moment": {n: torch.zeros_like(p) for n, p in params.items()},
            "second_moment": {n: torch.zeros_like(p) for n, p in params.items()},
            "step": {n: _counter(p) for n, p in params.items()},
        }

    def update(self, params: dict[str, Tensor], grads: dict[str, Tensor], state: OptimizerState, learning_rate: float) -> None:
        names: dict[bool, list[str]] = {True: [], False: []}
        for name in grads:
            names[has_fused_step(params[name])].append(name)
        for fused, chosen in names.items():
            if chosen:
                self._update(chosen, params, grads, state, learning_rate, fused=fused)

    def _update(
        self,
        names: list[str],
        params: dict[str, Tensor],
        grads: dict[str, Tensor],
        state: OptimizerState,
        learning_rate: float,
        *,
        fused: bool,
    ) -> None:
        adamw(
            [params[n] for n in names],
            [grads[n].contiguous() for n in names],  # the fused kernel takes all tensors for contiguous ones
            [state["first_moment"][n] for n in names],
            [state["second_moment"][n] for n in names],
            [],
            [state["step"][n] for n in names],
            foreach=not fused,
            fused=fused,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=learning_rate,
            weight_decay=self.weight_decay,
            eps=self.eps,
            maximize=False,
        )


def has_fused_step(param: Tensor) -> bool:
    """Returns whether AdamW's step of a tensor is torch's fused kernel, whose counter must lie beside the tensor.

    The kernel takes the tensor for contiguous: on a CPU it would write what lies between the rows of a view, unasked.
    """
    return param.device.type in ("cpu", "cuda") and param.is_contiguous()


def _counter(param: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.float32, device=param.device if has_fused_step(param) else "cpu")


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

    def __post_init__(self) -> None:
        _check_settings_of(self)

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


@dataclass(frozen=True, kw_only=True)
class WarmAdam:
    """Adam (Kingma and Ba 2015) that may go on from second moments which somebody else has estimated.

    With k the step, from 1, and v_0 an estimate that is right already and so gets no bias correction:

        mu = b1 mu + (1 - b1) g,   nu = b2 nu + (1 - b2) g g,   nu_0 = v_0
        w -= rate (mu / (1 - b1^k)) / (sqrt(v) + eps),   v = nu where v_0 > 0, else nu / (1 - b2^k)

    An entry with v_0 = 0 is one of which nothing is known: it starts cold, where a warm start would take its first step
    1 / sqrt(1 - b2) times too long. So does a parameter without an estimate.

    Args:
        betas: b1 and b2.
        eps: added to the root of the second moment; for a parameter in `eps_of`, the number there.
        eps_of: by parameter name. A parameter that enters the model times s has gradients times s: an eps times s then gives
            the steps of the parameter that enters it plainly, over s.
        second_moment: v_0 by parameter name, of the parameter's shape.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    eps_of: Mapping[str, float] = field(default_factory=dict[str, float])
    second_moment: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def init(self, params: dict[str, Tensor]) -> OptimizerState:
        nu = {
            n: self.second_moment[n].to(p, copy=True) if n in self.second_moment else p.new_zeros(p.shape)
            for n, p in params.items()
        }
        return {
            "first_moment": {n: torch.zeros_like(p) for n, p in params.items()},
            "second_moment": nu,
            "cold": {n: v == 0 for n, v in nu.items()},
            "step": {n: torch.zeros((), dtype=torch.int64) for n in params},
        }

    def update(self, params: dict[str, Tensor], grads: dict[str, Tensor], state: OptimizerState, learning_rate: float) -> None:
        b1, b2 = self.betas
        for name, grad in grads.items():
            mu, nu = state["first_moment"][name], state["second_moment"][name]
            step = int(state["step"][name].add_(1))
            mu.lerp_(grad, 1 - b1)
            nu.mul_(b2).addcmul_(grad, grad, value=1 - b2)
            root = self._corrected(name, state, step).sqrt_().add_(self.eps_of.get(name, self.eps))
            params[name].addcdiv_(mu, root, value=-learning_rate / (1 - b1**step))

    def estimates(self, state: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """v by parameter name after the last step: what another `WarmAdam` takes as its `second_moment`."""
        return {n: self._corrected(n, state, int(step)) for n, step in state["step"].items()}

    def _corrected(self, name: str, state: Mapping[str, Mapping[str, Tensor]], step: int) -> Tensor:
        nu = state["second_moment"][name]
        return torch.where(state["cold"][name], nu / (1 - self.betas[1] ** max(step, 1)), nu)


OPTIMIZERS: dict[str, type[AdamW] | type[SGD]] = {"adamw": AdamW, "sgd": SGD}


def get_optimizer(name: str, **settings: Any) -> Optimizer:
    """An optimiser by name.

    Raises:
        ValueError: for an unknown name or setting, naming the nearest known one.
    """
    check_name("optimizer", name, OPTIMIZERS)
    check_settings(f"optimizer {name!r}", settings, [f.name for f in fields(OPTIMIZERS[name])])
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    return OPTIMIZERS[name](**values)
