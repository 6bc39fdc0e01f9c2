"""The census: who the sites of a run are, and whether they belong together. Any carrier will do.

Each site is asked for its peer, and for what all must have alike: versions, the base model, the labels, and the bits of the
adapter that it begins from, which a digest of 16 bytes stands for. One of largest rank sends the adapter itself. A site that
does not fit is named with the reason, before a round is played.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NoReturn, TypeAlias, cast

from fedelta.engines.guards import reason_of
from fedelta.engines.remote import Terms
from fedelta.engines.site import digest_of, versions
from fedelta.exchange import wire
from fedelta.exchange.parcels import Parcel
from fedelta.peers import Peer, template_for
from fedelta.tree import Adapter, BaseDelta

Address: TypeAlias = Hashable
"""The name that a carrier has for a site."""

Ask: TypeAlias = Callable[[Mapping[Any, Parcel]], Mapping[Any, "Parcel | Exception"]]
"""Sends each address its parcel, all at once, and returns the answers, or why there is none."""

PEER_FIELDS = ("id", "rank", "num_examples", "lora_alpha", "rslora", "rank_pattern", "alpha_pattern")
"""The fields of a `Peer` that a site says of itself; its base version is the server's to know."""


class CensusError(ValueError):
    """Sites that do not fit together, or did not answer; the message names each, and why."""


@dataclass(eq=False)
class RemoteClient:
    """The server's view of a client: who it is. It is trained at its site, through an engine that sends letters.

    Attributes:
        peer: who it is.
        template: the adapter that it begins from, which equals the site's own to the bit.
        name: of the site.
        address: under which the carrier reaches it.
    """

    peer: Peer
    template: Adapter
    name: str
    address: Address
    num_steps: int = 1

    def train(self, *request: Any, **options: Any) -> NoReturn:
        """Raises RuntimeError: nothing of this client can be trained here."""
        raise RuntimeError(f"client {self.peer.id} trains at its site {self.name!r}, not here: give the engine of its carrier")

    gradient = train

    def restore(self, base: BaseDelta) -> None:
        """Does nothing: a site brings its base back from its own disk."""


