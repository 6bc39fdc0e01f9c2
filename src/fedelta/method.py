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

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, get_args, get_origin, get_type_hints

from torch import Tensor

from fedelta import lowrank as lr
from fedelta import threads, tree
from fedelta.lowrank import LoRA
from fedelta.seeding import SERVER
from fedelta.tree import Adapter, BaseDelta, Message, Tensors

State: TypeAlias = Mapping[str, Any]
ClientState: TypeAlias = Mapping[str, Any]
Trainable: TypeAlias = Literal["A", "B"] | Mapping[str, Literal["A", "B", "AB", "dense"] | None]
"""Which tensors train: one factor everywhere (dense tensors too), or a choice by layer and dense name.

Names that a mapping does not mention train fully; None freezes."""

Penalty: TypeAlias = Callable[[Adapter], Tensor]
"""A scalar to add to the loss, from the live adapter."""

GradientHook: TypeAlias = Callable[[Tensors, Tensors, int], Tensors]
"""(gradients, parameters, step) -> gradients, before clipping; names as in `tree.parameters`."""


@dataclass(frozen=True)
class Peer:
    """What the federation knows of a participant: plain data.

    Attributes:
        id: unique, not negative.
        rank: capacity of a layer that `rank_pattern` does not mention. The current rank is the shape of the factors in hand.
        num_examples: n_k, its training examples.
        base_version: of the base delta that it holds; 0 after a loss.
        lora_alpha: numerator of the scale; None means a constant scale of 1.
        rslora: scale lora_alpha / sqrt(r) in place of lora_alpha / r.
        rank_pattern: ranks of single layers, with PEFT's meaning: a key is a regular expression that must match the layer's
            whole name, or all of it after a dot. A layer's own name, escaped, goes before other keys.
        alpha_pattern: the same for `lora_alpha`.
    """

    id: int
    rank: int
    num_examples: int = 1
    base_version: int = 0
    lora_alpha: float | None = None
    rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict[str, int], hash=False)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict[str, float], hash=False)

    def rank_of(self, layer: str) -> int:
        """The rank that this peer can hold at a layer."""
        return _lookup(self.rank_pattern, layer, self.rank)

    def scale_of(self, layer: str, rank: int) -> float:
        """The scale with which this peer applies a rank-`rank` delta at a layer; without components, that of rank 1."""
        lora_alpha = _lookup(self.alpha_pattern, layer, self.lora_alpha)
        if lora_alpha is None:
            return 1.0
        rank = max(rank, 1)
        return lora_alpha / (math.sqrt(rank) if self.rslora else rank)


def _lookup(pattern: Mapping[str, Any], layer: str, default: Any) -> Any:
    exact = re.escape(layer)  # goes first: the pattern "b" also matches a layer "a.b"
    if exact in pattern:
        return pattern[exact]
    return next((v for key, v in pattern.items() if re.fullmatch(rf"(.*\.)?({key})", layer)), default)


@dataclass(frozen=True, eq=False)
class ClientUpdate:
    """What `aggregate` gets from one client. The weights of a round sum to one.

    Attributes:
        sender: who sent it.
        weight: how much it counts.
        content: the message, as `local_update` returned it.
        metrics: what the engine measured on it: "loss" and "num_steps" of the training and, for a method that needs
            validation, the scores of the upload, each as "validation_<name>".
    """

    sender: Peer
    weight: float
    content: Message
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, eq=False)
class TrainResult:
    """What local training returns.

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


class Client(Protocol):
    """The only door to data and model; the same in every engine.

    `train` is a request that returns a value, never a loop that a method steps through: an engine may so run the requests of a
    whole cohort in one pass. `template` is the common initial adapter at this peer's ranks and scales.

    A client that keeps the base between rounds may also have `restore(base)`, which gives it back what it held before its
    process was lost. Without it a run that resumes sends such a client the whole base delta once.
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
        optimizer: Any = None,
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


