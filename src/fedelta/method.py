"""The contract: what a federated method is, and what it may see.

A method is a frozen dataclass of hyper-parameters and a few pure functions. A round has four verbs:

    down          = method.broadcast(t, state, peer)                    server -> client
    up, private   = method.local_update(t, down, private, client)       at the client
    state         = method.aggregate(t, state, updates)                 at the server
    model         = method.deploy(down, private)                        what a participant runs

Three memories are kept apart. `state` belongs to the server (in gossip: to one node) and is seen by nobody else.
`client_state` belongs to one client, is never sent, and may get lost at any time, so every method has a default for it.
Messages (`down`, `up`) are all that travels; their bytes are counted. `t`, seeds, weights and who takes part are arguments,
set by the engine.

The weights of the updates that `aggregate` gets sum to one: p_k = n_k / n from a server, row i of the mixing matrix W at
gossip node i. So one method object serves both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, get_args, runtime_checkable

from torch import Tensor

from fedelta import tree
from fedelta.demands import demand_kinds
from fedelta.merging import ClientUpdate
from fedelta.optim import Optimizer
from fedelta.peers import Peer, at_largest, demand_different_ids, demand_equal_ranks, slice_for, template_for
from fedelta.sampling import ids_of
from fedelta.tree import Adapter, BaseDelta, Message, Tensors

State: TypeAlias = Mapping[str, Any]
ClientState: TypeAlias = Mapping[str, Any]
Trainable: TypeAlias = Literal["A", "B"] | Mapping[str, Literal["A", "B", "AB", "dense"] | None]
"""Which tensors train: one factor everywhere (dense tensors too), or a choice by layer and dense name.

Names that a mapping does not mention train fully; None freezes."""

Asked: TypeAlias = Literal["base", "trainable", "penalty", "gradient", "optimizer", "num_steps", "lr_scale"]
"""An argument of `Client.train` beyond the round and the start, which a method may use."""

EVERYTHING: frozenset[str] = frozenset(get_args(Asked))
"""All arguments of `Client.train` that a method may use; what a client takes that does not say otherwise."""

ASKED: Mapping[str, str] = {
    "base": "a base that moves (base)",
    "trainable": "training of some factors alone (trainable)",
    "penalty": "a penalty on the loss (penalty)",
    "gradient": "a hook on the gradients (gradient)",
    "optimizer": "an optimiser of its own (optimizer)",
    "num_steps": "a number of steps (num_steps)",
    "lr_scale": "a scaled learning rate (lr_scale)",
}
"""The arguments of `Client.train` in words."""

TRAINER_TAKES = frozenset({"base", "trainable", "num_steps", "lr_scale"})
"""The arguments of `train` that a user's own Trainer can honour (`fedelta.models.trainer`)."""

Penalty: TypeAlias = Callable[[Adapter], Tensor]
"""A scalar to add to the loss, from the live adapter."""

Provenance: TypeAlias = Literal[
    "the paper", "published code", "the authors' code", "others' readings", "the abstract", "no paper of its own"
]
"""The source of an implementation, from the surest to the least sure.

"the paper" was read. "published code" is code that others rely on, of a paper whose formula is well known. Of all others the
text was not at hand: they follow "the authors' code"; or notes and re-implementations, "others' readings"; or little more than
"the abstract". A baseline, and a method of ours, has "no paper of its own"."""

GradientHook: TypeAlias = Callable[[Tensors, Tensors, int], Tensors]
"""(gradients, parameters, step) -> gradients, before clipping; names as in `tree.parameters`.
One that is `Displacing` may have the gradients taken at another point."""


@runtime_checkable
class Displacing(Protocol):
    """A gradient hook that is first asked where the gradients of a step are to be taken."""

    def offset(self, gradients: Tensors, parameters: Tensors, step: int) -> Tensors | None:
        """Returns what to add to the parameters, by name, for a second evaluation on the same batch; None for none.

        The hook is then called with the gradients there, and with the parameters put back to the bit. Adapter dropout is the
        same in both; the base's own, where a run leaves it on, is drawn anew. The loss that is reported is the first one.
        """
        ...


@dataclass(frozen=True, eq=False)
class TrainResult:
    """The result of local training.

    Attributes:
        adapter: after the last step, detached.
        num_steps: optimiser steps taken.
        loss: mean training loss over the steps, without penalties.
        learning_rate: of the last step.
        optimizer_state: by slot, such as `second_moment`, the optimiser's tensors by parameter name.
    """

    adapter: Adapter
    num_steps: int
    loss: float
    learning_rate: float = 0.0
    optimizer_state: Mapping[str, Tensors] = field(default_factory=dict[str, Tensors])

    def __repr__(self) -> str:
        return f"TrainResult({self.num_steps} steps, loss {self.loss:.4g}, {self.adapter!r})"