@dataclass(frozen=True)
class Site:
    """A site's word about itself.

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
    versions: Mapping[str, Any] = field(hash=False)
    choices: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True, eq=False)
class Sites:
    """The sites of a run, which fit together.

    Attributes:
        clients: in the order of ids.
        template: the common initial adapter, at the largest ranks.
        base: the fingerprint of their base model.
        layout: of adapter_config.json; None where the sites have none.
    """

    clients: Sequence[RemoteClient]
    template: Adapter
    base: str
    layout: Mapping[str, Any] | None = None


def survey(ask: Ask, addresses: Collection[Any], run: str, terms: Terms) -> list[Site]:
    """Asks all sites at once who they are; returns their words in the order of ids.

    Args:
        ask: the carrier's way to all of them.
        addresses: of the sites.
        run: the name under which they keep what they remember.
        terms: of the run, as far as they are settled.

    Raises:
        CensusError: naming each site that did not answer or does not fit, and why.
    """
    answers = ask(dict.fromkeys(addresses, Parcel("census", {"run": run, "terms": terms, "want_template": False})))
    found: list[Site] = []
    faults: dict[str, str] = {}
    for address in addresses:
        answer = answers.get(address)
        if isinstance(answer, Parcel) and answer.header.get("spare") is True:
            continue  # a node of a simulation that stands for no site
        try:
            found.append(_site(address, _answered(answer)))
        except Exception as error:
            faults[f"site at {address}"] = reason_of(error)
    faults |= _unlike(found)
    if faults:
        raise CensusError("\n".join(f"{who}: {reason}" for who, reason in faults.items()))
    return sorted(found, key=lambda site: site.peer.id)


def agreed(sites: Sequence[Site], name: str, otherwise: Any) -> Any:
    """Returns what all sites would choose where the terms leave it open; `otherwise` if they differ."""
    choices = {site.choices.get(name) for site in sites}
    return choices.pop() if len(choices) == 1 and None not in choices else otherwise


def enrol(ask: Ask, sites: Sequence[Site], run: str, terms: Terms) -> Sites:
    """Fetches the common adapter from a site of largest rank, and compares it with what each site begins from.

    Args:
        ask: the carrier's way to all of them.
        sites: from `survey`, under the same terms.
        run: as there.
        terms: as there.

    Raises:
        CensusError: naming each site that begins from another adapter, or says that it has a rank which none has.
    """
    largest = max(sites, key=lambda site: (site.peer.rank, -site.peer.id))
    question = Parcel("census", {"run": run, "terms": terms, "want_template": True})
    parcel = _answered(ask({largest.address: question}).get(largest.address))
    template = _template(largest, parcel)
    known: dict[Any, tuple[Adapter, str]] = {}
    clients: list[RemoteClient] = []
    others: list[Site] = []
    for site in sites:
        kind = _kind(site.peer)
        if kind not in known:
            own = _own_template(site, template)
            known[kind] = own, digest_of(own)
        own, digest = known[kind]
        clients.append(RemoteClient(site.peer, own, site.name, site.address))
        others += [site] if digest != site.digest else []
    if others:
        named = ", ".join(f"{site.name!r} (client {site.peer.id})" for site in others)
        raise CensusError(
            f"{named}: begins from another adapter than {largest.name!r}, which has the largest rank; all sites need one seed, "
            "one base model and one torch"
        )
    layout = parcel.header.get("layout")
    return Sites(clients, template, largest.base, cast("Mapping[str, Any]", layout) if isinstance(layout, Mapping) else None)


def _answered(answer: Parcel | Exception | None) -> Parcel:
    """The answer itself; raises what stands in its place."""
    if answer is None:
        raise TimeoutError("no answer")
    if isinstance(answer, Exception):
        raise answer
    if answer.kind == "refusal":
        raise ValueError(str(answer.header.get("reason", "it gives no reason")))
    if answer.kind != "census":
        raise ValueError(f"an answer of kind {answer.kind!r}, where a census was asked")
    return answer


def _site(address: Address, parcel: Parcel) -> Site:
    """What a site says; raises ValueError for what cannot be read."""
    header: Mapping[str, Any] = parcel.header
    about, labels = header.get("peer"), header.get("labels")
    if not isinstance(about, Mapping) or set(about) - set(PEER_FIELDS):
        raise ValueError(f"it says of its peer {about!r:.80}, where {', '.join(PEER_FIELDS)} are expected")
    if labels is not None and not isinstance(labels, list):
        raise ValueError(f"its labels are a {type(labels).__name__}, not a list")
    return Site(
        address=address,
        name=str(header.get("name"))[:100],
        peer=_peer(cast("Mapping[str, Any]", about)),
        digest=str(header.get("digest")),
        base=str(header.get("base")),
        labels=None if labels is None else tuple(cast("list[Any]", labels)),
        versions=_mapping(header.get("versions")),
        choices=_mapping(header.get("choices")),
    )


def _peer(about: Mapping[str, Any]) -> Peer:
    """The peer of a site's own description, which may hold anything that JSON does."""
    kinds: dict[str, type | tuple[type, ...]] = {
        "id": int,
        "rank": int,
        "num_examples": (int, float),
        "lora_alpha": (int, float, type(None)),
        "rslora": bool,
        "rank_pattern": dict,
        "alpha_pattern": dict,
    }
    for name, value in about.items():
        if not isinstance(value, kinds[name]) or (isinstance(value, bool) and name != "rslora"):
            raise ValueError(f"it says that its peer has {name} = {value!r:.40}")
    if missing := {"id", "rank", "num_examples"} - about.keys():
        raise ValueError(f"it does not say its peer's {', '.join(sorted(missing))}")
    return Peer(**about)


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def _unlike(sites: Sequence[Site]) -> dict[str, str]:
    """By site, why it does not fit the server or the others."""
    faults: dict[str, str] = {}
    here = versions()
    for site in sites:
        other = [name for name, mine in here.items() if _kept_part(name, site.versions.get(name)) != _kept_part(name, mine)]
        if other:
            named = ", ".join(f"{name} {site.versions.get(name)!r:.40} (here {here[name]!r})" for name in other)
            faults[_called(site)] = f"it has {named}: install the same on both ends"
    for what, value in (("base model", _base), ("labels", _labels)):
        common = Counter(map(value, sites)).most_common(1)
        for site in sites:
            if value(site) != common[0][0]:
                faults.setdefault(_called(site), f"its {what} is {value(site)!r:.200}, that of others {common[0][0]!r:.200}")
    owners: dict[int, Site] = {}
    for site in sites:
        first = owners.setdefault(site.peer.id, site)
        if first is not site:
            faults[_called(site)] = f"it is client {site.peer.id}, and so is {_called(first)}: give each a number of its own"
    return faults


def _kept_part(name: str, version: object) -> object:
    """The part of a version that must be the same on both ends: of torch the first number."""
    return str(version).partition(".")[0] if name == "torch" else version


def _base(site: Site) -> str:
    return site.base


def _labels(site: Site) -> tuple[Any, ...] | None:
    return site.labels


def _called(site: Site) -> str:
    return f"site {site.name!r} at {site.address}"


def _template(site: Site, parcel: Parcel) -> Adapter:
    adapter = wire.decode(parcel.body).get("template")
    if not isinstance(adapter, Adapter):
        raise CensusError(f"{_called(site)}: it sent a {type(adapter).__name__} where its adapter was asked for")
    return adapter


def _own_template(site: Site, template: Adapter) -> Adapter:
    """The adapter that a site begins from, if it is who it says."""
    try:
        return template_for(site.peer, template)
    except (ValueError, KeyError, OverflowError) as error:
        raise CensusError(f"{_called(site)}: {error}") from error


def _kind(peer: Peer) -> Any:
    """All of a peer that its adapter depends on, as something that can be a key."""
    plain = replace(peer, id=0, num_examples=1, base_version=0)
    values = (getattr(plain, entry.name) for entry in fields(plain))
    return tuple(tuple(sorted(v.items())) if isinstance(v, Mapping) else v for v in values)