@dataclass(frozen=True)
class Method(ABC):
    """A federated method: a frozen dataclass whose fields are its hyper-parameters, all keyword-only.

    The defaults here make a method whose clients train the adapter they get and send all of it back; a subclass says how
    updates become the next state, and whatever else differs.

    Class attributes, all claims that the conformance suite tests both ways:
        paper: one line of source.
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
        aliases: other names of the same method.
        exempt: laws of `fedelta.testing` that the method does not keep, each with the reason, which every report shows.
        lawful: hyper-parameters that the laws are asked with, where a default gives something up on purpose.
    """

    paper: ClassVar[str] = ""
    reported: ClassVar[str] = ""
    hetero_rank: ClassVar[bool] = False
    decentralised: ClassVar[bool] = False
    coordinates: ClassVar[Literal["factors", "product", "base"]] = "product"
    needs_validation: ClassVar[bool] = False
    personal: ClassVar[bool] = False
    one_shot: ClassVar[bool] = True
    travels: ClassVar[str] = "A, B, head"
    aliases: ClassVar[tuple[str, ...]] = ()
    exempt: ClassVar[Mapping[str, str]] = {}
    lawful: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        check_choices(self)

    def population(self, clients: Sequence[Client]) -> Sequence[Client]:
        """The clients that the engine is to work with; only a baseline that pools data replaces them."""
        return clients

    def for_topology(self, rounds: int, rho_sq: Callable[[], float]) -> Method:
        """The method with what depends on the graph and the length of the run filled in; by default the method itself.

        Engines ask for it before round 0.

        Args:
            rounds: of the whole run.
            rho_sq: computes what a round of mixing leaves of the squared distance to consensus; 0 with a server.
        """
        return self

    def check(self, template: Adapter, peers: Sequence[Peer]) -> None:
        """Raises ValueError before the first round for a federation that the method cannot serve."""
        ids = [p.id for p in peers]
        if len(set(ids)) != len(ids):
            raise ValueError(f"peer ids must differ, got {ids}")
        if not self.hetero_rank:
            demand_equal_ranks(type(self).__name__, template, peers)

    def init(self, template: Adapter, peers: Sequence[Peer], *, seed: int = 0) -> State:
        """The state before round 0. `template` is the common initial adapter at the largest ranks; all A come from the seed."""
        return {"adapter": template}

    def broadcast(self, t: int, state: State, to: Peer) -> Message:
        """What the server sends to a peer; by default the adapter, which must then have the peer's ranks."""
        return {"adapter": state["adapter"]}

    def upload(self, adapter: Adapter) -> Message:
        """What of a trained adapter travels."""
        return {"adapter": adapter}

    def local_update(self, t: int, down: Message, client_state: ClientState, client: Client) -> tuple[Message, ClientState]:
        """The client's part; by default it trains what it got and uploads it."""
        result = client.train(t, down["adapter"], base=down.get("base"))
        return self.upload(result.adapter), client_state

    @abstractmethod
    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        """The next state. Raises ValueError for updates that do not fit together."""

    def deploy(self, down: Message, client_state: ClientState, template: Adapter | None = None) -> Message:
        """What a participant runs: an "adapter" and perhaps a "base".

        `template` is the participant's own initial adapter (`Client.template`): some methods never send what never changes,
        and some participants have trained nothing yet. Such methods raise ValueError without it.
        """
        return {k: down[k] for k in ("adapter", "base") if k in down}

    def position(self, t: int, state: State, update: ClientUpdate) -> tuple[Adapter, BaseDelta | None]:
        """What an upload means as a model: adapter and base delta. Diagnostics and checks read only this."""
        return update.content["adapter"], state.get("base")

    def traffic(self, t: int, template: Adapter, peer: Peer, peers: Sequence[Peer]) -> tuple[int, int]:
        """The numbers (entries of tensors) that go down to `peer` and up from it in round t, when all `peers` always take part.

        The declared formula of the method's bytes, which the laws compare with encoded messages. By default a peer's adapter
        goes down, and what `upload` keeps of it goes up.
        """
        own = template_for(peer, template)
        return tree.count(own), tree.count(self.upload(own))


