"""Laws of claims: what a class says of itself is true, and where it does not say it, the engine refuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Union, cast, get_args, get_origin, get_type_hints

import torch

from fedelta import topology, tree
from fedelta.adapters import aggregation
from fedelta.client import LocalClient
from fedelta.engines.gossip import gossip
from fedelta.engines.rounds import Round
from fedelta.engines.server import federate
from fedelta.exchange import wire
from fedelta.merging import ClientUpdate
from fedelta.method import Client, Method, TrainResult
from fedelta.methods import list_methods, method_class
from fedelta.methods._shared.sums import OWNED
from fedelta.models.toy import random_adapter, toy_template
from fedelta.peers import Peer
from fedelta.testing.purity import trains_only
from fedelta.testing.reports import Violation, law
from fedelta.testing.scene import Scene, demand_near, demand_refusal, demand_same_bits, dense, deployed, quiet, score
from fedelta.tree import Adapter, Message, Tensors

NODES = (3, 3, 3, 3)
"""Ranks of a gossip: contraction is a law at equal ranks, beyond them the methods' own affair."""

MIXINGS = 8
"""Rounds without training on a ring of four, whose second eigenvalue is 1/3."""


@law("claims", first=True)
def claims(scene: Scene) -> None:
    """Each claim has a value that it may have: one of its words, or True or False."""
    for name, annotation in get_type_hints(Method).items():
        if get_origin(annotation) is ClassVar:
            (kind,), value = get_args(annotation), getattr(scene.method, name)
            if not _is_of(value, kind):
                raise Violation(f"{name} = {value!r} must be {_words(kind)}")


def _is_of(value: object, kind: Any) -> bool:
    if get_origin(kind) in (Union, UnionType):
        return any(_is_of(value, part) for part in get_args(kind))
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    return isinstance(value, get_origin(kind) or kind)


def _words(kind: Any) -> str:
    """Returns what a claim may be, in words."""
    if get_origin(kind) in (Union, UnionType):
        *others, last = [_words(part) for part in get_args(kind)]
        return f"{', '.join(others)} or {last}"
    if get_origin(kind) is Literal:
        return ", ".join(map(repr, get_args(kind)))
    if kind is NoneType:
        return "None"
    return "True or False" if kind is bool else f"a {(get_origin(kind) or kind).__name__}"


@law("unequal ranks")
def unequal_ranks(scene: Scene) -> None:
    """With the claim everybody gets its own rank and scale; without it, unequal ranks are refused and a remedy is named."""
    if scene.method.hetero_rank:
        _own_ranks(scene)
    else:
        _equal_ranks_only(scene)


def _own_ranks(scene: Scene) -> None:
    done = scene.play(ranks=scene.unequal, lora_alpha=8.0, rslora=True)[-1]
    for peer in done.peers:
        for layer, x in deployed(done.method, 2, done.state, peer, done.template)["adapter"].layers.items():
            if x.rank not in (0, peer.rank):  # 0: all of it is in the base
                raise Violation(f"layer {layer!r}: client {peer.id} has rank {peer.rank} and is sent rank {x.rank}")
            if x.rank and x.scale != peer.scale_of(layer, peer.rank):
                own = peer.scale_of(layer, peer.rank)
                raise Violation(f"layer {layer!r}: client {peer.id} has scale {own:.6g} and is sent scale {x.scale:.6g}")


def _equal_ranks_only(scene: Scene) -> None:
    able = [n for n in list_methods() if method_class(n).hetero_rank]
    if len(scene.method.population(scene.clients((2, 4)))) < 2:
        return  # a baseline that pools its clients has one rank
    demand_refusal(lambda: scene.play(ranks=(2, 4)), "a federation of ranks 2 and 4", *able)
    method, peers = scene.served(), [Peer(0, 4), Peer(1, 4)]
    updates = [ClientUpdate(p, 0.5, method.upload(random_adapter(r, seed=r))) for p, r in zip(peers, (4, 2), strict=True)]
    state = method.init(toy_template(4), peers)
    demand_refusal(lambda: method.aggregate(0, state, updates), "an aggregation of ranks 4 and 2")


# --- sums ----------------------------------------------------------------------------------------------------------------


@law("sums", silent=trains_only)
def sums(scene: Scene) -> None:
    """With the claim the mean of summands leads to the state that updates do; without it, a sum is refused.

    That a method without the claim could have had it is not seen. An idle client's summand is exactly zero but for the mark
    of the components that it has (PRIV-1). Without ranks to pad to a summand has the same numbers in the client's own shapes.
    """
    method, rounds = scene.served(), scene.rounds
    if method.sums is None:
        sent = rounds[0].updates[0]
        demand_refusal(lambda: method.summand(0, sent.content, sent.content, sent.sender), "a sum")
        demand_refusal(lambda: method.from_mean(0, rounds[0].before, {}), "a sum")
        return
    _demand_sums(rounds, scene.clients(lora_alpha=8.0))
    unequal: dict[str, Any] = {"lora_alpha": [3.0 + k for k in range(len(scene.ranks))]}
    if scene.takes(unequal):
        _demand_sums(scene.play(**unequal), scene.clients(**unequal))


