"""Checks all that a server is sent: nothing that a client sends may reach `aggregate` unseen."""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate
from fedelta.method import ASKED, EVERYTHING, Client, Method, State, check_count
from fedelta.numerics import threads
from fedelta.peers import Peer, Peers
from fedelta.tree import Adapter, find

logger = logging.getLogger("fedelta.engines")

FAR = 1e3
"""Times its reference beyond which a number that a client sends, or claims, is taken for a fault."""

ROUNDS = 3
"""The last rounds whose largest accepted size still counts as a reference."""

SAME_SCALE = 1e-6
"""Relative difference that rounding may leave between a client's own scale and the one that it sends."""

IN_HAND = 1 << 20
"""Numbers of a dense tensor that are converted at a time."""

LONGEST = 500
"""Characters of an error that a reason keeps: its text may come from a client."""

NOT_FINITE = (tree.NotFiniteError, FloatingPointError)
"""The errors that say of an update, or of the loss that led to it, that it is no finite number."""


# --- one upload ------------------------------------------------------------------------------------------------------


def check_upload(
    method: Method, t: int, state: State, update: ClientUpdate, template: Adapter, start: Adapter
) -> Adapter | None:
    """Checks an update; returns the adapter that it stands for, None for a message with nothing in it.

    The model that the update stands for must have the template's layers, outer shapes, dense tensors and base, with ranks
    within the sender's capacity. So must every adapter in the message, whose scale must also be the sender's own or that of
    `start`, which the sender began from. A method checks by itself what else it reads of a message.

    Raises:
        Exception: mostly ValueError, for an update that is not finite, that does not fit, or that the method cannot use. What
            is no message at all may raise anything.
    """
    who = f"client {update.sender.id}"
    # Of any type here, whatever the annotation promises: it came over a wire.
    content: Any = update.content
    if not isinstance(content, Mapping):
        raise TypeError(f"{who} sent a {type(content).__name__}: a message is a mapping of named entries")
    tree.check_finite(update.content, who)
    method.check_upload(t, state, update)
    if not content:
        return None
    meant = _meant(method, t, state, update)
    sent = [*find(content, Adapter)]
    for adapter in sent if any(adapter is meant for adapter in sent) else [*sent, meant]:
        _check_adapter(adapter, template, update.sender, who)
        if not method.hetero_rank:
            _check_full(adapter, template, update.sender, who)
    # Not that of `meant`: where bare factors travel, the server itself puts the scale to them.
    for adapter in sent:
        _check_scale(adapter, start, update.sender, who)
    return meant


def check_metrics(metrics: Mapping[str, float], who: str) -> None:
    """Raises ValueError unless all that a client reports of its training are finite numbers, and its steps a possible count."""
    for name, value in metrics.items():
        figure: Any = value
        if isinstance(figure, bool) or not isinstance(figure, int | float) or not math.isfinite(figure):
            raise ValueError(f"{who} reports {name} = {figure!r:.40}, where a finite number belongs")
    if "num_steps" in metrics:
        check_count(metrics["num_steps"], "steps", who)


class ElsewhereError(RuntimeError):
    """An error of another process; its text is what `text_of` said of it there."""


def text_of(error: BaseException) -> str:
    """Returns the kind and the text of an error; one from elsewhere brings both with it."""
    try:
        return str(error) if isinstance(error, ElsewhereError) else f"{type(error).__name__}: {error}"
    except Exception as inner:  # an error of a user's own may not even have a text
        return f"{type(error).__name__}, whose text cannot be read ({type(inner).__name__})"


def reason_of(error: BaseException) -> str:
    """Returns the kind and the text of an error, which may quote a client, as `one_line` does."""
    return one_line(text_of(error))


def one_line(text: str) -> str:
    """Returns a text on one line of limited length, with control characters escaped: who wrote it must not forge a log."""
    rest = len(text) - LONGEST
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:LONGEST])
    return f"{shown} ... ({rest} more characters)" if rest > 0 else shown


