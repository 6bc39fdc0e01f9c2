"""A client under local rules: the method in the middle asks it to train, and does not see what the rules add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedelta import tree
from fedelta.method import Client, ClientState, GradientHook, TrainResult
from fedelta.methods._compose.parts import Part, displacement, own_of
from fedelta.tree import Adapter, Message, Tensors


class RuledClient:
    """A client whose gradients go through the rules' hooks, and then through that of the method in the middle."""

    def __init__(self, client: Client, rules: Sequence[Part], down: Message, memory: ClientState) -> None:
        self._client = client
        self._rules = rules
        self._sent = {rule.name: own_of(rule, down) for rule in rules}
        self._own = {rule.name: own_of(rule, memory) for rule in rules}
        self._hooks: dict[str, GradientHook | None] = dict.fromkeys(self._sent)
        self._moved: Tensors = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def train(self, t: int, start: Adapter, *, gradient: GradientHook | None = None, **request: Any) -> TrainResult:
        """Trains as the client does, under the rules as well."""
        self._hooks = {rule.name: rule.hook(self._sent[rule.name], self._own[rule.name], start) for rule in self._rules}
        hooks = [hook for hook in (*self._hooks.values(), gradient) if hook is not None]
        result = self._client.train(t, start, gradient=_one_after_the_other(hooks), **request)
        self._moved = displacement(tree.parameters(start), tree.parameters(result.adapter))
        return result

    def leave(self) -> tuple[dict[str, Message], dict[str, ClientState]]:
        """Returns by rule the message to the server, and the next memory at the client."""
        sent: dict[str, Message] = {}
        kept: dict[str, ClientState] = {}
        for rule in self._rules:
            n = rule.name
            sent[n], kept[n] = rule.leave(self._sent[n], self._own[n], self._hooks[n], self._moved)
        return sent, kept


def _one_after_the_other(hooks: Sequence[GradientHook]) -> GradientHook | None:
    if len(hooks) < 2:
        return hooks[0] if hooks else None

    def through_all(gradients: Tensors, parameters: Tensors, step: int) -> Tensors:
        for hook in hooks:
            gradients = hook(gradients, parameters, step)
        return gradients

    return through_all
