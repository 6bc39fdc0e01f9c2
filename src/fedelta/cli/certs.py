"""`fedelta certs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedelta.cli.output import note


def certs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An empty folder, or one to be made.")],
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME...", help="Of the server, or of peers and a relay: each gets a key and a certificate."),
    ] = None,
    hosts: Annotated[
        list[str] | None,
        typer.Option("--host", metavar="HOST", help="A name or address under which they are reached; this machine by default."),
    ] = None,
    sites: Annotated[
        list[str] | None, typer.Option("--site", metavar="NAME", help="A site that gets a pair of keys for Flower's SuperLink.")
    ] = None,
) -> None:
    """Make keys and certificates for a trial of real sites; production has its own.

    DIR then has ca.crt, NAME.crt and NAME.key, and for each --site its pair NAME.node and NAME.node.pub.
    """
    try:
        from fedelta.engines.runners.sites.certificates import WARNING, make_certificates
    except ModuleNotFoundError as error:
        raise ImportError(f'certificates need {error.name}: pip install "fedelta[certs]"') from error

    for path in make_certificates(folder, names or [], hosts or ["localhost", "127.0.0.1"], node_keys=sites or []):
        typer.echo(path)
    note(WARNING)
