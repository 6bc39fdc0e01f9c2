"""FedDyn: each client's loss is bent so that its own optimum moves to the common one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypedDict

from torch import Tensor

from fedelta import tree
from fedelta.merging import ClientUpdate
from fedelta.method import ClientState, GradientHook, State
from fedelta.methods._compose.parts import Trained
from fedelta.methods._compose.rules import LocalRule, Pull
from fedelta.peers import Peer
from fedelta.tree import Adapter, Message, Tensors


class FedDynState(TypedDict):
    """The rule's memory at the server.

    Attributes:
        h: the mean of all h_k by flat name, of what has been trained so far.
        clients: N.
    """

    h: Tensors
    clients: int


@dataclass(frozen=True, kw_only=True)
class FedDyn(LocalRule):
    """Dynamic regularisation: a proximal term, and a linear one that remembers all that a client has moved so far.

    Algorithm:
        init            h = 0 at the server, h_k = 0 at each of the N clients
        client k        w_t is what it starts from;  g <- g + lambda (h_k + x - w_t)  in every local step;
                        then  D_k = w_k - w_t,  h_k <- h_k + D_k
        server          D = the plain mean of D_k over the cohort S;  h <- h + |S| / N D;  w <- w + D + h, where w + D is what
                        the method that it is combined with makes of equal weights
        travels         nothing more
        scale           one for all, and one rank

    h is the mean of all h_k, so that where nobody moves any more the gradients of all clients add up to zero. |S| / N and not
    1 is what makes it so under partial participation. The mean is over clients, whatever their examples, and the server must go
    by the weights that it is given: `hetlora` does not. A client that lost its h_k goes on from 0, and h is then that mean no
    longer. What a round does not train keeps both.

    It assumes local SGD. With Adam the linear term goes into the moments, and the optimum is no longer certain.

    Args:
        strength: lambda, above 0.

    Source: Acar et al., "Federated Learning Based on Dynamic Regularization", arXiv 2111.04263 (ICLR 2021), after published
    code.
    """

    strength: float = 0.1

    paper = "Acar et al. 2021, FedDyn, arXiv 2111.04263"
    follows = "published code"
    asks = frozenset({"gradient"})
    reported = "none collected by us"
    stable = True
    needs_updates = True
    sums = None
    equal_ranks = True
    one_scale = True
    exempt: ClassVar[Mapping[str, str]] = {
        "scale": "the server adds what all have moved so far",
        "fixed point": "the server's step grows with the share of the clients that take part",
        "one client": "the server goes beyond what was sent, by what all have moved so far",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.strength > 0:
            raise ValueError(f"FedDyn needs a strength above 0, got {self.strength}")

    def open(self, peers: Sequence[Peer]) -> State:
        return FedDynState(h={}, clients=len(peers))

    def hook(self, sent: Message, own: ClientState, start: Adapter) -> GradientHook | None:
        # lambda (h_k + x - w_t) is a pull to w_t - h_k.
        h, at = own.get("h", {}), tree.parameters(start)
        return Pull(self.strength, {n: x - h[n].to(x) if n in h else x for n, x in at.items()})

    def leave(self, sent: Message, own: ClientState, trained: Trained) -> tuple[Message, ClientState]:
        return {}, {"h": _added(own.get("h", {}), {n: x.cpu() for n, x in trained.moved.items()})}

    def reweigh(self, updates: Sequence[ClientUpdate]) -> Sequence[ClientUpdate]:
        tree.check_weights([u.weight for u in updates], len(updates))
        return [replace(u, weight=1 / len(updates)) for u in updates]

    def displace(self, state: State, step: Tensors, updates: Sequence[ClientUpdate]) -> tuple[Tensors, State]:
        share = len(updates) / state["clients"]
        h = _added(state["h"], {n: share * x for n, x in step.items()})
        return {n: x + h[n] for n, x in step.items()}, FedDynState(h=h, clients=state["clients"])


def _added(old: Tensors, more: Tensors) -> dict[str, Tensor]:
    """Returns the sum by name; a tensor that one of them lacks counts as zero there."""
    total = dict(old)
    for n, x in more.items():
        total[n] = old[n] + x if n in old else x
    return total
