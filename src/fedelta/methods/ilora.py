"""ILoRA: a start cut from the pretrained weights, an exact sum at unequal ranks, control variates that know of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate, in_order, merge
from fedelta.method import Client, ClientState, Method, State
from fedelta.methods._compose.rules import check_like
from fedelta.methods._shared.base_delta import BaseAccount, advance, open_base, step_entries
from fedelta.methods._shared.qr import leading_qr, leading_qr_of
from fedelta.methods._shared.variates import Correction, less, moved_by, owners_of, part_of, per_scale
from fedelta.peers import Peer, at_largest, kinds_of, template_for
from fedelta.tree import Adapter, BaseDelta, Factor, Message, Tensors

Slices: TypeAlias = Mapping[str, LoRA]
"""Leading slices of factorisations, by layer."""


class ILoRAState(BaseAccount):
    """The server's memory.

    Attributes:
        adapter: the template at the largest ranks, with the head of now.
        first: the widest first slices that a client has sent, with scale 1; none before round 0.
        slices: those that clients start from, with scale 1, where they are not always the first.
        kinds: the kinds of clients, each by its rank and scale at every layer.
        c: the server's control variate by flat name.
        owners: by layer, how many clients have component j.
        clients: N.
    """

    adapter: Adapter
    first: Slices
    slices: Slices
    kinds: Sequence[Sequence[Sequence[float]]]
    c: Tensors
    owners: Mapping[str, Sequence[int]]
    clients: int


@dataclass(frozen=True, kw_only=True)
class ILoRA(Method):
    """Clients start from slices of a QR factorisation of the frozen weights; the server sums their displacements.

    Algorithm:
        init            W <- theta_0 = Q R, the pretrained weight;   c = 0, c_k = 0
        client k        B_0 = Q[:, :r_k],  A_0 = R[:r_k];  trains B and A from there in  (W - s_k B_0 A_0) + s_k B A;
                        with `control` g <- g - s_k c_k + s_k c[:r_k] in every step; then c_k <- the mean of the round's g / s_k
                        before the correction, and dc_k is what that changed
        server          W <- W + sum_k p_k s_k (B_k A_k - B_0 A_0),   head <- sum_k p_k head_k;
                        c[j] <- c[j] + sum_k dc_k[j] / N_j over those in the cohort who have component j, as N_j of all do
        travels         up: A, B and head, and B_0 and A_0 where the server does not know them yet; with `control` dc_k.
                        Down: B_0 and A_0 once they are known, the whole displacement of W, the head; with `control` c
        scale           s_k of each client: on what it starts from, and on what it has learned

    The start is cut from the weights at the clients: the server needs no base model. A round in which nobody trains leaves W as
    it is, whatever the ranks. The slices are always the first ones, so that components keep their meaning from round to round;
    this is what control variates need. A client without a memory goes on from c_k = 0.

    `fixed_start=False` is the published rule as far as it can be read: with G = sum_k p_k s_k B_k A_k clients go on from slices
    of G's factorisation, on the frozen part of the first round, theta_0 - s_k B_0 A_0. That part depends on r_k and G does not:
    a client of rank 2 is moved beside one of rank 1 although nobody trains. Here control variates are refused: they would be
    added up in coordinates that change.

    Args:
        fixed_start: starts every round from the first slices.
        control: corrects gradients by control variates; local AdamW sees the corrected ones. The paper's formula is not known:
            this is SCAFFOLD's with a mean over the owners of each component.
        factor: of G, without a fixed start: "qr" is the published one, whose slices are no best approximation; "svd" is.

    Since each rank has a frozen part of its own, the whole displacement goes down in every round, dense once its factors are
    larger, and clients of different ranks cannot share a pass of the batched engine. Over a base in half precision the start is
    exact to the base's own rounding; a quantised base is refused.

    Source: Zhou, Liu and Shang, "ILoRA: Federated Learning with Low-Rank Adaptation for Heterogeneous Client Aggregation",
    arXiv 2511.16069. The full text was not available: this follows the abstract, a review and a re-implementation by others.
    That displacements are summed on one common base, the fixed start and the control variates are our reading.
    """

    fixed_start: bool = True
    control: bool = False
    factor: Literal["svd", "qr"] = "svd"

    paper = "Zhou et al. 2025, ILoRA, arXiv 2511.16069"
    follows = "others' readings"
    reported = "none available to us: notes name its tasks (CIFAR, Tiny-ImageNet, RoBERTa on texts), no figure"
    hetero_rank = True
    coordinates = "base"
    asks = frozenset({"base"})
    travels = "up: A, B, head, first their start; down: start, base delta, head"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.control and not self.fixed_start:
            raise ValueError(
                "ILoRA with control=True needs fixed_start=True: a start that is factorised anew in every round turns the "
                "coordinates in which control variates are added up"
            )
        if self.fixed_start and self.factor != "svd":
            raise ValueError(
                f"ILoRA with factor={self.factor!r} needs fixed_start=False: from a fixed start nothing is factorised again"
            )
        if self.control:  # the claim of this instance: without control variates no gradient is touched
            object.__setattr__(self, "asks", frozenset({"base", "gradient"}))

    def init(self, template: Adapter, peers: Sequence[Peer], *, seed: int = 0) -> State:
        kinds = [_kind(peer, template) for peer in kinds_of(peers)]
        state: ILoRAState = {
            "adapter": at_largest(template, peers),
            "first": {},
            "slices": {},
            "kinds": [kind for at, kind in enumerate(kinds) if kind not in kinds[:at]],
            "c": {},
            "owners": owners_of(template, peers) if self.control else {},
            "clients": len(peers),
            **open_base(template.layers),
        }
        return state

    def broadcast(self, t: int, state: State, to: Peer) -> Message:
        adapter: Adapter = state["adapter"]
        first: Slices = state["first"]
        down: Message = {"base": _numbered(state, to)}
        unknown = any(x.rank < to.rank_of(n) for n, x in first.items())
        if unknown or not (first if self.fixed_start else state["slices"]):
            start = {n: lr.components(x, 0, 0) for n, x in adapter.layers.items()}  # the client cuts its own
        elif self.fixed_start:
            start = _for_peer(first, to)
        else:
            start = _on_scale(state["slices"], to, "A" if self.factor == "qr" else "B")
            down = {**down, "first": _for_peer(first, to)}
        down = {**down, "adapter": replace(adapter, layers=start)}
        return {**down, "c": part_of(state["c"], to)} if state["c"] else down

    def local_update(self, t: int, down: Message, client_state: ClientState, client: Client) -> tuple[Message, ClientState]:
        own = {} if _starts(down) else _cut(client)
        start = replace(down["adapter"], layers=own) if own else down["adapter"]
        base = _without(down["base"], down.get("first", start.layers))
        hook = self._hook(down.get("c", {}), client_state.get("c", {}), start)
        result = client.train(t, start, base=base, gradient=hook)
        up = {**self.upload(result.adapter), **({"first": own} if own else {})}
        if hook is None:
            return up, client_state
        old, mean = client_state.get("c", {}), per_scale(hook.mean(), start)
        return {**up, "dc": less(mean, old)}, {**client_state, "c": {**old, **mean}}

    def _hook(self, c: Tensors, own: Tensors, start: Adapter) -> Correction | None:
        if not self.control:
            return None
        return Correction(per_scale(c, start, power=1), per_scale(own, start, power=1))

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        updates = in_order(updates)
        # Checks all that came, by client and layer, and takes the mean of the heads.
        adapter = merge(lambda weights, xs, old: old, updates, state["adapter"])
        after = {**state, "adapter": adapter, "first": _widest(state["first"], updates)}
        if self.control:
            sent = [u.content.get("dc", {}) for u in updates]
            after["c"] = moved_by(sent, state["c"], tree.parameters(adapter), state["owners"], state["clients"])
        if self.fixed_start:
            step = {n: self._displacement(n, state, updates).to(x.dtype) for n, x in adapter.layers.items()}
            return {**after, **advance(state, step)}
        slices = {n: self._factorised(n, updates, x) for n, x in adapter.layers.items()}
        return {**after, "slices": slices}

    def _displacement(self, layer: str, state: State, updates: Sequence[ClientUpdate]) -> LoRA:
        """Returns sum_k p_k s_k (B_k A_k - B_0 A_0) of a layer, exactly zero where nobody trained."""
        weights: list[float] = []
        parts: list[LoRA] = []
        for u in updates:
            x = u.content["adapter"].layers[layer].to(torch.float64)
            first = _begun_from(state, u, layer)
            if first is None:
                pieces = [x]
            else:
                # (B - B_0) A + B_0 (A - A_0): a difference of two products would lose the digits of a small step.
                first = first.to(torch.float64)
                pieces = [LoRA(x.B - first.B, x.A, x.scale), LoRA(first.B, x.A - first.A, x.scale)]
            parts += pieces
            weights += [u.weight] * len(pieces)
        return lr.stack(weights, parts, dtype=torch.float64)

    def _factorised(self, layer: str, updates: Sequence[ClientUpdate], like: LoRA) -> LoRA:
        """Returns the leading slices of G = sum_k p_k s_k B_k A_k, with scale 1."""
        xs = [u.content["adapter"].layers[layer] for u in updates]
        G = lr.stack([u.weight for u in updates], xs, dtype=torch.float64)
        if self.factor == "svd":
            return lr.truncate(G, like.rank, fill=like.A.to(torch.float64)).to(like.dtype)
        return leading_qr_of(G, like.rank).to(like.dtype)

    def deploy(self, down: Message, client_state: ClientState, template: Adapter | None = None) -> Message:
        start: Adapter = down["adapter"]
        return {"adapter": start, "base": _without(down["base"], down.get("first", start.layers))}

    def position(self, t: int, state: State, update: ClientUpdate) -> tuple[Adapter, BaseDelta | None]:
        adapter: Adapter = update.content["adapter"]
        begun = {n: _begun_from(state, update, n) for n in adapter.layers if n in state["adapter"].layers}
        first = {n: x for n, x in begun.items() if x is not None}
        return adapter, _without(_numbered(state, update.sender), first)

    def check_upload(self, t: int, state: State, update: ClientUpdate) -> None:
        super().check_upload(t, state, update)
        adapter, who = update.content.get("adapter"), f"client {update.sender.id}"
        if not isinstance(adapter, Adapter):
            raise ValueError(f"{who} sent no adapter, where {self.travels} should travel")
        if "first" in update.content:
            _check_first(update.content["first"], adapter, who)
        if self.control:
            check_like("ilora with control=True", [update], "dc", "control variate", tree.parameters(adapter))

    def traffic(self, t: int, template: Adapter, peer: Peer, peers: Sequence[Peer]) -> tuple[int, int]:
        own = template_for(peer, template)
        heads = tree.count(own.dense)
        slices, control = tree.count(own) - heads, tree.count(own) if self.control else 0
        if t == 0:
            return heads, heads + 2 * slices + control
        if not self.fixed_start:
            return heads + 2 * slices, heads + slices
        ranks = {n: t * 2 * sum(p.rank_of(n) for p in peers) for n in own.layers}
        return heads + slices + step_entries(own, ranks) + control, heads + slices + control


# --- the start -----------------------------------------------------------------------------------------------------------


def _cut(client: Client) -> dict[str, LoRA]:
    """Returns the first slices of a client's frozen weights, at its ranks and scales."""
    found: dict[str, LoRA] = {}
    for layer, x in client.template.layers.items():
        found[layer] = replace(leading_qr(client.base_weight(layer), x.rank).to(x.dtype), scale=x.scale)
    return found