# --- what methods share by calling -----------------------------------------------------------------------------------


def demand_equal_ranks(name: str, template: Adapter, peers: Sequence[Peer]) -> None:
    """Raises ValueError, naming methods that can, if two peers hold different ranks or scales at a layer."""
    if len(with_distinct_ranks(peers)) == 1:
        return
    for layer in template.layers:
        ranks = {p.id: p.rank_of(layer) for p in peers}
        if len(set(ranks.values())) > 1:
            raise ValueError(
                f"{name} needs equal ranks, but layer {layer!r} has ranks {ranks} by client; give all clients one rank, or "
                "use a method for unequal ranks: zeropad (pads factors) or flexlora (averages deltas)"
            )


def check_choices(method: Method) -> None:
    """Raises ValueError if a hyper-parameter annotated with a Literal has another value."""
    hints = get_type_hints(type(method))
    for entry in fields(method):
        allowed, value = get_args(hints[entry.name]), getattr(method, entry.name)
        if get_origin(hints[entry.name]) is Literal and value not in allowed:
            raise ValueError(f"{type(method).__name__}: {entry.name} must be one of {allowed}, got {value!r}")


def unzip(updates: Sequence[ClientUpdate], key: str) -> tuple[list[float], list[Any]]:
    """The weights of the updates, and the entry `key` of each content, in the order of the senders' ids.

    Raises:
        ValueError: for no updates, or weights that do not sum to one.
        KeyError: naming the sender whose content lacks the entry.
    """
    updates = in_order(updates)
    weights = [u.weight for u in updates]
    tree.check_weights(weights, len(updates))
    for u in updates:
        if key not in u.content:
            raise KeyError(f"the update of client {u.sender.id} has no {key!r}, only {sorted(u.content)}")
    return weights, [u.content[key] for u in updates]


