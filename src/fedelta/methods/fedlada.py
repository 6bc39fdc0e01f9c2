"""FedLADA: clients run AMSGrad from the server's second moment, each step mixed with the last round's direction."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypedDict

import torch
from torch import Tensor

from fedelta.merging import ClientUpdate
from fedelta.method import ClientState, State
from fedelta.methods._compose.parts import Trained
from fedelta.methods._compose.rules import LocalRule, check_like, mean_by_name
from fedelta.optim import Optimizer, OptimizerState
from fedelta.peers import Peer
from fedelta.tree import Message, Tensors

logger = logging.getLogger("fedelta.methods")


class FedLADAState(TypedDict):
    """The rule's memory at the server; by flat name, of what has been trained so far.

    Attributes:
        v: the second moment.
        direction: g_a, by how much a parameter fell in a step and unit of learning rate.
    """

    v: Tensors
    direction: Tensors


@dataclass(frozen=True, kw_only=True)
class FedLADA(LocalRule):
    """Locally amended adaptive optimisation.

    Algorithm:
        init            v = eps^2,  g_a = 0  at the server
        client k        m = 0,  v_k = vhat_k = v;   in every one of its K_k local steps
                          m <- beta1 m + (1 - beta1) g,   v_k <- beta2 v_k + (1 - beta2) g g,   vhat_k <- max(vhat_k, v_k)
                          x <- x - eta (alpha m / sqrt(vhat_k) + (1 - alpha) g_a)
        server          v <- sum_k p_k vhat_k,   g_a <- sum_k p_k (w_t - w_k) / (eta K_k);   the step as the method that it is
                        combined with, `fedavg` by itself
        travels         v and g_a down, vhat_k up, each of the size of what is trained; (eta K_k) up, with which the server
                        rebuilds each client's direction from its upload
        scale           one for all, and one rank

    This optimiser takes the place of the run's own, whose settings do not count; its learning rate and clipping do. In round 0
    g_a is 0, so that it moves only alpha times as far as AMSGrad does: it needs some rounds to be under way. For a factor that
    a round does not train v and g_a stay as they are. Clients remember nothing. The paper's server rate is an optimiser:
    `Compose(local=FedLADA(), optimizer=FedAvgM(momentum=0, learning_rate=...))`.

    Args:
        alpha: weight of a client's own direction, in (0, 1]; 1 is AMSGrad, without correction of the bias, from a common v.
        betas: decay of the first and second moments.
        eps: root of the second moment at the start, and its floor.

    Source: Sun et al., "Efficient Federated Learning via Local Adaptive Amended Optimizer with Linear Speedup", arXiv
    2308.00522 (TPAMI 2023). The full text was not available: this follows its abstract and two re-implementations by others,
    of which one has AMSGrad, as here, and the other Adam. The value of eps is ours.
    """

    alpha: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 0.01

    paper = "Sun et al. 2023, FedLADA, arXiv 2308.00522"
    follows = "others' readings"
    asks = frozenset({"optimizer"})
    reported = "none available to us"
    stable = True
    needs_updates = True
    sums = None
    equal_ranks = True
    one_scale = True
    reads_moves = True
    sole = "brings the clients' optimiser"
    extra = "a second moment and a direction down, a second moment up"
    exempt: ClassVar[Mapping[str, str]] = {"scale": "an upload holds what training did to a second moment"}

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "betas", tuple(self.betas))  # a config file's list could not be hashed
        if not 0 < self.alpha <= 1 or not all(0 <= b < 1 for b in self.betas) or not self.eps > 0:
            raise ValueError(
                f"FedLADA needs 0 < alpha <= 1, betas in [0, 1) and eps above 0, got {self.alpha}, {self.betas} and {self.eps}"
            )

    def look_ahead(self, rounds: int) -> None:
        if rounds * self.alpha < 1:
            logger.warning(
                "FedLADA takes steps of %s of AMSGrad's until its direction is under way, and %s rounds are few for that: run "
                "more, or raise alpha",
                self.alpha,
                rounds,
            )

    def open(self, peers: Sequence[Peer]) -> State:
        return FedLADAState(v={}, direction={})

    def send(self, state: State) -> Message:
        return {"v": state["v"], "direction": state["direction"]} if state["v"] else {}

    def adds(self, t: int, up: int) -> tuple[int, int]:
        return 2 * up if t else 0, up  # of what is trained; exact for a method in which this is the same in every round

    def optimizer(self, sent: Message) -> Optimizer | None:
        return Amended(self.alpha, self.betas, self.eps, sent.get("v", {}), sent.get("direction", {}))

    def leave(self, sent: Message, own: ClientState, trained: Trained) -> tuple[Message, ClientState]:
        result = trained.result
        if result is None:
            return {}, own
        return {"v": result.optimizer_state["largest"], "pace": result.learning_rate * result.num_steps}, own

    def check_sent(self, updates: Sequence[ClientUpdate], like: Tensors) -> None:
        check_like(self.name, updates, "v", "second moment", like)
        for u in updates:
            pace = u.content.get("pace")
            if isinstance(pace, bool) or not isinstance(pace, int | float) or not 0 < pace < math.inf:
                raise ValueError(f"client {u.sender.id} claims a learning rate times steps of {pace!r:.40}: it must be above 0")

    def displace(self, state: State, step: Tensors, updates: Sequence[ClientUpdate]) -> tuple[Tensors, State]:
        weights = [u.weight for u in updates]
        v = mean_by_name(weights, [u.content["v"] for u in updates])
        direction = mean_by_name(weights, [_direction(u) for u in updates])
        return step, FedLADAState(v={**state["v"], **v}, direction={**state["direction"], **direction})


def _direction(update: ClientUpdate) -> dict[str, Tensor]:
    """Returns (w_t - w_k) / (eta K_k)."""
    return {n: -x / update.content["pace"] for n, x in update.content["moved"].items()}


@dataclass(frozen=True)
class Amended:
    """AMSGrad from a given second moment, whose steps are mixed with a given direction.

    Args:
        alpha: weight of its own direction.
        betas: decay of the first and second moments.
        eps: root of the second moment where none is given, and its floor.
        v: the second moment by parameter name.
        direction: by parameter name; zero where there is none.
    """

    alpha: float
    betas: tuple[float, float]
    eps: float
    v: Tensors = field(default_factory=dict[str, Tensor])
    direction: Tensors = field(default_factory=dict[str, Tensor])

    def init(self, params: dict[str, Tensor]) -> OptimizerState:
        v = {n: self._given(self.v, n, p).clamp_min(self.eps**2) for n, p in params.items()}
        return {
            "first_moment": {n: torch.zeros_like(p) for n, p in params.items()},
            "second_moment": v,
            "largest": {n: x.clone() for n, x in v.items()},
            "direction": {n: self._given(self.direction, n, p) for n, p in params.items()},
        }

    def update(self, params: dict[str, Tensor], grads: dict[str, Tensor], state: OptimizerState, learning_rate: float) -> None:
        b1, b2 = self.betas
        for n, g in grads.items():
            m, v, largest = (state[slot][n] for slot in ("first_moment", "second_moment", "largest"))
            m.mul_(b1).add_(g, alpha=1 - b1)
            v.mul_(b2).addcmul_(g, g, value=1 - b2)
            torch.maximum(largest, v, out=largest)
            params[n].addcdiv_(m, largest.sqrt(), value=-learning_rate * self.alpha)
            params[n].add_(state["direction"][n], alpha=-learning_rate * (1 - self.alpha))

    @staticmethod
    def _given(tensors: Tensors, name: str, param: Tensor) -> Tensor:
        return tensors[name].to(param, copy=True) if name in tensors else torch.zeros_like(param)
