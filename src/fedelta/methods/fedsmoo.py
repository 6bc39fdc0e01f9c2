"""FedSMOO: dynamic regularisation, and gradients at a perturbation that all clients agree on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypedDict

from torch import Tensor

from fedelta.merging import ClientUpdate
from fedelta.method import ClientState, GradientHook, State
from fedelta.methods._compose.parts import Trained
from fedelta.methods._compose.rules import (
    ELSEWHERE,
    Elsewhere,
    LocalRule,
    check_like,
    mean_by_name,
    of_norm,
)
from fedelta.methods._shared.variates import less
from fedelta.methods.feddyn import FedDyn
from fedelta.peers import Peer
from fedelta.tree import Adapter, Message, Tensors


class FedSMOOState(TypedDict):
    """The rule's memory at the server.

    Attributes:
        dynamic: that of `feddyn`.
        s: the perturbation by flat name, of what has been trained so far.
    """

    dynamic: State
    s: Tensors


@dataclass(frozen=True, kw_only=True)
class FedSMOO(LocalRule):
    """Dynamic regularisation with sharpness-aware gradients, whose perturbation has dual variables as well.

    Algorithm:
        init            s = h = 0 at the server, h_k = mu_k = 0 at each of the N clients
        client k        in every local step, w_t being what it starts from,
                          g1 = the gradient at x,   s_k = rho (g1 - mu_k - s) / ||g1 - mu_k - s||,   mu_k <- mu_k + s_k - s
                          g  = the gradient at x + s_k on the same batch,   g <- g + lambda (h_k + x - w_t)
                        then  D_k = w_k - w_t,  h_k <- h_k + D_k
        server          s <- rho m / ||m||,  m = the plain mean of mu_k over the cohort;   all else as `feddyn`
        travels         s down and mu_k up, each of the size of what is trained
        scale           one for all, and one rank

    It solves the problem flattened by the perturbation: it ends beside the optimum, at most about rho away. Norms are over all
    tensors that train. What a round does not train keeps its s, mu_k and h_k. A client that lost its memory goes on from 0. As
    in `feddyn` the server's means are over clients, whatever their examples, and local SGD is assumed.

    Args:
        strength: lambda, above 0.
        rho: the length of the perturbation; 0 is `feddyn`, to the bit.

    Source: Sun et al., "Dynamic Regularized Sharpness Aware Minimization in Federated Learning: Approaching Global Consistency
    and Smooth Landscape", arXiv 2305.11584 (ICML 2023). The full text was not available: this follows the authors' simulator,
    which says that it leaves out a small term of the paper.
    """

    strength: float = 0.1
    rho: float = 0.1

    paper = "Sun et al. 2023, FedSMOO, arXiv 2305.11584"
    follows = "the authors' code"
    asks = frozenset({"gradient"})
    reported = "none available to us"
    stable = True
    needs_updates = True
    sums = None
    equal_ranks = True
    one_scale = True
    sole = ELSEWHERE
    extra = "a perturbation down, its dual variable up"
    exempt: ClassVar[Mapping[str, str]] = FedDyn.exempt

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.strength > 0 or not self.rho >= 0:
            raise ValueError(f"FedSMOO needs strength above 0 and rho of at least 0, got {self.strength} and {self.rho}")

    @property
    def _dynamic(self) -> FedDyn:
        return FedDyn(strength=self.strength)

    def open(self, peers: Sequence[Peer]) -> State:
        return FedSMOOState(dynamic=self._dynamic.open(peers), s={})

    def send(self, state: State) -> Message:
        return {"s": state["s"]} if state["s"] else {}

    def adds(self, t: int, up: int) -> tuple[int, int]:
        if not self.rho:
            return 0, 0
        return up if t else 0, up  # of what is trained; exact for a method in which this is the same in every round

    def hook(self, sent: Message, own: ClientState, start: Adapter) -> GradientHook | None:
        pull = self._dynamic.hook({}, own, start)
        return _Agreed(self.rho, sent.get("s", {}), own.get("mu", {}), pull) if pull is not None and self.rho else pull

    def leave(self, sent: Message, own: ClientState, trained: Trained) -> tuple[Message, ClientState]:
        _, kept = self._dynamic.leave({}, own, trained)
        if not isinstance(trained.hook, _Agreed):
            return {}, {**own, **kept}
        mu = {n: x.cpu() for n, x in trained.hook.mu.items()}
        return {"mu": mu}, {**kept, "mu": {**own.get("mu", {}), **mu}}

    def reweigh(self, updates: Sequence[ClientUpdate]) -> Sequence[ClientUpdate]:
        return self._dynamic.reweigh(updates)

    def check_sent(self, updates: Sequence[ClientUpdate], like: Tensors) -> None:
        if self.rho:
            check_like(self.name, updates, "mu", "dual variable", like)

    def displace(self, state: State, step: Tensors, updates: Sequence[ClientUpdate]) -> tuple[Tensors, State]:
        step, dynamic = self._dynamic.displace(state["dynamic"], step, updates)
        if not self.rho:
            return step, FedSMOOState(dynamic=dynamic, s={})
        mean = mean_by_name([1 / len(updates)] * len(updates), [u.content["mu"] for u in updates])
        return step, FedSMOOState(dynamic=dynamic, s={**state["s"], **of_norm(mean, self.rho)})


class _Agreed(Elsewhere):
    """A hook that takes gradients at x + s_k, keeps mu_k, and then pulls as FedDyn does."""

    def __init__(self, rho: float, s: Tensors, own: Tensors, pull: GradientHook) -> None:
        self.rho, self.s, self.own, self.pull = rho, s, own, pull
        self.mu: dict[str, Tensor] = {}

    def displacement(self, gradients: Tensors, parameters: Tensors, step: int) -> Tensors | None:
        if step == 0:
            self.s = {n: self.s[n].to(x) for n, x in gradients.items() if n in self.s}
            self.mu = {n: self.own[n].to(x) for n, x in gradients.items() if n in self.own}
        found = of_norm(less(less(gradients, self.mu), self.s), self.rho)
        for n, x in less(found, self.s).items():
            self.mu[n] = self.mu[n] + x if n in self.mu else x
        return found

    def changed(self, gradients: Tensors, parameters: Tensors, step: int) -> Tensors:
        return self.pull(gradients, parameters, step)
