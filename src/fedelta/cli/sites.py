"""`fedelta site`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedelta.cli.options import AllowFiles, Config, Overrides, Trust, allowed_files
from fedelta.cli.output import note

if TYPE_CHECKING:
    from fedelta.runs.config.node import Node

NodeFile = Annotated[Path, typer.Option("--node", metavar="FILE", help="The node file: what belongs to this machine.")]


def site(
    config: Config, node: NodeFile, overrides: Overrides = None, allow_files: AllowFiles = None, trust: Trust = False
) -> None:
    """Run one site of a federation: a worker that answers a server through a socket, within the bounds of its node file.

    The socket, the log and all that the site remembers lie in its state folder, for its owner alone. Ctrl-C ends it.
    """
    from fedelta.engines.runners.sites.worker import SOCKET, serve
    from fedelta.report.terminal import quieten_libraries
    from fedelta.runs.config import read_config
    from fedelta.runs.config.node import read_node

    changes = [*(overrides or []), *(["model.trust_remote_code=true"] if trust else [])]
    own, bounds = read_config(config, changes), read_node(node)
    bounds = bounds.model_copy(update={"code": [*bounds.code, *allowed_files(overrides, allow_files)]})
    folder = bounds.folder()
    _write_log(bounds)
    from fedelta.runs.sites import answerer  # with torch, which a wrong key need not wait for

    quieten_libraries()
    answer = answerer(own, bounds)
    answer.prepare()
    note(f"the socket is {folder / SOCKET}, the log is beside it; Ctrl-C ends the site")
    serve(answer, folder, name=bounds.name, most_body=bounds.allow.most_memory())


def _write_log(bounds: Node) -> None:
    """Shows the log's lines on the screen and writes them to the file beside the socket."""
    from fedelta.engines.runners.sites.worker import PrivateLog
    from fedelta.report.terminal import show_lines

    show_lines("fedelta", PrivateLog(bounds.folder()))