def _starts(down: Message) -> bool:
    """Returns whether a message has a start in it."""
    return any(x.rank for x in down["adapter"].layers.values())


def _for_peer(first: Slices, to: Peer) -> dict[str, LoRA]:
    """Returns the slices that a peer holds, with its own scale on the same factors: the start is s_k B_0 A_0."""
    ranks = {n: to.rank_of(n) for n in first}
    return {n: replace(lr.components(x, 0, ranks[n]), scale=to.scale_of(n, ranks[n])) for n, x in first.items()}


def _on_scale(slices: Slices, to: Peer, on: Factor) -> dict[str, LoRA]:
    """Returns the slices that a peer holds, the same dW under its scale; `on` is the factor that is not orthonormal."""
    ranks = {n: to.rank_of(n) for n in slices}
    return {n: lr.rescale(lr.components(x, 0, ranks[n]), to.scale_of(n, ranks[n]), on=on) for n, x in slices.items()}


def _begun_from(state: State, update: ClientUpdate, layer: str) -> LoRA | None:
    """Returns the first slices of the sender of an update; None if it has none, as in an aggregation without training."""
    sent, x = update.content.get("first"), update.content["adapter"].layers[layer]
    known: LoRA | None = (sent or state["first"]).get(layer)
    return None if known is None or known.rank < x.rank else replace(lr.components(known, 0, x.rank), scale=x.scale)


