"""`fedelta methods` and `fedelta check`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Annotated, Any

import typer
from rich.text import Text

from fedelta.cli import completion
from fedelta.cli.options import AsJson
from fedelta.registry import check_name


def methods(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME...", help="Of methods; all by default.")] = None,
    bibtex: Annotated[bool, typer.Option("--bibtex", help="Only the papers, as BibTeX entries.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the methods: source, unequal ranks, what travels; of those that are named also the paper, as BibTeX."""
    from fedelta.report.citations import bibliography
    from fedelta.report.tables import methods_table
    from fedelta.report.terminal import out, print_json

    rows = _chosen(names) if names else _catalogue()
    entries = bibliography(row["paper"] for row in rows)
    if as_json:
        print_json([{**row, "bibtex": bibliography([row["paper"]]) or None} for row in rows])
        return
    if not bibtex:
        out.print(methods_table(rows))
    if entries and (bibtex or names):
        out.print(Text(entries if bibtex else f"\n{entries}"), soft_wrap=True)


def _chosen(names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the rows of some methods, by name or alias. Raises ValueError, with the nearest name, for another one."""
    rows = _catalogue()
    found = {name: row for row in rows for name in (row["name"], *row["aliases"])}
    known = [row["name"] for row in rows]
    for name in names:
        check_name("method", found[name]["name"] if name in found else name, known, also=found)
    return [found[name] for name in names]


def _catalogue() -> list[dict[str, Any]]:
    """Reads what the methods say of themselves from a generated file, since importing their classes takes as long as torch."""
    return json.loads(files("fedelta").joinpath("methods/catalogue.json").read_text(encoding="utf-8"))


def check(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME...",
            help="Of methods or tasks, or Python files with one of them each.",
            autocompletion=completion.method_names,
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All methods and tasks there are.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask methods, or tasks, the laws that all of their kind obey; ends with code 1 if one is broken.

    A file's code runs. The guides "Write your own method" and "Write your own task" say what each law is.
    """
    from fedelta.methods import list_methods
    from fedelta.report.tables import laws_table, reports_table
    from fedelta.report.terminal import out, print_json
    from fedelta.tasks import list_tasks
    from fedelta.testing import check

    if bool(targets) == everything:
        raise ValueError("give the methods or tasks to check, or --all: one of them")
    reports = {name: check(name) for name in targets or [*list_methods(), *list_tasks()]}
    if as_json:
        print_json({name: report.as_dict() for name, report in reports.items()})
    elif len(reports) == 1:
        out.print(laws_table(next(iter(reports.values())).as_dict()))
    else:
        out.print(reports_table({name: report.as_dict() for name, report in reports.items()}))
    if not all(report.ok for report in reports.values()):
        raise typer.Exit(1)
