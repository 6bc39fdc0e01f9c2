"""Answers to a census, which may hold anything that JSON does: what is believed of them, and what is refused."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from fedelta import tree
from fedelta.demands import Check, instance, number, optional, whole
from fedelta.exchange import wire
from fedelta.exchange.parcels import Parcel
from fedelta.method import MOST
from fedelta.peers import Peer
from fedelta.tree import Adapter

Address: TypeAlias = Hashable
"""The name that a carrier has for a site."""

LONGEST_TEXT = 100
"""Characters of a text in a census, such as a name, that are kept: it may come from anybody."""

LARGEST_RANK = 2**20
"""The largest rank that is believed, far above the width of any layer."""

_RANK = whole(least=1, most=LARGEST_RANK)
_SCALE = number(above=0, most=1e30)


def _by_layer(check: Check) -> Check:
    """Returns the check of a mapping from names of layers to values that pass another check."""

    def checked(name: str, value: object) -> None:
        instance(dict, "values by layer")(name, value)
        for layer, inner in cast("dict[str, object]", value).items():
            check(f"{name} of {layer!r:.80}", inner)

    return checked


PEER_FIELDS: Mapping[str, Check] = {
    "id": whole(least=0, most=MOST),
    "rank": _RANK,
    "num_examples": number(least=0, most=MOST),
    "lora_alpha": optional(_SCALE),
    "rslora": instance(bool, "true or false"),
    "rank_pattern": _by_layer(_RANK),
    "alpha_pattern": _by_layer(_SCALE),
    "scale": _SCALE,
}
"""The fields of a `Peer` that a site says of itself, and what each may be; its base version is the server's to know."""


@dataclass(frozen=True)
class CensusEntry:
    """The entry of one site in a census: what it says of itself.

    Attributes:
        address: under which the carrier reaches it.
        name: of the site.
        peer: who it is.
        digest: of the adapter that it begins from, as `digest_of` makes it.
        base: the fingerprint of its base model.
        labels: of its task, in order; None where the task has none.
        versions: of what both ends must have alike.
        choices: what its machine would choose where the terms leave it open, such as `gemm`.
    """

    address: Address
    name: str
    peer: Peer
    digest: str
    base: str
    labels: tuple[Any, ...] | None
    versions: Mapping[str, str] = field(hash=False)
    choices: Mapping[str, str] = field(hash=False)


def answered(answer: Parcel | Exception | None) -> Parcel:
    """Returns the answer itself; raises what stands in its place."""
    if answer is None:
        raise TimeoutError("no answer")
    if isinstance(answer, Exception):
        raise answer
    if answer.kind == "refusal":
        raise ValueError(str(answer.header.get("reason", "it gives no reason")))
    if answer.kind != "census":
        raise ValueError(f"an answer of kind {answer.kind!r}, where a census was asked")
    return answer


def entry_of(address: Address, parcel: Parcel) -> CensusEntry:
    """Returns what a site says; raises ValueError for what cannot be believed."""
    header: Mapping[str, Any] = parcel.header
    name, digest, base = (str(header.get(entry))[:LONGEST_TEXT] for entry in ("name", "digest", "base"))
    return CensusEntry(
        address=address,
        name=name,
        peer=_peer(header.get("peer")),
        digest=digest,
        base=base,
        labels=_plain_labels(header.get("labels")),
        versions=texts(header.get("versions")),
        choices=texts(header.get("choices")),
    )


def _peer(about: object) -> Peer:
    """Returns the peer of a site's own description, which may hold anything that JSON does."""
    if not isinstance(about, dict) or about.keys() - PEER_FIELDS.keys():
        raise ValueError(f"it says of its peer {about!r:.80}, where {', '.join(PEER_FIELDS)} are expected")
    given = cast("dict[str, Any]", about)
    if missing := {"id", "rank", "num_examples"} - given.keys():
        raise ValueError(f"it does not say its peer's {', '.join(sorted(missing))}")
    for name, value in given.items():
        PEER_FIELDS[name](f"its peer's {name}", value)
    return Peer(**given)


def _plain_labels(labels: object) -> tuple[Any, ...] | None:
    """Returns labels that can be compared and counted; raises ValueError for others, such as lists."""
    if labels is None:
        return None
    if not isinstance(labels, list):
        raise ValueError(f"its labels are a {type(labels).__name__}, not a list")
    given = cast("list[Any]", labels)
    for label in given:
        if not isinstance(label, str | int | float):
            raise ValueError(f"one of its labels is a {type(label).__name__}, not a text or a number")
    return tuple(given)


def texts(value: object) -> dict[str, str]:
    """Returns the texts of a mapping, and whole numbers as texts, by name; all else is taken for not said."""
    given = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    return {name: str(x)[:LONGEST_TEXT] for name, x in given.items() if isinstance(x, str | int)}


def template_of(parcel: Parcel) -> Adapter:
    """Returns the adapter that a site begins from; raises ValueError for anything else."""
    adapter = wire.decode(parcel.body).get("template")
    if not isinstance(adapter, Adapter):
        raise ValueError(f"it sent a {type(adapter).__name__} where its adapter was asked for")
    tree.check_finite({"template": adapter}, "its answer")
    return adapter
