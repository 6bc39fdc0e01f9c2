"""Certificates of a trial: who can read them, and whom TLS lets in by them."""

import socket
import ssl
import threading
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="certificates need the extra `certs`")

from fedelta.engines.runners.sites.certificates import make_certificates


@pytest.fixture
def made(tmp_path: Path) -> Path:
    make_certificates(tmp_path / "certs", ["server", "ward_a"], node_keys=["ward_b"])
    return tmp_path / "certs"


def test_only_the_owner_can_read_a_key(made: Path):
    modes = {path.name: path.stat().st_mode & 0o777 for path in made.iterdir()}
    assert modes == {
        "ca.crt": 0o644,
        "server.crt": 0o644,
        "server.key": 0o600,
        "ward_a.crt": 0o644,
        "ward_a.key": 0o600,
        "ward_b.node": 0o600,
        "ward_b.node.pub": 0o644,
    }


def context(folder: Path, name: str, ca: Path, *, server: bool) -> ssl.SSLContext:
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    found.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")
    found.load_verify_locations(ca)
    found.verify_mode = ssl.CERT_REQUIRED
    return found


def common_name_seen(server: ssl.SSLContext, client: ssl.SSLContext, host: str = "localhost") -> str | None:
    """Returns the name that a listener sees of who dials; None if one refuses the other."""
    ours, theirs = socket.socketpair()
    seen: list[str] = []

    def listen() -> None:
        try:
            with server.wrap_socket(theirs, server_side=True) as secure:
                subject = secure.getpeercert()["subject"]
                seen.append(dict(pair[0] for pair in subject)["commonName"])
                secure.recv(1)
        except (ssl.SSLError, OSError):
            theirs.close()

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname=host) as secure:
            secure.send(b"x")
    except (ssl.SSLError, OSError):
        ours.close()
    thread.join(10)
    return seen[0] if seen else None


def test_both_ends_know_each_other_by_name(made: Path):
    server, client = (context(made, name, made / "ca.crt", server=name == "server") for name in ("server", "ward_a"))
    assert common_name_seen(server, client) == "ward_a"
    assert common_name_seen(server, client, host="ward_a") is None  # the listener is not called so


def test_a_certificate_of_another_authority_is_refused(made: Path, tmp_path: Path):
    make_certificates(tmp_path / "other", ["ward_a"])
    server = context(made, "server", made / "ca.crt", server=True)
    stranger = context(tmp_path / "other", "ward_a", made / "ca.crt", server=False)
    assert common_name_seen(server, stranger) is None


def test_an_authority_cannot_be_used_twice(made: Path):
    assert not list(made.glob("ca.key*"))
    with pytest.raises(FileExistsError, match="not empty"):
        make_certificates(made, ["server"])


@pytest.mark.parametrize("names", [[], ["../up"], ["ca"], ["a", "a"], [""], ["a/b"], ["-x"]])
def test_a_name_that_cannot_be_is_refused_before_a_file_is_written(tmp_path: Path, names: list[str]):
    with pytest.raises(ValueError, match=r"name"):
        make_certificates(tmp_path / "certs", names)
    assert not (tmp_path / "certs").exists()


def test_a_host_that_cannot_be_is_refused_before_a_file_is_written(tmp_path: Path):
    with pytest.raises(ValueError, match="neither"):
        make_certificates(tmp_path / "certs", ["server"], ["no host"])
    assert not (tmp_path / "certs").exists()


def test_node_keys_are_what_flower_reads(made: Path):
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

    private = load_ssh_private_key((made / "ward_b.node").read_bytes(), None)
    public = load_ssh_public_key((made / "ward_b.node.pub").read_bytes())
    assert private.public_key() == public
