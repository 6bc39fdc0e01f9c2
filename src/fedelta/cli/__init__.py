"""The command line. Commands parse and print, and leave the work to modules that they import when they are called.

So neither `--help` nor a mistake in a config's keys waits for torch. An error that a user can mend ends the command with one
message and exit code 2.
"""

from __future__ import annotations

import os

from fedelta.cli import adapters, certs, code, compare, data, fetch, flower, gossip, init, methods, report, run, setup, sites
from fedelta.cli.command import app

__all__ = ["app", "main"]

# In the order in which `fedelta --help` lists them.
for command in (
    init.init,
    fetch.fetch,
    run.run,
    sites.site,
    gossip.gossip,
    gossip.relay,
    compare.compare,
    report.report,
    data.partition,
    methods.methods,
    methods.check,
    code.allow,
    adapters.aggregate,
    adapters.inspect,
    adapters.evaluate,
    adapters.export,
    certs.certs,
    setup.doctor,
    setup.schema,
):
    app.command()(command)
app.add_typer(flower.app, name="flower")


def main() -> None:
    """Runs the `fedelta` command."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else the library warns when a process forks
    app(prog_name="fedelta")