def in_order(updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
    """The updates by the senders' ids, so that the order of arrival does not change a bit of the result."""
    return sorted(updates, key=lambda u: u.sender.id)


Rule: TypeAlias = Callable[[Sequence[float], Sequence[LoRA], LoRA], LoRA]
"""(weights, the clients' deltas of one layer, the server's delta of that layer) -> the next delta of that layer."""

MANY = 64
"""Clients above which the layers of a merge take turns, so that there is never more than one large stack."""

FEW = 10**6
"""Numbers below which a merge is not worth a thread."""


def merge(rule: Rule, updates: Sequence[ClientUpdate], into: Adapter, *, adapters: Sequence[Adapter] | None = None) -> Adapter:
    """`rule` at every layer, and the weighted mean at every dense tensor.

    Args:
        rule: makes the next delta of a layer; a pure function, since several threads may call it.
        updates: of the round; their "adapter" entries are merged.
        into: the server's adapter, which says what layers, shapes and largest ranks an update may have.
        adapters: what is merged in place of the "adapter" entries, in the order of the senders' ids.

    Raises:
        ValueError: naming the client, the layer and the remedy, for an update that does not fit or is not finite.
    """
    if adapters is None:
        weights, adapters = unzip(updates, "adapter")
    else:
        weights = [u.weight for u in in_order(updates)]
        tree.check_weights(weights, len(adapters))
    base = next((a.base for a in (into, *adapters) if a.base is not None), None)
    into = replace(into, base=base)  # an unknown base would match two that differ
    with threads.one_thread():  # thousands of passes over small tensors, each of which would end at a barrier
        for u, adapter in zip(in_order(updates), adapters, strict=True):
            check_update(adapter, into, f"client {u.sender.id}")

    def at(layer: str) -> LoRA:
        return _at(layer, rule, weights, [a.layers[layer] for a in adapters], into.layers[layer])

    layers = threads.ordered(at, list(into.layers), 1 if _in_turn(into, len(adapters)) else None)
    return Adapter(layers, tree.mean(weights, [a.dense for a in adapters]), base)


def _in_turn(into: Adapter, count: int) -> bool:
    """Whether a merge goes layer by layer: threads would be idle, their stacks too large together, or the work elsewhere."""
    entries = sum(x.rank * sum(x.shape) for x in into.layers.values())
    return count > MANY or count * entries < FEW or any(x.B.device.type != "cpu" for x in into.layers.values())


def _at(layer: str, rule: Rule, weights: Sequence[float], xs: Sequence[LoRA], old: LoRA) -> LoRA:
    try:
        return rule(weights, xs, old)
    except ValueError as error:
        raise ValueError(f"layer {layer!r}: {error}") from error


def check_update(adapter: Adapter, into: Adapter, who: str) -> None:
    """Raises ValueError unless `adapter` is finite, fits the server's adapter and has no more components than it."""
    tree.check_fits(adapter, into, who, "the server")
    for name, x in adapter.layers.items():
        if x.rank > into.layers[name].rank:
            raise ValueError(
                f"layer {name!r}: {who} sends rank {x.rank}, above the largest configured rank "
                f"{into.layers[name].rank}; send no more components than the peer's rank"
            )


def with_ranks(peer: Peer, ranks: Mapping[str, int]) -> Peer:
    """The peer with these ranks by layer, such as those that are left to it after pruning."""
    return replace(peer, rank_pattern={re.escape(n): r for n, r in ranks.items()})


def template_for(peer: Peer, template: Adapter) -> Adapter:
    """The common initial adapter as a peer holds it: its leading components, under the peer's scales.

    A change of scale goes to B, so that every peer has the same rows of A.

    Raises:
        ValueError: for a peer whose rank is above the template's.
    """

    def fit(layer: str, x: LoRA) -> LoRA:
        rank = peer.rank_of(layer)
        if rank > x.rank:
            raise ValueError(f"layer {layer!r}: client {peer.id} has rank {rank}, the template only {x.rank}")
        return lr.rescale(lr.components(x, 0, rank), peer.scale_of(layer, rank), on="B")

    return tree.map_named(fit, template)


def slice_for(adapter: Adapter, to: Peer, *, on: lr.SigmaOn = "both", fill: Adapter | None = None) -> Adapter:
    """The leading components that a peer can hold, written with the peer's scales.

    A layer with fewer components than the peer's rank is padded: live rows of A (those of `fill` where given), B zero.
    `on` says which factor takes the change of scale.
    """

    def fit(layer: str, x: LoRA) -> LoRA:
        rank = to.rank_of(layer)
        rows = fill.layers[layer].A if fill is not None and fill.layers[layer].rank >= rank else None
        x = lr.pad(lr.components(x, 0, min(rank, x.rank)), rank, fill=rows)
        return lr.rescale(x, to.scale_of(layer, rank), on=on)

    return tree.map_named(fit, adapter)


def truncate_for(adapter: Adapter, to: Peer, *, sigma_on: lr.SigmaOn = "B") -> Adapter:
    """The best approximation (truncated SVD) that a peer can hold, written with the peer's scales."""

    def fit(layer: str, x: LoRA) -> LoRA:
        rank = to.rank_of(layer)
        return lr.truncate(x, rank, scale=to.scale_of(layer, rank), sigma_on=sigma_on)

    with threads.one_thread():
        return tree.map_named(fit, adapter)


def largest(template: Adapter, peers: Sequence[Peer]) -> Peer:
    """A peer of id -1 that can hold what any of the peers can: whose ranks the server's own copy has."""
    top, distinct = max(peers, key=lambda p: p.rank), with_distinct_ranks(peers)
    ranks = {n: max(p.rank_of(n) for p in distinct) for n in template.layers}
    return replace(with_ranks(top, ranks), id=SERVER, base_version=0)


def with_distinct_ranks(peers: Sequence[Peer]) -> list[Peer]:
    """One peer of each kind of ranks: few, however many peers there are."""
    return list({(p.rank, *sorted(p.rank_pattern.items())): p for p in peers}.values())


def at_largest(template: Adapter, peers: Sequence[Peer]) -> Adapter:
    """The template at the ranks and scales of `largest`: dW and the rows of A are the template's, B takes a change of scale."""
    return slice_for(template, largest(template, peers), on="B")
