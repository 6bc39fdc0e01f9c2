"""Arguments and options that several commands have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedelta.cli import completion

if TYPE_CHECKING:
    from fedelta.runs.config.allowed import Allowed

Config = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help="A YAML file, or the name of a built-in config: quickstart.",
        autocompletion=completion.configs,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one key of the config, such as lora.rank=4.",
        autocompletion=completion.keys,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to stdout, and nothing else.")]
Plot = Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw it, too.")]
Folders = Annotated[list[Path], typer.Argument(metavar="DIR...", help="PEFT folders.")]
Which = Annotated[
    Literal["best", "last"] | None,
    typer.Option(
        "--round",
        metavar="best|last",
        help="Of a run: the best round by validation (the default, where there is one), or the last.",
    ),
]
OfRank = Annotated[
    int | None, typer.Option("--rank", metavar="R", help="Of a run: what participants of this rank had at the end.")
]
OfClient = Annotated[
    str | None, typer.Option("--client", metavar="NAME|K", help="Of a run: what this client (name or number) had at the end.")
]

AllowFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-file",
        metavar="FILE",
        help="Let this Python file run where the config names it; one that --set names may run anyway.",
    ),
]

Trust = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run the code that comes with the model; the folder of a run cannot ask for it."),
]


def allowed_files(overrides: Sequence[str] | None, allow_files: Sequence[str] | None) -> Allowed:
    """Returns the digests of the Python files that may run: those named on the command line, and those of the user's list.

    Args:
        overrides: the texts of --set, which may name files.
        allow_files: the files of --allow-file.
    """
    from fedelta.runs.config.allowed import allowed
    from fedelta.runs.config.read import named_files

    return allowed([*named_files(overrides or []), *(allow_files or [])])
