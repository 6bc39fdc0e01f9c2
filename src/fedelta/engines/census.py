"""The census: who the sites of a run are, and whether they belong together. Any carrier will do.

Each site is asked for its peer, and for what all must have alike: versions, the base model, the labels, and the bits of the
adapter that it begins from, which a digest of 16 bytes stands for. One of largest rank sends the adapter itself. A site that
does not fit is named with the reason, before a round is played.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NoReturn, TypeAlias, cast

from fedelta.engines.census_answers import Address, CensusEntry, answered, entry_of, template_of, texts
from fedelta.engines.guards import reason_of
from fedelta.engines.remote import Terms
from fedelta.engines.site import digest_of, versions
from fedelta.exchange.parcels import Parcel
from fedelta.peers import Peer, template_for
from fedelta.tree import Adapter, BaseDelta

Ask: TypeAlias = Callable[[Mapping[Any, Parcel]], Mapping[Any, "Parcel | Exception"]]
"""Sends each address its parcel, all at once, and returns the answers, or why there is none."""


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

    gradient = base_weight = train

    def restore(self, base: BaseDelta) -> None:
        """Does nothing: a site brings its base back from its own disk."""


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


def survey(ask: Ask, addresses: Collection[Any], run: str, terms: Terms) -> list[CensusEntry]:
    """Asks all sites at once who they are; returns their entries in the order of ids.

    Args:
        ask: the carrier's way to all of them.
        addresses: of the sites.
        run: the name under which they keep what they remember.
        terms: of the run, as far as they are settled.

    Raises:
        CensusError: naming each site that did not answer or does not fit, and why.
    """
    answers = ask(dict.fromkeys(addresses, Parcel("census", {"run": run, "terms": terms, "want_template": False})))
    found: list[CensusEntry] = []
    faults: dict[str, str] = {}
    for address in addresses:
        answer = answers.get(address)
        if isinstance(answer, Parcel) and answer.header.get("spare") is True:
            continue  # a node of a simulation that stands for no site
        try:
            found.append(entry_of(address, answered(answer)))
        except Exception as error:
            faults[_named(address, answer)] = reason_of(error)
    faults |= _unlike(found)
    if faults:
        raise CensusError("\n".join(f"{who}: {reason}" for who, reason in faults.items()))
    if not found:
        raise CensusError(f"none of {len(addresses)} nodes stands for a site: start a SuperNode for each site of the run")
    return sorted(found, key=lambda site: site.peer.id)


def agreed(sites: Sequence[CensusEntry], name: str, otherwise: str) -> str:
    """Returns what all sites would choose where the terms leave it open; `otherwise` if they differ."""
    choices = {site.choices.get(name) for site in sites}
    common = choices.pop() if len(choices) == 1 else None
    return otherwise if common is None else common


def enrol(ask: Ask, sites: Sequence[CensusEntry], run: str, terms: Terms) -> Sites:
    """Fetches the common adapter from a site of largest rank, and compares it with what each site begins from.

    All that is kept of it is what that site can hold by its own word, so that no site makes the server's state larger.

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
    try:
        parcel = answered(ask({largest.address: question}).get(largest.address))
        template = template_for(largest.peer, template_of(parcel))
    except Exception as error:
        raise CensusError(f"{_called(largest)}: {reason_of(error)}") from error
    known: dict[Any, tuple[Adapter, str]] = {}
    clients: list[RemoteClient] = []
    others: list[CensusEntry] = []
    for site in sites:
        kind = _kind(site.peer)
        if kind not in known:
            known[kind] = _begins_with(site, template)
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


def _unlike(sites: Sequence[CensusEntry]) -> dict[str, str]:
    """Returns by site why it does not fit the server or the others."""
    faults: dict[str, str] = {}
    here = texts(versions())
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
    owners: dict[int, CensusEntry] = {}
    for site in sites:
        first = owners.setdefault(site.peer.id, site)
        if first is not site:
            faults[_called(site)] = f"it is client {site.peer.id}, and so is {_called(first)}: give each a number of its own"
    return faults


def _kept_part(name: str, version: str | None) -> str | None:
    """Returns the part of a version that must be the same on both ends: of torch the first number."""
    return version.partition(".")[0] if name == "torch" and version is not None else version


def _base(site: CensusEntry) -> str:
    return site.base


def _labels(site: CensusEntry) -> tuple[Any, ...] | None:
    return site.labels


def _named(address: Address, answer: object) -> str:
    """Returns a site by its name, where its answer has one that can be shown."""
    name = answer.header.get("name") if isinstance(answer, Parcel) and answer.kind == "census" else None
    return f"site {name[:100]!r} at {address}" if isinstance(name, str) else f"site at {address}"


def _called(site: CensusEntry) -> str:
    return f"site {site.name!r} at {site.address}"


def _begins_with(site: CensusEntry, template: Adapter) -> tuple[Adapter, str]:
    """Returns a site's part of the common adapter, and its digest; raises CensusError for a rank that the adapter lacks."""
    try:
        own = template_for(site.peer, template)
    except (ValueError, KeyError, OverflowError) as error:
        raise CensusError(f"{_called(site)}: {reason_of(error)}") from error
    return own, digest_of(own)


def _kind(peer: Peer) -> Any:
    """Returns all of a peer that its adapter depends on, as something that can be a key."""
    plain = replace(peer, id=0, num_examples=1, base_version=0)
    values = (getattr(plain, entry.name) for entry in fields(plain))
    return tuple(tuple(sorted(v.items())) if isinstance(v, Mapping) else v for v in values)