# --- the size of uploads ---------------------------------------------------------------------------------------------


class Size(NamedTuple):
    """The distance of an upload from what its sender was sent: a number of each kind, inf where it overflows float64.

    Attributes:
        delta: of dW and the dense tensors, ||dW - dW_0|| over all layers.
        factors: of the tensors themselves. It sees what dW does not show: a huge A over B = 0, or over a tiny B, which a mean
            of factors would spread.
    """

    delta: float = 0.0
    factors: float = 0.0


def size_of(meant: Adapter, start: Adapter) -> Size:
    """Measures how far an upload that stands for `meant` lies from `start`, where its client began; forms nothing dense.

    For `factors`, components that the client added count and components that it dropped do not: a client that prunes its
    rank has done nothing large.
    """
    # One thread: thin factors gain nothing from more, and the bits then do not depend on their number. Float64 holds the square
    # of any float32, so that a huge upload is refused for its size and not for an overflow of the measure.
    with threads.one_thread():
        heads = math.hypot(*(_length(x, start.dense[n]) for n, x in meant.dense.items()))
        layers = [_size_at(x, start.layers[n]) for n, x in meant.layers.items()]
    delta = math.hypot(heads, *(size.delta for size in layers))
    factors = math.hypot(heads, *(size.factors for size in layers))
    return Size(*(x if math.isfinite(x) else math.inf for x in (delta, factors)))


def _size_at(x: LoRA, y: LoRA) -> Size:
    """Measures one layer: in float64, and for two adapters, all layers together would take four times an adapter's room."""
    x, y = _wide(x), _wide(y)
    return Size(float(lr.dist2(x, y)) ** 0.5, _displacement(x, y))


def _wide(x: LoRA) -> LoRA:
    return x.to(torch.float64)