def _demand_sums(rounds: Sequence[Round], clients: Sequence[LocalClient]) -> None:
    """Raises Violation unless the sum of each round leads to the state that its updates do."""
    of = {client.peer.id: client for client in clients}
    for done in rounds:
        ranks = {n: x.rank for n, x in done.before["adapter"].layers.items()}
        terms = [(u.weight, _summand(done, u, of[u.sender.id], ranks)) for u in done.updates]
        mean = tree.mean([w for w, _ in terms], [term for _, term in terms])
        found = done.method.from_mean(done.t, done.before, mean)
        expected = done.method.aggregate(done.t, done.before, done.updates)
        scales = sorted({update.sender.lora_alpha or 1.0 for update in done.updates})
        what = f"the state after the sum of round {done.t}, of clients with lora_alpha {scales}"
        demand_near(dict(tree.named_tensors(found)), dict(tree.named_tensors(expected)), what)


def _summand(done: Round, update: ClientUpdate, client: LocalClient, ranks: Mapping[str, int]) -> Tensors:
    """A client's summand, after a look at what it would be had the client not trained, and without ranks to pad to."""
    method, peer = done.method, update.sender
    down = method.broadcast(done.t, done.before, peer)
    idle, _ = method.local_update(done.t, down, {}, cast("Client", _Idle(client)))
    for name, x in method.summand(done.t, down, idle, peer, ranks).items():
        if not name.endswith(OWNED) and x.any():
            raise Violation(f"client {peer.id} changed nothing, but adds {float(x.norm()):.3g} to the sum at {name!r}")
    padded = method.summand(done.t, down, update.content, peer, ranks)
    _demand_leading(method.summand(done.t, down, update.content, peer), padded, peer)
    return padded


def _demand_leading(own: Tensors, padded: Tensors, peer: Peer) -> None:
    """Raises Violation unless a summand in the client's own shapes is the leading part of the one that is padded."""
    if own.keys() != padded.keys():
        raise Violation(f"client {peer.id}: {sorted(own.keys() ^ padded.keys())[:4]} are in its summand with ranks, or without")
    for name, x in own.items():
        leading = padded[name][tuple(slice(size) for size in x.shape)]
        if not torch.equal(leading, x):
            raise Violation(f"client {peer.id}: its summand at {name!r} is another one without ranks to pad to")


# --- without a server ----------------------------------------------------------------------------------------------------


def _has_nodes(scene: Scene) -> str | None:
    if len(scene.method.population(scene.clients(NODES))) < 2:
        return "the clients are pooled into one"
    return trains_only(scene)


def _is_for_gossip(scene: Scene) -> str | None:
    if not scene.method.decentralised and scene.method.coordinates != "base":
        return "gossip is not claimed; the engine warns of it"
    return _has_nodes(scene)


@law("decentralised", silent=_is_for_gossip)
def decentralised(scene: Scene) -> None:
    """With the claim, nodes on a ring that do not train come together; a method that moves the base is refused."""
    if scene.method.coordinates == "base":
        if scene.method.decentralised:
            raise Violation("a method that moves the base cannot claim to be decentralised: nodes would move it apart")
        demand_refusal(lambda: _gossip(scene, topology.ring(4)), "gossip with a base that moves", "base")
        return
    apart = _gossip(scene, topology.metropolis(4, []))[-1]
    mixed = _gossip(scene, topology.ring(4), rounds=apart.t + 1 + MIXINGS, start=apart.snapshot, train=False)
    before, after = _spread(apart), _spread(mixed[-1])
    if not after <= 1e-2 * before:
        raise Violation(
            f"nodes on a ring lie {before:.3g} apart (squared), and {after:.3g} after {MIXINGS} rounds of mixing alone: "
            "aggregate must average positions; differences that are added to a node's own state never meet"
        )


def _gossips(scene: Scene) -> str | None:
    return "gossip is refused" if scene.method.coordinates == "base" else _has_nodes(scene)


@law("complete graph", silent=_gossips)
def complete_graph(scene: Scene) -> None:
    """On the complete graph every node computes what a server with uniform weights does."""
    nodes = _gossip(scene, topology.complete(4))
    options: dict[str, Any] = {"rounds": 2, "seed": scene.seed, "score": score, "debug": True}
    server = list(federate(scene.fresh(), scene.clients(NODES), weights="uniform", **options))
    for a, b in zip(nodes, server, strict=True):
        for peer in b.peers:
            demand_near(
                dense(a.participant_model(peer)), dense(b.participant_model(peer)), f"node {peer.id} after round {b.t}", 1e-7
            )


def _gossip(scene: Scene, mixing: Any, *, rounds: int = 2, train: bool = True, **options: Any) -> list[Round]:
    clients: list[Any] = scene.clients(NODES)
    clients = clients if train else [_Idle(c) for c in clients]
    with quiet():  # the engine warns of methods that do not claim it
        run = gossip(scene.fresh(), clients, rounds=rounds, mixing=mixing, seed=scene.seed, score=score, debug=True, **options)
        return list(run)


