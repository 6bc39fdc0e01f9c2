"""Makes the settings of zenoh for a node and for a relay: who dials whom, mutual TLS, who may say what. Imports no zenoh.

A node reads what is sent to `gossip/<its name>/<sender's name>`. Access rules, by the common names of certificates, hold each
sender to its own name, and each reader to its own post: everything else is denied, before any code of this library sees it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

Settings: TypeAlias = Mapping[str, Any]
"""Keys of zenoh's configuration and their values."""


@dataclass(frozen=True)
class Certificates:
    """Names the files by which a node shows who it is, and knows others.

    Attributes:
        authority: the certificate of the authority that signs all nodes' certificates.
        certificate: the node's own, in PEM; its common name is the node's name.
        key: to that.
    """

    authority: Path
    certificate: Path
    key: Path

    @classmethod
    def of(cls, folder: Path, name: str) -> Certificates:
        """Returns those in a folder as `fedelta certs` writes it.

        Raises:
            FileNotFoundError: for one that is not there.
        """
        found = cls(folder / "ca.crt", folder / f"{name}.crt", folder / f"{name}.key")
        for path in (found.authority, found.certificate, found.key):
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing: `fedelta certs` makes certificates for a trial")
        return found


@dataclass(frozen=True)
class Addresses:
    """Lists where a node listens and whom it dials, as `tls/host:port`.

    Attributes:
        listen: its own; none if it only dials.
        dial: those of others.
    """

    listen: Sequence[str] = ()
    dial: Sequence[str] = ()


def addresses(me: int, endpoints: Mapping[int, str | None], neighbours: Sequence[int]) -> Addresses:
    """Returns where a node listens and whom it dials in direct mode: of each pair the one with the higher id dials.

    One without an endpoint cannot be dialled, and dials.

    Raises:
        ValueError: for two neighbours that both only dial.
    """
    own, dial = endpoints[me], list[str]()
    for k in neighbours:
        theirs = endpoints[k]
        if theirs is None and own is None:
            raise ValueError(f"nodes {me} and {k} have no endpoint, so that neither can dial the other: give one, or a relay")
        if theirs is not None and (me > k or own is None):
            dial.append(theirs)
    return Addresses([] if own is None else [own], dial)


def direct(me: str, neighbours: Sequence[str], at: Addresses, certificates: Certificates) -> Settings:
    """Returns the settings of a node that talks to its neighbours itself."""
    return {
        "mode": "peer",
        **_common(at, certificates),
        "access_control": _rules(
            {
                name: [
                    _allow("put", "ingress", f"gossip/{me}/{name}"),
                    _allow("put", "egress", f"gossip/{name}/{me}"),
                    _allow("declare_subscriber", "ingress", f"gossip/{name}/*"),
                    _allow("declare_subscriber", "egress", f"gossip/{me}/*"),
                ]
                for name in neighbours
            }
        ),
    }


def through_relay(me: str, relay: str, endpoint: str, certificates: Certificates) -> Settings:
    """Returns the settings of a node that dials a relay and nobody else."""
    allowed = [
        _allow("put", "ingress", f"gossip/{me}/*"),
        _allow("put", "egress", f"gossip/*/{me}"),
        _allow("declare_subscriber", "ingress", "gossip/**"),
        _allow("declare_subscriber", "egress", f"gossip/{me}/*"),
    ]
    common = _common(Addresses(dial=[endpoint]), certificates)
    return {"mode": "client", **common, "access_control": _rules({relay: allowed})}


def relay(names: Sequence[str], listen: str, certificates: Certificates) -> Settings:
    """Returns the settings of a relay, which carries what nodes say to each other and lets none speak for another."""
    return {
        "mode": "router",
        **_common(Addresses([listen]), certificates),
        "access_control": _rules(
            {
                name: [
                    _allow("put", "ingress", f"gossip/*/{name}"),
                    _allow("put", "egress", f"gossip/{name}/*"),
                    _allow("declare_subscriber", "ingress", f"gossip/{name}/*"),
                    _allow("declare_subscriber", "egress", "gossip/**"),
                ]
                for name in names
            }
        ),
    }


def _common(at: Addresses, certificates: Certificates) -> dict[str, Any]:
    key, certificate = str(certificates.key), str(certificates.certificate)
    return {
        "scouting/multicast/enabled": False,  # who is there is in the roster
        "scouting/gossip/enabled": False,
        "listen/endpoints": list(at.listen),
        "connect/endpoints": list(at.dial),
        # for ever, and in the background: with 0, one attempt, half of a ring that starts at once never forms
        "connect/timeout_ms": -1,
        "connect/exit_on_failure": False,
        "connect/retry": {"period_init_ms": 200, "period_max_ms": 1000, "period_increase_factor": 2},
        "transport/link/tls": {
            "root_ca_certificate": str(certificates.authority),
            "enable_mtls": True,
            "verify_name_on_connect": True,
            "listen_private_key": key,
            "listen_certificate": certificate,
            "connect_private_key": key,
            "connect_certificate": certificate,
        },
    }


def _allow(message: str, flow: str, keys: str) -> dict[str, Any]:
    return {"permission": "allow", "messages": [message], "flows": [flow], "key_exprs": [keys]}


def _rules(allowed: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Returns access rules that deny all but what each holder of a certificate, by its common name, is allowed."""
    rules = {(name, n): f"{name}:{n}" for name, own in allowed.items() for n in range(len(own))}
    return {
        "enabled": True,
        "default_permission": "deny",
        "rules": [{"id": rule, **allowed[name][n]} for (name, n), rule in rules.items()],
        "subjects": [{"id": name, "cert_common_names": [name]} for name in allowed],
        "policies": [{"rules": [rules[name, n] for n in range(len(own))], "subjects": [name]} for name, own in allowed.items()],
    }
