"""`fedelta flower`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedelta.cli.options import AllowFiles, Config, Overrides, allowed_files
from fedelta.cli.output import note

app = typer.Typer(no_args_is_help=True, help="Run over real sites by Flower.")


@app.command()
def init(
    config: Config,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The app's folder; it must be empty, or not be there.")],
    overrides: Overrides = None,
    allow_files: AllowFiles = None,
) -> None:
    """Write a Flower app of a config: `flwr run DIR` simulates it, or runs it on a deployment."""
    from fedelta.runs.config import read_config
    from fedelta.runs.config.checks import check
    from fedelta.runs.config.own import Own
    from fedelta.runs.flower_app import QUIET, placed, write_app
    from fedelta.runs.remote import demand_for_sites
    from fedelta.runs.sites import demand_labels

    settled = placed(read_config(config, overrides or []))
    chosen = check(settled, Own(allowed_files(overrides, allow_files)))
    demand_for_sites(settled, chosen)
    demand_labels(settled, chosen.task)
    write_app(settled, folder)
    count = settled.num_clients()
    environment = " ".join(f"{name}={value}" for name, value in QUIET.items())
    several = f" --federation-config 'num-supernodes={count}'" if count else ""
    note(f"a simulation on this machine (fedelta[flower-sim]): {environment} flwr run {folder}{several}")
    note(f"on a deployment of yours: {environment} flwr run {folder} NAME")
    for key, file in chosen.files.items():
        note(f"the {key} is the file {file.path}: the server needs `fedelta allow`, a site the file in `code` of its node file")
    note("each site starts its own worker, by its own copy of the config: fedelta site CONFIG --node FILE")
