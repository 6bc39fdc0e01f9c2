"""A client under local rules: the method in the middle asks it to train, and does not see what the rules add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedelta import tree
from fedelta.method import Client, ClientState, Displacing, GradientHook, TrainResult
from fedelta.methods._compose.parts import Part, Trained, displacement, own_of
from fedelta.tree import Adapter, Message, Tensors


class RuledClient:
    """A client whose gradients go through the rules' hooks, and then through that of the method in the middle."""

    def __init__(self, client: Client, rules: Sequence[Part], down: Message, memory: ClientState) -> None:
        self._client = client
        self._rules = rules
        self._sent = {rule.name: own_of(rule, down) for rule in rules}
        self._own = {rule.name: own_of(rule, memory) for rule in rules}
        self._trained = dict.fromkeys(self._sent, Trained())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def train(self, t: int, start: Adapter, *, gradient: GradientHook | None = None, **request: Any) -> TrainResult:
        """Trains as the client does, under the rules as well; from another start, too, for a rule that has one."""
        request = self._with_optimizer(request)
        hooks, result = self._train(t, start, gradient, request)
        moved, others = _moved(start, result), self._from_others(t, start, gradient, request)
        self._trained = {n: Trained(hook, result, moved, others.get(n, {})) for n, hook in hooks.items()}
        return result

    def leave(self) -> tuple[dict[str, Message], dict[str, ClientState]]:
        """Returns by rule the message to the server, and the next memory at the client."""
        sent: dict[str, Message] = {}
        kept: dict[str, ClientState] = {}
        for rule in self._rules:
            n = rule.name
            sent[n], kept[n] = rule.leave(self._sent[n], self._own[n], self._trained[n])
        return sent, kept

    def _with_optimizer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the request with the optimiser that a rule brings."""
        changed = dict(request)
        for rule in self._rules:
            optimizer = rule.optimizer(self._sent[rule.name])
            if optimizer is not None and changed.get("optimizer") is not None:
                raise ValueError(f"{rule.name} {rule.sole}, but the method that it goes with has one of its own: leave it out")
            if optimizer is not None:
                changed["optimizer"] = optimizer
        return changed

    def _train(
        self, t: int, start: Adapter, gradient: GradientHook | None, request: Mapping[str, Any]
    ) -> tuple[dict[str, GradientHook | None], TrainResult]:
        """Returns the hook of each rule, made for this start, and what came of training."""

        def mean_gradient(num_batches: int) -> Adapter:
            return self._client.gradient(start, num_batches, base=request.get("base"), t=t)

        own: dict[str, GradientHook | None] = {}
        for rule in self._rules:
            n = rule.name
            own[n] = rule.hook_after(self._sent[n], self._own[n], start, mean_gradient)
        hooks = [hook for hook in (*own.values(), gradient) if hook is not None]
        return own, self._client.train(t, start, gradient=_one_after_the_other(hooks), **request)

    def _from_others(
        self, t: int, start: Adapter, gradient: GradientHook | None, request: Mapping[str, Any]
    ) -> dict[str, Tensors]:
        """Returns by rule the displacement from its other start."""
        moved: dict[str, Tensors] = {}
        for rule in self._rules:
            other = rule.other_start(self._sent[rule.name], start)
            if other is not None:
                moved[rule.name] = _moved(other, self._train(t, other, gradient, request)[1])
        return moved


def _moved(start: Adapter, result: TrainResult) -> Tensors:
    return displacement(tree.parameters(start), tree.parameters(result.adapter))


def _one_after_the_other(hooks: Sequence[GradientHook]) -> GradientHook | None:
    if len(hooks) < 2:
        return hooks[0] if hooks else None
    displacing = [hook for hook in hooks if isinstance(hook, Displacing)]
    if len(displacing) > 1:
        raise ValueError("two gradient hooks ask for gradients at another point, where only one of them can have them")
    return _DisplacedChain(hooks, displacing[0]) if displacing else _Chain(hooks)


class _Chain:
    """Several hooks as one: a gradient goes through one after the other."""

    def __init__(self, hooks: Sequence[GradientHook]) -> None:
        self._hooks = hooks

    def __call__(self, gradients: Tensors, parameters: Tensors, step: int) -> Tensors:
        for hook in self._hooks:
            gradients = hook(gradients, parameters, step)
        return gradients


class _DisplacedChain(_Chain):
    """Several hooks as one, of which one says where the gradients are taken, before any other has changed them."""

    def __init__(self, hooks: Sequence[GradientHook], displacing: Displacing) -> None:
        super().__init__(hooks)
        self._displacing = displacing

    def offset(self, gradients: Tensors, parameters: Tensors, step: int) -> Tensors | None:
        return self._displacing.offset(gradients, parameters, step)
