"""`fedelta init`: a first config from data files."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedelta.cli.output import note

if TYPE_CHECKING:
    from fedelta.data.columns import Column
    from fedelta.runs.starter.start import Start

SCHEMA = ".config.schema.json"
"""Hidden, so that it is no file of rows where the config lies beside them."""


def init(
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA...", help="Files of rows, folders with such, or folders of images; several are one client each."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The config to write.")] = Path("config.yaml"),
    text: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column with the text, if not guessed.")] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column with the label, if not guessed.")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="The base model: a folder or a Hub id.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help=f"Write {SCHEMA} beside it, by which editors check it.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over a config that is there.")] = False,
) -> None:
    """Write a first config for data files, with comments; it runs as it is.

    Labels, choices or answers are seen by the names of the columns and by what is in them. Files called test or
    validation are kept to report and to choose by. In a folder of images each label has a subfolder.
    """
    from fedelta.report.terminal import out
    from fedelta.runs.starter.start import demand_free, start_from

    for file in (output, *([output.with_name(SCHEMA)] if schema else [])):
        demand_free(file, force=force or file.name == SCHEMA)
    start = start_from(data, output, text=text, label=label, model=model)
    _write(output, start.text, schema)
    for table in _tables(start):
        out.print(table)
        out.print()
    note(f"wrote {output}; see who gets what, then run it:")
    out.print(f"fedelta partition {_quoted(output)}\nfedelta run {_quoted(output)}", soft_wrap=True, markup=False)


def _write(output: Path, text: str, schema: bool) -> None:
    from fedelta.exchange import files
    from fedelta.runs.config.json_schema import EDITOR_LINE, schema_text

    output.parent.mkdir(parents=True, exist_ok=True)
    if schema:
        files.commit(output.with_name(SCHEMA), schema_text().encode())
        text = EDITOR_LINE.format(SCHEMA) + text
    files.commit(output, text.encode())


def _tables(start: Start) -> list[Any]:
    """Returns what was found: the files where there are several, the columns, and the shares of the labels."""
    from rich.text import Text

    from fedelta.report.data_tables import columns_table, files_table, labels_line

    layout, label = start.layout, start.guess.label
    found: list[Any] = []
    if len(start.sizes) > 1:
        found.append(files_table(start.sizes, list(layout.parts), clients=layout.alone is None))
    owner = start.guess.owner
    uses = {**start.guess.uses, **({} if owner is None else {owner.name: "client"})}
    found.append(columns_table([_facts(column, uses.get(column.name, "")) for column in start.columns]))
    said = f"{start.guess.task['name'].replace('_', ' ')} of {sum(start.sizes[name] for name in layout.train):,} rows"
    found.append(Text(said if label is None else f"{said}: {labels_line(label.counts)}"))
    return found


def _facts(column: Column, use: str) -> dict[str, Any]:
    different = f"{len(column.counts):,}" if column.counts else "many" if column.lengths else "–"
    words = f"{column.words(0.5)} to {column.words(0.95)}" if column.lengths else "–"
    return {**vars(column), "use": use, "different": different, "words": words}


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