def _spread(done: Round) -> float:
    """The sum of squared distances of the nodes' models, or of their messages where the factors are what is agreed on."""
    if done.method.coordinates == "product":
        seen = [dense(deployed(done.method, done.t + 1, s, done.peers[0], done.template)) for s in done.state.values()]
    else:
        seen = [dict(tree.named_tensors(done.method.broadcast(done.t + 1, s, done.peers[0]))) for s in done.state.values()]
    return sum(float((x[n].double() - seen[0][n].double()).square().sum()) for x in seen for n in seen[0])


class _Idle:
    """A client that returns what it is to start from."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def train(self, t: int, start: Adapter, **request: Any) -> TrainResult:
        """No step."""
        return replace(self._client.train(t, start, **{**request, "num_steps": 1, "lr_scale": 0.0}), adapter=start)


# --- other claims --------------------------------------------------------------------------------------------------------


@law("one shot")
def one_shot(scene: Scene) -> None:
    """With the claim adapters can be aggregated without training; without it that is refused by name."""
    A = random_adapter(3, seed=scene.seed)
    adapters = [tree.with_factors(random_adapter(3, seed=scene.seed + k), "A", tree.factors(A, "A")) for k in (1, 2)]
    if not scene.method.one_shot:
        name = type(scene.method).__name__
        demand_refusal(lambda: aggregation.aggregate(adapters, method=scene.fresh()), "aggregation without training", name)
        return
    results = aggregation.aggregate(adapters, method=scene.fresh())
    for k, x in enumerate(results):
        tree.check_fits(x, adapters[k], f"result {k}", f"adapter {k}")


@law("validation", silent=trains_only)
def validation(scene: Scene) -> None:
    """With the claim a run without scores is refused; without it scores change nothing."""
    if scene.method.needs_validation:
        demand_refusal(lambda: federate(scene.fresh(), scene.clients(), rounds=1), "a run without validation scores", "score")
        return
    done = scene.rounds[0]
    scored = [replace(u, metrics={**u.metrics, "validation_loss": float(u.sender.id)}) for u in done.updates]
    state = scene.served().aggregate(done.t, done.before, scored)
    demand_same_bits(state, dict(done.state), "the state of a round whose uploads were scored: declare needs_validation")


@law("personal")
def personal(scene: Scene) -> None:
    """With the claim participants run models of their own; without it `deploy` reads no client's memory."""
    done = scene.rounds[-1]
    for peer in done.peers:
        own, common = (
            deployed(done.method, done.t + 1, done.state, peer, done.template, memory)["adapter"]
            for memory in (done.client_states.get(peer.id, {}), {})
        )
        same = wire.encode({"": own}) == wire.encode({"": common})
        if same and scene.method.personal:
            raise Violation(f"client {peer.id} runs with its memory what it runs without: drop the claim `personal`")
        if not same and not scene.method.personal:
            raise Violation(f"client {peer.id} runs another model with its memory than without: declare `personal`")


@law("asks")
def asks(scene: Scene) -> None:
    """A method gives `client.train` no argument but those that it claims in `asks`, by which engines refuse in time."""
    if hidden := sorted(arguments_used(scene) - scene.method.asks):
        raise Violation(f"local_update gives `train` {' and '.join(hidden)}: declare `asks = frozenset({{...}})` with it")


def arguments_used(scene: Scene) -> set[str]:
    """Returns the arguments that the method gives to `train`, beyond round and start, in two rounds of the first client."""
    method = scene.served()
    client = _Watched(method.population(scene.clients(lora_alpha=8.0))[0])
    for done in scene.rounds:
        peer = replace(done.peers[0], base_version=0)
        method.local_update(done.t, method.broadcast(done.t, done.before, peer), {}, cast("Client", client))
    return client.used


class _Watched:
    """A client that notes the arguments that it is given."""

    def __init__(self, client: Client) -> None:
        self._client, self.used = client, set[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def train(self, t: int, start: Adapter, **request: Any) -> TrainResult:
        self.used |= {name for name, value in request.items() if value is not None}
        return self._client.train(t, start, **request)


@law("bytes")
def bytes_as_declared(scene: Scene) -> None:
    """A message holds what `traffic` declares: the encoded bytes of each message, without its header, are 8 per number."""
    for done in scene.rounds:
        for update in done.updates:
            declared = _Sizes(*done.method.traffic(done.t, done.template, update.sender, done.peers))
            down = done.method.broadcast(done.t, done.before, update.sender)
            found = _Sizes(_numbers(down), _numbers(update.content))
            if found != declared:
                raise Violation(f"round {done.t}, client {update.sender.id}: declared {declared}; {found} travel")


@dataclass(frozen=True)
class _Sizes:
    down: int
    up: int

    def __str__(self) -> str:
        return f"{self.down} numbers down and {self.up} up"


def _numbers(message: Message) -> int:
    """The float64 numbers that an encoded message has room for behind its header."""
    data = wire.encode(message)
    return (len(data) - 8 - int.from_bytes(data[:8], "little")) // 8
