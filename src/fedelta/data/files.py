"""Reads rows of local files, by suffix: .jsonl, .json, .csv, .tsv, .parquet, each also with .gz behind it; writes .jsonl.gz."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

from fedelta.data.endings import ending_of
from fedelta.data.rows import SEPARATORS, Row
from fedelta.registry import listed, nearest

DATA_EXTRA = "pip install 'fedelta[data]'"

TAB = "\t"
LONGEST_FIELD = 2**31 - 1
"""Characters in a field of a table; Python's own bound of 2**17 is less than a long document has."""

TO_TSV = ", or call the file .tsv"
TOO_DEEP = "is nested too deeply: each row must be an object with fields by name"

Reader: TypeAlias = Callable[[IO[bytes], Path], list[Row]]
"""(content, path for messages) -> rows"""


def read_file(path: Path) -> list[Row]:
    """Returns all rows of a local file, by its suffix.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the suffix is unknown, or the content is not what it says; the message names the file and the line.
    """
    reader = reader_of(path)
    if path.is_dir() or reader is None:
        raise ValueError(f"{path} is not a file ending in {', '.join(READERS)} (or these with .gz)")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}{_hint(path)}")
    try:
        with path.open("rb") as raw:
            return reader(cast(IO[bytes], gzip.open(raw)) if path.suffix == ".gz" else raw, path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is a cut-off or damaged gzip file ({error}): fetch it again") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error


def packed_rows(rows: Iterable[Row]) -> bytes:
    """Returns rows as the content of a .jsonl.gz; equal rows give equal bytes, by which a run knows its files."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    return gzip.compress(text.encode(), mtime=0)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes rows as a .jsonl.gz, and makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed_rows(rows))


def _hint(path: Path) -> str:
    """Returns the part of an error that says what there is in the place of a missing file."""
    folder = path.parent.absolute()
    if not folder.is_dir():
        return f": there is no folder {folder}"
    return nearest(path.name, [file.name for file in folder.iterdir()]) or f" (looked in {folder})"


def reader_of(path: Path) -> Reader | None:
    """Returns the function that reads files of this suffix; None if there is none."""
    ending = ending_of(path)
    return None if ending is None else READERS[ending]


def _text(stream: IO[bytes]) -> io.TextIOWrapper:
    return io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")


def _read_jsonl(stream: IO[bytes], path: Path) -> list[Row]:
    # Lines end at "\n" only: JSON text may hold other separators, such as U+2028.
    lines = enumerate(_text(stream), start=1)
    return [_json_object(line, f"{path}, line {number}") for number, line in lines if line.strip()]


def _json_object(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError:
        raise ValueError(f"{where} {TOO_DEEP}") from None
    return _checked_object(row, where)


def _checked_object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{where} is {type(row).__name__}, but each row must be an object with fields by name")
    return row


def _read_json(stream: IO[bytes], path: Path) -> list[Row]:
    try:
        rows = json.load(_text(stream))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except RecursionError:
        raise ValueError(f"{path} {TOO_DEEP}") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds one {type(rows).__name__}, but a list of objects is needed (one per line: .jsonl)")
    return [_checked_object(row, f"{path}, row {index}") for index, row in enumerate(rows)]


def _read_csv(stream: IO[bytes], path: Path) -> list[Row]:
    return list(_table(_headed(stream, path, ","), path, strict=True))


def _read_tsv(stream: IO[bytes], path: Path) -> list[Row]:
    # The format has no quoting: quotation marks belong to the text.
    return list(_table(_headed(stream, path, TAB), path, delimiter=TAB, quoting=csv.QUOTE_NONE))


def _headed(stream: IO[bytes], path: Path, separator: str) -> Iterator[str]:
    """Yields the lines of a table; raises ValueError where another character than the separator keeps its columns apart."""
    for number, line in enumerate(_text(stream)):
        if number == 0:
            _check_separator(line, path, separator)
        yield line


def _check_separator(header: str, path: Path, separator: str) -> None:
    columns = next(csv.reader([header], delimiter=separator), [])
    used = next((mark for mark in SEPARATORS if mark != separator and mark in "".join(columns)), None)
    if len(columns) == 1 and used is not None:
        raise ValueError(
            f"{path}: the columns of the header {columns[0]!r} are kept apart by {SEPARATORS[used]}, where "
            f"{SEPARATORS[separator]} are needed: save it with {SEPARATORS[separator]}{TO_TSV if used == TAB else ''}"
        )


def _table(lines: Iterator[str], path: Path, **dialect: Any) -> Iterator[Row]:
    """Yields the rows below a header line; raises ValueError for doubled names, and for a row of more or fewer columns."""
    reader = csv.DictReader(lines, **dialect)
    csv.field_size_limit(LONGEST_FIELD)
    try:
        columns = list(reader.fieldnames or ())
        if doubled := sorted(name for name, count in Counter(columns).items() if count > 1):
            raise ValueError(f"{path}: the header names {listed(doubled)} more than once: give every column a name of its own")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"{path}, line {reader.line_num} does not have the header's columns {listed(columns)}")
            yield row
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read after line {reader.line_num}: {error}") from error


def _read_parquet(stream: IO[bytes], path: Path) -> list[Row]:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"{path} is read by pyarrow: {DATA_EXTRA}") from error
    try:
        return parquet.read_table(io.BytesIO(stream.read())).to_pylist()
    except arrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not a readable parquet file: {error}") from error


READERS: dict[str, Reader] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
