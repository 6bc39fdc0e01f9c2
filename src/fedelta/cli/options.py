"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fedelta.cli import completion

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
OfClient = Annotated[int | None, typer.Option("--client", metavar="K", help="Of a run: what this client had at the end.")]

Trust = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run the code that comes with the model; the folder of a run cannot ask for it."),
]
