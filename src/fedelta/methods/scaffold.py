"""SCAFFOLD: control variates cancel what is peculiar to a client's gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypedDict

from torch import Tensor

from fedelta.merging import ClientUpdate
from fedelta.method import ClientState, GradientHook, State
from fedelta.methods._compose.parts import Trained
from fedelta.methods._compose.rules import LocalRule, check_like
from fedelta.methods._shared.variates import Correction, less
from fedelta.peers import Peer
from fedelta.tree import Adapter, Message, Tensors


class ScaffoldState(TypedDict):
    """The rule's memory at the server.

    Attributes:
        c: the server's control variate by flat name, of what has been trained so far.
        clients: N.
    """

    c: Tensors
    clients: int


@dataclass(frozen=True, kw_only=True)
class Scaffold(LocalRule):
    """Stochastic controlled averaging.

    Algorithm:
        init            c = 0 at the server, c_k = 0 at each of the N clients
        client k        g <- g - c_k + c  in every local step;  then  c_k <- the mean of the round's g before the correction,
                        and dc_k is what that changed
        server          as the method that it is combined with, `fedavg` by itself;  c <- c + sum_{k in cohort} dc_k / N
        travels         c down and dc_k up, each of the size of what is trained
        scale           one for all, and one rank

    The mean of the gradients is the paper's option II, c_k - c + (w_t - w_k) / (K eta), where that is defined: under plain SGD.
    It is also right for clients that run Adam, clip, or decay weights; the correction goes before all of these. For a factor
    that a round does not train, c and c_k stay as they are. B = 0 in the first round makes its first gradient of A zero.

    The paper's server rate is an optimiser: `Compose(local=Scaffold(), optimizer=FedAvgM(momentum=0, learning_rate=...))`. As
    in the paper c is a plain mean over clients, so that the clients agree on the minimum of the plain mean of their losses:
    run it with uniform weights, or all clients of one size, if those of the examples are not to be given up. A client
    that lost its c_k goes on from 0.

    Source: Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", arXiv 1910.06378 (ICML
    2020), after published code.
    """

    paper = "Karimireddy et al. 2020, SCAFFOLD, arXiv 1910.06378"
    follows = "published code"
    asks = frozenset({"gradient"})
    reported = "none collected by us"
    stable = True
    needs_updates = True
    sums = None
    equal_ranks = True
    one_scale = True
    order = 1
    extra = "control variates both ways"
    exempt: ClassVar[Mapping[str, str]] = {"scale": "an upload holds what training did to a control variate"}

    def open(self, peers: Sequence[Peer]) -> State:
        return ScaffoldState(c={}, clients=len(peers))

    def send(self, state: State) -> Message:
        return {"c": state["c"]} if state["c"] else {}

    def adds(self, t: int, up: int) -> tuple[int, int]:
        return up if t else 0, up  # of what is trained; exact for a method in which this is the same in every round

    def hook(self, sent: Message, own: ClientState, start: Adapter) -> GradientHook | None:
        return Correction(sent.get("c", {}), own.get("c", {}))

    def leave(self, sent: Message, own: ClientState, trained: Trained) -> tuple[Message, ClientState]:
        hook = trained.hook
        if not isinstance(hook, Correction):
            return {}, own
        old, mean = own.get("c", {}), hook.mean()
        # A factor that this round did not train keeps its variate.
        return {"dc": less(mean, old)}, {"c": {**old, **mean}}

    def check_sent(self, updates: Sequence[ClientUpdate], like: Tensors) -> None:
        check_like(self.name, updates, "dc", "control variate", like)

    def displace(self, state: State, step: Tensors, updates: Sequence[ClientUpdate]) -> tuple[Tensors, State]:
        c: dict[str, Tensor] = dict(state["c"])
        for u in updates:
            for name, x in u.content["dc"].items():
                c[name] = c[name] + x / state["clients"] if name in c else x / state["clients"]
        return step, ScaffoldState(c=c, clients=state["clients"])
