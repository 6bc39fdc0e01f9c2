"""FedGLOMO: momentum at the server and within each client, against the noise of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypedDict

from torch import Tensor

from fedelta import tree
from fedelta.merging import ClientUpdate
from fedelta.method import ClientState, GradientHook, State
from fedelta.methods._compose.parts import Trained
from fedelta.methods._compose.rules import ELSEWHERE, Elsewhere, LocalRule, check_like, mean_by_name
from fedelta.peers import Peer
from fedelta.tree import Adapter, Message, Tensors


class FedGLOMOState(TypedDict):
    """The rule's memory at the server; by flat name, of what has been trained so far.

    Attributes:
        u: the momentum, as a displacement.
        previous: what the tensors were before the last round that moved them.
    """

    u: Tensors
    previous: Tensors


@dataclass(frozen=True, kw_only=True)
class FedGLOMO(LocalRule):
    """Global and local momentum: both subtract, on the same batches, what was estimated at the point before.

    Algorithm:
        init            nothing at the server
        client k        v_0 = the gradient at x_0, see `first_batches`;   in every further local step
                        v_j = grad(x_j; b_j) - grad(x_{j-1}; b_j) + v_{j-1};   x_{j+1} = x_j - eta v_j.
                        From x_0 = w_t this gives D_k = w_k - w_t;  from x_0 = w_{t-1}, on the same batches, D'_k
        server          D = sum_k p_k D_k,  D' likewise;   U <- beta D + (1 - beta) (U + D - D'),  in the first round U <- D;
                        w <- w + U, where w + D is what the method that it is combined with makes of the updates
        travels         w_{t-1} down and D'_k up, from round 1 on, each of the size of what is trained
        scale           one for all, and one rank

    With exact gradients v_j is the gradient at x_j, and U is D, for every beta: it is then `fedavg`. A client does twice the
    work of a round, and each of its steps costs two gradients. Every client is sent w_{t-1}, since one that had it last round
    may have lost its memory. A factor that a round does not train keeps its U and its w_{t-1}. The server must go by the
    weights that it is given: `hetlora` does not. An optimiser of the run other than plain SGD takes v_j for a gradient.

    Args:
        beta: in (0, 1]; 1 is `fedavg` with clients whose variance is reduced.
        first_batches: of which v_0 is the mean gradient, drawn for that alone; as many as hold all examples make it exact, at
            the cost of a pass over them. 0 takes the gradient on the first batch of the round.

    Source: Das et al., "Faster Non-Convex Federated Learning via Global and Local Momentum", arXiv 2012.04061 (UAI 2022). The
    full text was not available: this follows its abstract and two re-implementations by others. The defaults of
    beta and of v_0, where the gradient over all examples may be meant, are ours; messages are not quantised.
    """

    beta: float = 0.3
    first_batches: int = 0

    paper = "Das et al. 2022, FedGLOMO, arXiv 2012.04061"
    follows = "others' readings"
    asks = frozenset({"gradient"})
    reported = (
        "no figures available to us; its abstract claims an eps-stationary point in O(eps^-1.5) iterations against O(eps^-2) "
        "of most work before it"
    )
    stable = True
    needs_updates = True
    sums = None
    equal_ranks = True
    one_scale = True
    reads_moves = True
    order = -1
    sole = ELSEWHERE
    extra = "the factors of the round before down, a second displacement up"
    exempt: ClassVar[Mapping[str, str]] = {
        "one client": "the server moves by momentum, not by what was sent",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta <= 1 or self.first_batches < 0:
            raise ValueError(f"FedGLOMO needs 0 < beta <= 1 and first_batches >= 0, got {self.beta} and {self.first_batches}")

    def open(self, peers: Sequence[Peer]) -> State:
        return FedGLOMOState(u={}, previous={})

    def send(self, state: State) -> Message:
        return {"previous": state["previous"]} if state["previous"] else {}

    def adds(self, t: int, up: int) -> tuple[int, int]:
        more = up if t else 0  # of what is trained; exact for a method in which this is the same in every round
        return more, more

    def hook_after(
        self, sent: Message, own: ClientState, start: Adapter, gradient: Callable[[int], Adapter]
    ) -> GradientHook | None:
        return _Recursion(tree.parameters(gradient(self.first_batches)) if self.first_batches else {})

    def other_start(self, sent: Message, start: Adapter) -> Adapter | None:
        if "previous" not in sent:
            return None
        return tree.with_parameters(start, sent["previous"])

    def leave(self, sent: Message, own: ClientState, trained: Trained) -> tuple[Message, ClientState]:
        return ({"other": trained.moved_from_other} if trained.moved_from_other else {}), own

    def check_sent(self, updates: Sequence[ClientUpdate], like: Tensors) -> None:
        # In the first round nobody sends it; later a client that does not counts as if the two displacements were equal.
        check_like(self.name, [u for u in updates if "other" in u.content], "other", "second displacement", like)

    def displace(self, state: State, step: Tensors, updates: Sequence[ClientUpdate]) -> tuple[Tensors, State]:
        change = mean_by_name([u.weight for u in updates], [_change(u) for u in updates])
        u: dict[str, Tensor] = dict(state["u"])
        for n, d in step.items():
            u[n] = self.beta * d + (1 - self.beta) * (u[n] + change[n] if n in change else u[n]) if n in u else d
        return {n: u[n] for n in step}, FedGLOMOState(u=u, previous=state["previous"])

    def keep(self, state: State, before: Tensors) -> State:
        return FedGLOMOState(u=state["u"], previous={**state["previous"], **before})


def _change(update: ClientUpdate) -> dict[str, Tensor]:
    """Returns D_k - D'_k; nothing for a client that sent no D'_k."""
    if "other" not in update.content:
        return {}
    change: dict[str, Tensor] = dict(update.content["moved"])
    for n, x in update.content["other"].items():
        change[n] = change[n] - x if n in change else -x
    return change


class _Recursion(Elsewhere):
    """A hook that makes v_j = grad(x_j) - grad(x_{j-1}) + v_{j-1} of gradients, both on the batch of step j."""

    def __init__(self, first: Tensors) -> None:
        self.first = first  # v_0 by name; of what it lacks, the gradient on the first batch
        self.here: Tensors = {}
        self.before: Tensors = {}
        self.v: Tensors = {}

    def displacement(self, gradients: Tensors, parameters: Tensors, step: int) -> Tensors | None:
        self.here = gradients
        at = {n: parameters[n].detach().clone() for n in gradients}
        back = {n: self.before[n] - x for n, x in at.items()} if step else None
        self.before = at
        return back

    def changed(self, gradients: Tensors, parameters: Tensors, step: int) -> Tensors:
        if step:
            gradients = {n: self.here[n] - g + self.v[n] for n, g in gradients.items()}
        else:
            gradients = {n: self.first[n].to(g) if n in self.first else g for n, g in gradients.items()}
        self.v = gradients
        return gradients