class Client(Protocol):
    """The only door to data and model; the same in every engine.

    `train` is a request that returns a value, never a loop that a method steps through: an engine may so run the requests of a
    whole cohort in one pass. `template` is the common initial adapter at this peer's ranks and scales.

    A client that keeps the base between rounds may also have `restore(base)`, which gives it back what it held before its
    process was lost. Without it a run that resumes sends such a client the whole base delta once.

    A client that cannot honour all arguments of `train` has the attribute `takes`, a frozenset of those that it can
    (`EVERYTHING` for one without it). A method that `asks` for more is refused before the first round.
    """

    peer: Peer
    template: Adapter

    @property
    def num_steps(self) -> int:
        """The optimiser steps of a round, where a method does not ask for another number."""
        ...

    def train(
        self,
        t: int,
        start: Adapter,
        *,
        base: BaseDelta | None = None,
        trainable: Trainable | None = None,
        penalty: Penalty | None = None,
        gradient: GradientHook | None = None,
        optimizer: Optimizer | None = None,
        num_steps: int | None = None,
        lr_scale: float = 1.0,
    ) -> TrainResult:
        """Trains from `start`, of any rank up to the peer's capacity, on the base plus `base`; returns the trained adapter.

        `start` is the server's own: copy it, never write into it. The adapter returned has its scales, and tensors that
        later training leaves alone.
        """
        ...

    def gradient(self, start: Adapter, num_batches: int, *, base: BaseDelta | None = None, t: int = 0) -> Adapter:
        """A mean gradient at `start`, on the base plus `base`, without a step, in the shape of an adapter with scale as in
        `start`; over batches that are the same ones at every call of a round."""
        ...

    def base_weight(self, layer: str) -> Tensor:
        """Returns the pretrained weight (o, i) of a layer that carries an adapter, without any base delta; for reading only.

        It is for a start that is made of the base, which so never travels. Raises ValueError, naming the layer, for a weight
        that is no plain matrix of numbers, such as a quantised one.
        """
        ...


