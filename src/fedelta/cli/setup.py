"""`fedelta doctor` and `fedelta schema`: what is installed, and what an editor needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from fedelta.cli.options import AsJson

if TYPE_CHECKING:
    from rich.table import Table


def doctor(as_json: AsJson = False) -> None:
    """Show versions, devices, threads, extras and folders."""
    from fedelta.report.terminal import out, print_json
    from fedelta.runs.doctor import facts

    found = facts()
    print_json(found) if as_json else out.print(_table(found))


def _table(found: dict[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _lines(found):
        table.add_row(Text(name), Text(value))
    return table


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from fedelta.report.words import size

    for name, version in found["versions"].items():
        yield name, version or "not installed"
    yield "platform", found["platform"]
    yield "interpreter", found["interpreter"]
    if "torch error" in found:
        yield "torch", f"cannot be imported: {found['torch error']}"
    yield "devices", ", ".join(found["devices"]) or "–"
    yield "threads", f"{found['threads'] or '–'} of {found['cores']} cores"
    for name, missing in found["extras"].items():
        yield f"extra {name}", f"pip install 'fedelta[{name}]' (no {', '.join(missing)})" if missing else "installed"
    for name, there in found["models"].items():
        yield f"model {name}", "here" if there else f"not here: fedelta fetch {name}"
    for name in ("cache", "hub cache"):
        folder = found[name]
        yield name, f"{folder['path']} ({size(folder['bytes'])}{'' if folder['writable'] else ', cannot be written to'})"
    for name, value in found["variables"].items():
        yield name, value


def schema() -> None:
    """Print the JSON schema of a config, by which editors complete keys and check values."""
    from fedelta.runs.config.json_schema import schema_text

    typer.echo(schema_text(), nl=False)
