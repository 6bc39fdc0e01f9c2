"""A method on the toy federation: what the laws of methods are tried on, and how two results are compared."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fedelta import tree
from fedelta.client import LocalClient
from fedelta.engines.rounds import Round
from fedelta.engines.server import federate
from fedelta.exchange import wire
from fedelta.merging import ClientUpdate
from fedelta.method import ClientState, Method, State
from fedelta.models.toy import toy_federation, toy_template
from fedelta.peers import Peer, template_for
from fedelta.testing.reports import Violation
from fedelta.tree import Adapter, BaseDelta, Message

EXACT = 1e-9
"""Relative error that float64 leaves to algebra on toy sizes."""


@dataclass(frozen=True)
class Scene:
    """A method and the federation that it is tried on: small, exact, in float64, with unequal weights.

    Attributes:
        method: what is tried.
        ranks: of the clients.
        seed: of data, template, training and the method's draws.
        unequal: ranks that the claim `hetero_rank` is tried at.
    """

    method: Method
    ranks: tuple[int, ...] = (3, 3, 3)
    seed: int = 0
    unequal: tuple[int, ...] = (2, 4, 3)

    @property
    def sends(self) -> bool:
        """Returns True if uploads make the next state; baselines train only."""
        return not self.method.travels.startswith("nothing")

    @property
    def common_A(self) -> bool:
        """Returns True if it gets B of all on one A, in the first round at least."""
        return "B" in self.method.upload(toy_template(2))

    def fresh(self) -> Method:
        """A copy that has seen nothing yet, for an engine to run."""
        return copy.deepcopy(self.method)

    def served(self) -> Method:
        """The same as an engine with a server settles it before round 0, to be called without one."""
        return self.fresh().for_topology(2, lambda: 0.0)

    def clients(self, ranks: Sequence[int] | None = None, **federation: Any) -> list[LocalClient]:
        """Toy clients at the scene's ranks, or others."""
        return toy_federation(ranks or self.ranks, seed=self.seed, **federation)

    def takes(self, federation: Mapping[str, Any]) -> bool:
        """Returns True if the method does not refuse toy clients at the scene's ranks with these fields."""
        peers = [client.peer for client in self.clients(**federation)]
        try:
            self.served().check(toy_template(max(self.ranks), seed=self.seed), peers)
        except ValueError:
            return False
        return True

    def play(self, rounds: int = 2, *, ranks: Sequence[int] | None = None, **federation: Any) -> list[Round]:
        """Rounds of a fresh copy; what a client raises is raised."""
        clients = self.clients(ranks, **federation)
        return list(federate(self.fresh(), clients, rounds=rounds, seed=self.seed, score=score, debug=True))

    @cached_property
    def rounds(self) -> list[Round]:
        """Two rounds at unequal scales where the ranks are unequal: scale 8 / r."""
        return self.play(lora_alpha=8.0)


def score(adapter: Adapter, base: BaseDelta | None) -> dict[str, float]:
    """A validation score that differs between clients."""
    return {"loss": float(sum(x.abs().sum() for x in adapter.dense.values()))}


@contextmanager
def quiet() -> Generator[None]:
    """Without fedelta's warnings, which the laws provoke."""
    log = logging.getLogger("fedelta")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


# --- what a message means ------------------------------------------------------------------------------------------------


def deployed(method: Method, t: int, state: State, to: Peer, template: Adapter, memory: ClientState | None = None) -> Message:
    """Returns the model of a peer that holds no base yet, by default without a memory either."""
    down = method.broadcast(t, state, replace(to, base_version=0))
    return method.deploy(down, memory or {}, template_for(to, template))


def dense(model: Message) -> dict[str, Tensor]:
    """dW of every layer, base delta included."""
    return {n: x.dense() for n, x in tree.effective(model["adapter"], model.get("base")).layers.items()}


def same_content(updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
    """The updates, all with the content of the first."""
    return [replace(u, content=updates[0].content) for u in updates]


def clone(value: Any) -> Any:
    """A message with tensors of its own."""
    return tree.map_tensors(torch.clone, value)


# --- demands -------------------------------------------------------------------------------------------------------------


def relative(x: Tensor, y: Tensor) -> float:
    """||x - y|| / ||y||; of y = 0, ||x - y||."""
    x, y = x.double(), y.double()
    size = float(y.norm())
    return float((x - y).norm()) / (size if size > 0 else 1.0)


def demand_near(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str, tolerance: float = EXACT) -> None:
    """Raises Violation with the layer, the norms and the relative error of the worst layer beyond `tolerance`."""
    worst = max(expected, key=lambda n: relative(found[n], expected[n]))
    error = relative(found[worst], expected[worst])
    if not error <= tolerance:
        raise Violation(
            f"{what}: at layer {worst!r} dW has norm {float(found[worst].norm()):.6g} where "
            f"{float(expected[worst].norm()):.6g} is right, relative error {error:.3g}"
        )


def demand_same_bits(found: Any, expected: Any, what: str) -> None:
    """Raises Violation with the first tensor that differs, and by how much, unless two messages have equal bytes."""
    x, y = dict(tree.named_tensors(found)), dict(tree.named_tensors(expected))
    for name in sorted(x.keys() & y.keys()):
        if x[name].shape != y[name].shape or x[name].dtype != y[name].dtype:
            raise Violation(f"{what}: {name} is {_kind(x[name])} and then {_kind(y[name])}")
        if not torch.equal(x[name], y[name]):
            raise Violation(f"{what}: {name} differs, relative error {relative(x[name], y[name]):.3g}")
    if x.keys() != y.keys():
        raise Violation(f"{what}: {sorted(x.keys() ^ y.keys())[:4]} are in one of the two only")
    if wire.encode({"": found}) != wire.encode({"": expected}):
        raise Violation(f"{what}: plain values, or the order of entries, differ")


def demand_refusal(
    action: Callable[[], Any], what: str, *needles: str, kinds: tuple[type[Exception], ...] = (ValueError,)
) -> None:
    """Raises Violation unless `action` raises one of `kinds` with one of the needles in its message."""
    try:
        action()
    except kinds as error:
        if needles and not any(needle in str(error) for needle in needles):
            raise Violation(f"{what} is refused, but the message does not name {_some(needles)}: {error}") from error
        return
    except Exception as error:
        expected = " or ".join(k.__name__ for k in kinds)
        raise Violation(f"{what} raises {type(error).__name__} where a {expected} belongs: {error}") from error
    raise Violation(f"{what} is not refused")


def _some(needles: Sequence[str]) -> str:
    return f"any of {', '.join(needles[:3])} and others" if len(needles) > 3 else " or ".join(map(repr, needles))


def _kind(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"