@dataclass(frozen=True)
class Method(ABC):
    """A federated method: a frozen dataclass whose fields are its hyper-parameters, all keyword-only.

    The defaults here make a method whose clients get the components that they can hold, train them and send all of it back; a
    subclass says how updates become the next state, and whatever else differs.

    Class attributes, all claims that the conformance suite tests both ways:
        paper: one line of source.
        follows: where the formula was read; the docstring says more under "Source".
        reported: one or two sentences: the main numbers that the source reports (task, model, clients, figure of the method
            against its named baselines) and how they were read (in the paper, in the authors' repository, second-hand); what
            was not available is said so. Empty for a baseline without a paper. Nothing that this library measured.
        hetero_rank: clients may hold unequal ranks.
        decentralised: gossip with this method contracts.
        coordinates: where a server optimiser or a control variate may live: "factors" if factors keep their meaning from
            round to round, "product" if only the product does, "base" if the method moves the base.
        needs_validation: the engine scores uploads on a common split into `ClientUpdate.metrics`.
        personal: participants run different models (`deploy` reads the client's state).
        one_shot: a single aggregation without training makes sense (`fedelta.aggregate`).
        travels: what goes up, in words, for listings.
        asks: the arguments of `Client.train` that `local_update` uses, of those in `Asked`; clients that cannot honour them are
            refused before the first round.
        sums: "exact" if the next state needs no more of a cohort than sum_k p_k summand_k, so that updates may be summed before
            the server sees them; None if it needs single updates.
        aliases: other names of the same method.
        exempt: laws of `fedelta.testing` that the method does not keep, each with the reason, which every report shows.
        lawful: hyper-parameters that the laws are asked with, where a default gives something up on purpose.
    """

    paper: ClassVar[str] = ""
    follows: ClassVar[Provenance] = "no paper of its own"
    reported: ClassVar[str] = ""
    hetero_rank: ClassVar[bool] = False
    decentralised: ClassVar[bool] = False
    coordinates: ClassVar[Literal["factors", "product", "base"]] = "product"
    needs_validation: ClassVar[bool] = False
    personal: ClassVar[bool] = False
    one_shot: ClassVar[bool] = True
    asks: ClassVar[frozenset[str]] = frozenset()
    sums: ClassVar[Literal["exact", "sketch"] | None] = None
    travels: ClassVar[str] = "A, B, head"
    aliases: ClassVar[tuple[str, ...]] = ()
    exempt: ClassVar[Mapping[str, str]] = {}
    lawful: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _demand_free(cls, vars(cls).get("__annotations__", {}))

    def __post_init__(self) -> None:
        demand_kinds(self)

    def population(self, clients: Sequence[Client], cohort: Callable[[], int] | None = None) -> Sequence[Client]:
        """Returns the clients that the engine is to work with; only a baseline that pools data replaces them.

        Args:
            clients: in the order of ids. There may be millions, each made when it is asked for: do not go through them.
            cohort: counts those of them that a round asks; None where all take part. Whom a method puts in their place the
                engine asks in every round.
        """
        return clients

    def for_topology(self, rounds: int, rho_sq: Callable[[], float]) -> Method:
        """Returns the method with what depends on the graph and the length of the run filled in; by default the method itself.

        Engines ask for it before round 0.

        Args:
            rounds: of the whole run.
            rho_sq: computes what a round of mixing leaves of the squared distance to consensus; 0 with a server.
        """
        return self

    def check(self, template: Adapter, peers: Sequence[Peer]) -> None:
        """Raises ValueError before the first round for a federation that the method cannot serve.

        There may be millions of peers: `peers.kinds_of` has one of each kind.
        """
        demand_different_ids(ids_of(peers))
        if not self.hetero_rank:
            demand_equal_ranks(type(self).__name__, template, peers)

    def init(self, template: Adapter, peers: Sequence[Peer], *, seed: int = 0) -> State:
        """Returns the state before round 0; by default the common initial adapter `template` at the largest ranks of the peers.

        All A come from the seed.
        """
        return {"adapter": at_largest(template, peers)}

    def broadcast(self, t: int, state: State, to: Peer) -> Message:
        """Returns the server's message to a peer; by default the leading components of the adapter that the peer can hold."""
        return {"adapter": slice_for(state["adapter"], to)}

    def upload(self, adapter: Adapter) -> Message:
        """Returns the message of a trained adapter; by default all of it."""
        return {"adapter": adapter}

    def local_update(self, t: int, down: Message, client_state: ClientState, client: Client) -> tuple[Message, ClientState]:
        """Returns the client's upload and next memory; by default it trains what it got and uploads that."""
        result = client.train(t, down["adapter"], base=down.get("base"))
        return self.upload(result.adapter), client_state

    @abstractmethod
    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        """Returns the next state. Raises ValueError for updates that do not fit together."""

    def summand(self, t: int, down: Message, up: Message, peer: Peer, ranks: Mapping[str, int] | None = None) -> Tensors:
        """Returns what a client adds to the cohort's sum in place of its upload, by flat name; an idle client adds zeros.

        Args:
            t: the round.
            down: what the client was sent.
            up: what `local_update` returned.
            peer: the client.
            ranks: by layer, the server's ranks, to which everything is padded; without them the shapes are the client's own.

        Raises:
            ValueError: for a method that claims no `sums`.
        """
        raise ValueError(f"{type(self).__name__} needs single updates, no sum of them: take a method that averages factors")

    def from_mean(self, t: int, state: State, mean: Tensors) -> State:
        """Returns what `aggregate` would, from the weighted mean of the summands alone.

        Raises:
            ValueError: for a method that claims no `sums`.
        """
        raise ValueError(f"{type(self).__name__} needs single updates, no sum of them: take a method that averages factors")

    def deploy(self, down: Message, client_state: ClientState, template: Adapter | None = None) -> Message:
        """Returns the model that a participant runs: an "adapter" and perhaps a "base".

        `template` is the participant's own initial adapter (`Client.template`): some methods never send what never changes,
        and some participants have trained nothing yet. Such methods raise ValueError without it.
        """
        return {k: down[k] for k in ("adapter", "base") if k in down}

    def position(self, t: int, state: State, update: ClientUpdate) -> tuple[Adapter, BaseDelta | None]:
        """Returns an upload as a model: adapter and base delta. Diagnostics and checks read only this."""
        return update.content["adapter"], state.get("base")

    def check_upload(self, t: int, state: State, update: ClientUpdate) -> None:
        """Raises, mostly ValueError, for an upload that `aggregate` could not use, so that its sender is left out by name.

        Engines ask as an upload arrives, whose weight is then still unknown; its tensors are finite. What `position` reads
        they check themselves, since they ask for it too: a method adds what only its `aggregate` reads. The default refuses a
        message with nothing in it.
        """
        if not update.content:
            raise ValueError(f"client {update.sender.id} sent an empty message, where {self.travels} should travel")

    def traffic(self, t: int, template: Adapter, peer: Peer, peers: Sequence[Peer]) -> tuple[int, int]:
        """Counts the entries of tensors that go down to `peer` and up from it in round t, when all `peers` always take part.

        The declared formula of the method's bytes, which the laws compare with encoded messages. By default a peer's adapter
        goes down, and what `upload` keeps of it goes up.
        """
        own = template_for(peer, template)
        return tree.count(own), tree.count(self.upload(own))


RESERVED = ("name", "path", "label", "set", "tune")
"""Words that mean something else where a config writes a method with its hyper-parameters: no field has such a name."""


def demand_free_names(cls: type[Method]) -> None:
    """Raises ValueError for a method one of whose fields has a reserved name, wherever it inherits the field from."""
    _demand_free(cls, {entry.name: None for entry in fields(cls)})


def _demand_free(cls: type[Method], names: Iterable[str]) -> None:
    for name in names:
        if name in RESERVED:
            raise ValueError(
                f"{cls.__name__}.{name}: a config could not give this field a value, since {', '.join(RESERVED)} mean "
                f"something else beside the hyper-parameters of a method: call the field otherwise, such as {name}_value"
            )


MOST = 10**12
"""The largest number of examples or steps that a client may claim."""


def check_count(value: object, what: str, who: str) -> None:
    """Raises ValueError unless a number that a client claims is at least 1 and not beyond what can be."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= MOST:
        raise ValueError(f"{who} claims {value!r:.40} {what}: it must be a number from 1 to {MOST:g}")