def _widest(known: Slices, updates: Sequence[ClientUpdate]) -> Slices:
    """Returns by layer the first slices with the most components, with scale 1, of those known and those that were sent."""
    found = dict(known)
    for u in updates:
        for n, x in u.content.get("first", {}).items():
            if n not in found or x.rank > found[n].rank:
                found[n] = replace(x, scale=1.0)
    return found


def _check_first(first: object, adapter: Adapter, who: str) -> None:
    sent: Mapping[object, object] = first if isinstance(first, Mapping) else {}
    for n, x in adapter.layers.items():
        y = sent.get(n)
        if len(sent) != len(adapter.layers) or not isinstance(y, LoRA) or (y.A.shape, y.B.shape) != (x.A.shape, x.B.shape):
            raise ValueError(f"layer {n!r}: {who} sent a start of other shapes than its adapter's {x.shape} and rank {x.rank}")


# --- the base ------------------------------------------------------------------------------------------------------------


def _numbered(state: State, to: Peer) -> BaseDelta:
    """Returns the whole sum, under an odd version that no other kind of peer has in any round.

    Whoever holds a version holds the same base: one model serves peers of all ranks, each with a frozen part of its own.
    """
    kinds, kind, base = state["kinds"], _kind(to, state["adapter"]), state["base"]
    place = kinds.index(kind) if kind in kinds else len(kinds)
    rounds = 2 * base.version + bool(state["first"])
    return BaseDelta(1 + 2 * (place + (len(kinds) + 1) * rounds), base.terms)


def _kind(peer: Peer, template: Adapter) -> list[list[float]]:
    ranks = {n: peer.rank_of(n) for n in template.layers}
    return [[rank, peer.scale_of(n, rank)] for n, rank in ranks.items()]


def _without(base: BaseDelta, start: Slices) -> BaseDelta:
    """Returns a base less what a client starts from, under the next version: with the start it is the whole again."""
    terms = dict(base.terms)
    for n, x in start.items():
        if x.rank:
            terms[n] = [*terms.get(n, []), replace(x, B=-x.B)]
    return replace(base, version=base.version + 1, terms=terms)
