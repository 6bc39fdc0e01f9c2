"""Certificates for a trial: an authority of one's own, and what it signs for a server, sites and peers.

In production an institution's own authority signs keys that never leave the machine that uses them; here all keys are made in
one place and handed out. They are good for trying TLS and mutual TLS as they will be, for a month.
"""

# An extra need not be installed where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key: TypeAlias = ec.EllipticCurvePrivateKey

DAYS = 30
"""Days that a trial's certificates are valid."""

WARNING = (
    "These certificates are for a trial: one place has seen all keys, and they expire after a month. In production each site "
    "makes its own key, which never leaves it, and the institution's own authority signs it."
)
"""What a person must know before they use such certificates."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Authority:
    """A certificate authority of a trial.

    Attributes:
        key: its private key.
        certificate: that its subjects trust.
    """

    key: Key
    certificate: x509.Certificate

    @classmethod
    def new(cls, name: str, now: datetime.datetime) -> Authority:
        """Makes an authority with a key of its own."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(name, name, key, now).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
        return cls(key, builder.sign(key, hashes.SHA256()))

    def issue(self, name: str, hosts: Sequence[str], now: datetime.datetime) -> tuple[Key, x509.Certificate]:
        """Returns a key, and a certificate that its holder may use both to listen and to dial.

        Args:
            name: the common name, by which access rules know the holder.
            hosts: names and addresses under which others reach it.
            now: from when it is valid.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(name, _common_name(self.certificate), key, now)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]  # a peer is client and server in one
        builder = builder.add_extension(x509.ExtendedKeyUsage(both), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        return key, builder.sign(self.key, hashes.SHA256())


def make_certificates(
    folder: Path, names: Sequence[str], hosts: Sequence[str] = ("localhost", "127.0.0.1"), *, node_keys: Sequence[str] = ()
) -> list[Path]:
    """Writes an authority, and for each name a key and a certificate that it signed.

    The files are `ca.crt`, `<name>.crt` and `<name>.key`, and for node keys `<name>.node` and `<name>.node.pub`; keys can be
    read by their owner alone. The authority's own key is thrown away: nobody can sign another name later.

    Args:
        folder: made if it is not there; must be empty.
        names: of the server, or of the peers; each is a certificate's common name.
        hosts: names and addresses under which all of them are reached.
        node_keys: the names of sites that get a pair of keys by which Flower's SuperLink knows them.

    Raises:
        ValueError: for no name, a name that is no file name, the same one twice, or a host that is none.
        FileExistsError: for a folder with something in it.
    """
    _check(names, node_keys)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty, and certificates are never replaced: name another folder")
    now = datetime.datetime.now(datetime.UTC)
    authority = Authority.new("fedelta trial authority", now)
    issued = {name: authority.issue(name, [*hosts, name], now) for name in names}  # all that can fail comes before a file
    folder.mkdir(parents=True, exist_ok=True)
    written = [_write(folder / "ca.crt", _pem(authority.certificate))]
    for name, (key, certificate) in issued.items():
        written.append(_write(folder / f"{name}.crt", _pem(certificate)))
        written.append(_write(folder / f"{name}.key", _private_pem(key), secret=True))
    for name in node_keys:
        written += _write_node_key(folder, name)
    return written


def _check(names: Sequence[str], node_keys: Sequence[str]) -> None:
    if not [*names, *node_keys]:
        raise ValueError("no name was given: name a server, a site or a peer")
    for kind in (names, node_keys):
        for name in kind:
            if not _NAME.fullmatch(name) or name == "ca":
                raise ValueError(f"{name!r} cannot name a certificate: use letters, digits, '-', '_' and '.', and not 'ca'")
        if len(set(kind)) < len(kind):
            raise ValueError(f"each name may stand once, got {', '.join(kind)}")


def _builder(name: str, issuer: str, key: Key, now: datetime.datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_named(name))
        .issuer_name(_named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))  # the clocks of sites differ a little
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _common_name(certificate: x509.Certificate) -> str:
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", host):
        raise ValueError(f"{host!r} is neither an address nor a host's name")
    return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: Key, form: PrivateFormat = PrivateFormat.PKCS8) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _write_node_key(folder: Path, name: str) -> list[Path]:
    """Writes a pair of keys in the forms of OpenSSH, as Flower reads them."""
    key = ec.generate_private_key(ec.SECP384R1())
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return [
        _write(folder / f"{name}.node", _private_pem(key, PrivateFormat.OpenSSH), secret=True),
        _write(folder / f"{name}.node.pub", public + b"\n"),
    ]


def _write(path: Path, content: bytes, *, secret: bool = False) -> Path:
    # made with its final mode: a key must not be readable by others for an instant
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if secret else 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    return path
