"""Makes a first config: looks at the rows, writes the text, and checks that it runs as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedelta.data.columns import Column, columns_of
from fedelta.data.endings import ending_of
from fedelta.data.files import read_file
from fedelta.data.image_folder import holds_images, image_parts
from fedelta.data.rows import Row, text_of
from fedelta.registry import listed
from fedelta.runs.config import ConfigError, RunConfig, read_config
from fedelta.runs.config.paths import resolved
from fedelta.runs.config.yaml_text import load_yaml
from fedelta.runs.starter.guess import Guess, guess
from fedelta.runs.starter.layout import Layout, lay_out
from fedelta.runs.starter.text import config_text

TABLES = (".csv", ".tsv")
"""Files whose first line names the columns."""

SENTENCE = 4
"""Words from which a name of a column is taken for a text, where its label's name is a label as well."""


@dataclass(frozen=True)
class Start:
    """A first config, and what it was made from.

    Attributes:
        text: of the config.
        layout: the files.
        sizes: rows by the name of each file.
        columns: of all rows.
        guess: what they are taken for.
        config: the text's, checked against the rows.
    """

    text: str
    layout: Layout
    sizes: Mapping[str, int]
    columns: Sequence[Column]
    guess: Guess
    config: RunConfig


def start_from(
    places: Sequence[Path], output: Path, *, text: str | None = None, label: str | None = None, model: str | None = None
) -> Start:
    """Looks at data and returns a config for them that runs as it is.

    Args:
        places: files, and folders whose files are meant; or folders of images.
        output: the file that the config is to be in, to which its paths are relative.
        text, label: the fields of a classification, where they are not to be guessed.
        model: the base model; a small one by default.

    Raises:
        FileNotFoundError, ValueError, ImportError: for data that cannot be read, or in which no task is seen; the message names
            the file and the remedy.
    """
    layout = lay_out(places)
    rows = {name: _rows_of(file) for name, file in layout.files().items()}
    train = [row for name in layout.train for row in rows[name]]
    columns = columns_of(train)
    found = guess(columns, len(train), text=text, label=label)
    if text is None and label is None:
        _demand_header(layout, found)
    _demand_fields(layout, rows, found)
    sizes = {name: len(own) for name, own in rows.items()}
    folder = output.absolute().parent
    written = config_text(layout, found, sizes, folder, model)
    return Start(written, layout, sizes, columns, found, _checked(written, folder))


def demand_free(output: Path, *, force: bool) -> None:
    """Raises FileExistsError for a file that would be written over, unless that is meant, and for a folder in its place."""
    if output.is_dir():
        raise FileExistsError(f"{output} is a folder: give the name of a file, such as {output / 'config.yaml'}")
    if output.exists() and not force:
        raise FileExistsError(f"{output} is there already: give another --output, or --force to write over it")


def _rows_of(file: Path) -> list[Row]:
    if holds_images(file):
        return image_parts(file)["train"]
    rows = read_file(file)
    if not rows:
        raise ValueError(f"{file} has no rows")
    first = next(iter(rows[0]), "")
    if file.suffix not in (".json", ".jsonl") and first.lstrip().startswith('{"'):
        raise ValueError(f"{file} looks like JSON, one object a line: call it {file.with_suffix('.jsonl').name}")
    return rows


def _demand_header(layout: Layout, found: Guess) -> None:
    """Raises ValueError for a table whose first line is a row: a label by its name, and a sentence by the text's."""
    tables = [file for file in layout.files().values() if ending_of(file) in TABLES]
    if not tables or found.label is None or not found.texts:
        return
    text, label = found.texts[0].name, found.label
    if label.name in map(str, label.counts) and len(text.split()) >= SENTENCE:
        raise ValueError(
            f"{tables[0]} has no names of columns: {text!r:.60} and {label.name!r:.60} in its first line are a text and a "
            "label. Write a line above it, such as: text,label; if they are the names, give --text and --label"
        )


def _demand_fields(layout: Layout, rows: Mapping[str, Sequence[Row]], found: Guess) -> None:
    """Raises ValueError for a file whose rows lack what the task reads, by its path and row."""
    label = None if found.label is None else found.label.name
    for name, file in layout.files().items():
        lacking = [field for field in found.uses if not any(field in row for row in rows[name])]
        if lacking:
            there = listed(dict.fromkeys(field for row in rows[name] for field in row))
            raise ValueError(f"{file} has no column {listed(lacking)}, as the other files have; it has {there}")
        for column in found.texts:
            if column.name != label and found.uses[column.name] != "context":
                _demand_texts(file, rows[name], column.name)


def _demand_texts(file: Path, rows: Sequence[Row], field: str) -> None:
    for index, row in enumerate(rows):
        try:
            text_of(row, index, field)
        except ValueError as error:
            raise ValueError(f"{file}, {error}") from None


def _checked(text: str, folder: Path) -> RunConfig:
    """Returns the config of a text after it was checked, and its rows dealt; raises ValueError with the reason."""
    config = read_config(resolved(load_yaml(text), folder))
    from fedelta.runs.config.checks import check  # with torch, which a wrong file need not wait for
    from fedelta.runs.deal import deal

    try:
        dealt = deal(config, check(config).task)
        for rows in (dealt.splits.validation, dealt.splits.test):
            dealt.labels(rows)  # which may have a label that no training row has
    except ConfigError:
        raise
    except ValueError as error:
        raise ValueError(f"the rows cannot be used as they are: {error}") from error
    return config