def _length(x: Tensor, y: Tensor) -> float:
    """Returns ||x - y|| in float64; of `y`, which may be a whole head, only a few rows at a time are copied."""
    difference = torch.atleast_1d(x.to(torch.float64, copy=True))
    rows = max(1, IN_HAND * len(difference) // max(1, difference.numel()))
    for mine, other in zip(difference.split(rows), torch.atleast_1d(y).split(rows), strict=True):
        mine -= other.to(mine)
    return float(difference.norm())


def _displacement(x: LoRA, y: LoRA) -> float:
    old, new = lr.components(y, 0, x.rank), lr.components(x, y.rank, x.rank)
    kept = lr.components(x, 0, y.rank)
    return math.hypot(_length(kept.B, old.B), _length(kept.A, old.A), float(new.B.norm()), float(new.A.norm()))


def oversized(sizes: Mapping[int, Size], past: Sequence[Size]) -> dict[int, str]:
    """Returns by id why an upload is too large to be taken in: above `FAR` times its reference, in one of the two numbers.

    The reference is the larger of the median of the others' sizes that are not zero and the largest of `past`. With neither
    nothing is refused, but for a size that overflows.

    Args:
        sizes: of the uploads of a round, by their senders' ids.
        past: the largest accepted sizes of the rounds before.
    """
    reasons = {k: "its size overflows" for k, size in sizes.items() if math.inf in size}
    left = {k: size for k, size in sizes.items() if k not in reasons}
    for kind in Size._fields:
        values = {k: getattr(size, kind) for k, size in left.items()}
        before = max((getattr(size, kind) for size in past), default=0.0)
        for k, median in medians_of_others(values).items():
            reference = max(median, before)
            if values[k] > FAR * reference > 0:
                reasons.setdefault(k, _too_large(kind, values[k], reference))
    return {
        k: f"client {k}: {reason}; look at its learning rate, its number of local steps and its data"
        for k, reason in reasons.items()
    }


def overclaimed(steps: Mapping[int, float]) -> dict[int, str]:
    """Returns by id why a claim of steps is not believed: it is above `FAR` times the median of the others'.

    A server cannot count the steps of others, and some methods divide or multiply by them.
    """
    return {
        k: f"client {k}: it claims {steps[k]:.3g} local steps, above {FAR:g} times {median:.3g}, the median of the others"
        for k, median in medians_of_others(steps).items()
        if steps[k] > FAR * median > 0
    }


def _too_large(kind: str, value: float, reference: float) -> str:
    what = "delta" if kind == "delta" else "factors"
    return (
        f"its {what} moved by {value:.3g} from what it was sent, above {FAR:g} times {reference:.3g}, the larger of the median "
        "of the others and the largest of the last rounds"
    )


def medians_of_others(values: Mapping[int, float]) -> dict[int, float]:
    """Returns for each key the median of the other values that are not zero; 0 where there are none."""
    ordered = sorted(x for x in values.values() if x > 0)
    return {k: _median_without(ordered, x) for k, x in values.items()}


def _median_without(ordered: Sequence[float], own: float) -> float:
    """Returns the median of ascending numbers, of which one that equals `own` is left out if there is one.

    The list is not copied: this is asked for each client, and a cohort may be large.
    """
    at = bisect_left(ordered, own)
    skipped = at < len(ordered) and ordered[at] == own
    count = len(ordered) - skipped
    if not count:
        return 0.0
    low, high = (ordered[i + (skipped and i >= at)] for i in ((count - 1) // 2, count // 2))
    return low / 2 + high / 2  # halves first: a sum may overflow


def largest_of(sizes: Sequence[Size]) -> Size:
    """Returns the largest number of each kind, 0 where there are no sizes."""
    return Size(*(max(column, default=0.0) for column in zip(Size(), *sizes, strict=True)))


# --- parts of a check ------------------------------------------------------------------------------------------------


def _meant(method: Method, t: int, state: State, update: ClientUpdate) -> Adapter:
    meant: Any = method.position(t, state, update)[0]
    if not isinstance(meant, Adapter):
        raise TypeError(f"client {update.sender.id} sent a {type(meant).__name__} where an Adapter was expected")
    return meant


def check_population(peers: Sequence[Peer]) -> None:
    """Raises ValueError, before the first round, if there are no clients or one of them cannot take part.

    A client cannot take part without examples, or with a negative id or a rank below 1.
    """
    if not peers:
        raise ValueError("a federation needs at least one client, got none")
    if bad := [p for p in peers if p.id < 0 or p.rank < 1]:
        raise ValueError(f"client {bad[0].id} has rank {bad[0].rank}: ids start at 0, ranks at 1")
    empty = [p.id for p in peers if p.num_examples == 0]
    if empty:
        raise ValueError(f"clients {empty} have no training examples: leave them out, or give them a share of the data")
    for p in peers:
        check_count(p.num_examples, "examples", f"client {p.id}")


def takes_of(client: Client) -> frozenset[str]:
    """Returns the arguments of `train` that a client can honour: all, if it says nothing else."""
    return getattr(client, "takes", EVERYTHING)


def check_takes(method: Method, clients: Sequence[Client]) -> None:
    """Raises ValueError, before anything trains, if the method asks clients for what one of them cannot do."""
    for client in clients:
        if lacking := sorted(method.asks - takes_of(client)):
            what = " and ".join(ASKED.get(name, name) for name in lacking)
            raise ValueError(
                f"{type(method).__name__} asks clients for {what}, which client {client.peer.id}, a {type(client).__name__}, "
                "cannot do: choose a method that does without, such as fedavg or flexlora, or another kind of client"
            )


def warn_of_claims(peers: Peers, max_share: float | None) -> None:
    """Warns of a client that holds more than half of all examples with `FAR` times the median of the others'.

    Nobody can count another's data; a cap on shares bounds what a false claim does, and silences the warning.
    """
    counts = peers.examples
    at = int(counts.argmax())
    top, others = counts[at].item(), np.sort(np.delete(counts, at))
    if max_share is not None or not len(others):
        return
    usual, total = _middle(others), float(counts.sum(dtype=np.float64))
    if top > max(total / 2, FAR * usual):
        logger.warning(
            "client %s claims %s examples, %.4g of all, where half of the others have %s or fewer: with weights='examples' it "
            "decides alone; cap it by max_share, or take weights='uniform'",
            peers.ids[at],
            top,
            top / total,
            usual,
        )


def _middle(ordered: npt.NDArray[Any]) -> float:
    """Returns the median of numbers in order, a whole number as such."""
    low, high = (ordered[at].item() for at in ((len(ordered) - 1) // 2, len(ordered) // 2))
    return low if len(ordered) % 2 else (low + high) / 2


def check_templates(clients: Sequence[Client], template: Adapter) -> None:
    """Raises ValueError, naming client and layer, unless every client begins from the leading rows of the template's A.

    The rows must be equal to the bit, since a method that freezes A, or never sends it, takes one client's A for everybody's.
    Besides, the mean of n independent draws of A would be smaller than each by the root of n.
    """
    known: Adapter | None = None  # a template that clients share is looked at once
    for client in clients:
        if (own := client.template) is not known:
            _check_begins(own, template, client.peer.id)
        known = own


def _check_begins(own: Adapter, template: Adapter, k: int) -> None:
    tree.check_names(own.layers, template.layers, f"client {k}", "the template", "layers")
    for layer, x in own.layers.items():
        common = template.layers[layer].A
        if not _leads(x.A, common):
            raise ValueError(
                f"layer {layer!r}: client {k} begins from another A {tuple(x.A.shape)} than the leading rows of the common "
                f"{tuple(common.shape)}; give it `template_for(peer, template)`, with the same template for all"
            )


def _leads(rows: Tensor, common: Tensor) -> bool:
    """Returns whether `rows` (r, i) are the first of `common`; at once where they are the same memory."""
    if rows.data_ptr() == common.data_ptr() and rows.stride() == common.stride():
        return len(rows) <= len(common)
    return torch.equal(rows, common[: len(rows)].to(rows))


def _check_adapter(adapter: Adapter, template: Adapter, sender: Peer, who: str) -> None:
    tree.check_fits(adapter, template, who, "the template")
    for name, tensor in tree.parameters(adapter).items():
        if not tensor.is_floating_point():
            raise ValueError(f"{who}: {name} holds {tensor.dtype}, where floating-point numbers are trained")
    for layer, x in adapter.layers.items():
        if x.A.dtype != x.B.dtype:
            raise ValueError(f"layer {layer!r}: {who} sent A of {x.A.dtype} and B of {x.B.dtype}; both must have one dtype")
        if x.rank > sender.rank_of(layer):
            raise ValueError(
                f"layer {layer!r}: {who} sent rank {x.rank}, above its capacity of {sender.rank_of(layer)}; raise its rank in "
                "the configuration, or let it train what it was sent"
            )


def _check_scale(adapter: Adapter, start: Adapter, sender: Peer, who: str) -> None:
    """Raises ValueError for a scale that is neither the sender's own, at this rank or its full one, nor the one it was sent."""
    for layer, x in adapter.layers.items():
        own = [sender.scale_of(layer, rank) for rank in (x.rank, sender.rank_of(layer))]
        if not any(math.isclose(x.scale, s, rel_tol=SAME_SCALE) for s in (*own, start.layers[layer].scale)):
            raise ValueError(
                f"layer {layer!r}: {who} sent scale {x.scale}, where its own is {own[0]}; return the scale that training "
                "started with"
            )


def _check_full(adapter: Adapter, template: Adapter, sender: Peer, who: str) -> None:
    """Raises ValueError for fewer components than the sender began with, which a method for equal ranks cannot average."""
    for layer, x in adapter.layers.items():
        if x.rank < min(sender.rank_of(layer), template.layers[layer].rank):
            raise ValueError(
                f"layer {layer!r}: {who} sent rank {x.rank} of its {sender.rank_of(layer)}, but this method needs equal ranks; "
                "use one for unequal ranks, or let it send all components"
            )
