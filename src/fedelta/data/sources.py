"""Loads rows from a source with a name of its own, a local file or a data set of the Hub, and splits them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError, RevisionNotFoundError

from fedelta.data.carving import split_rows, subsample
from fedelta.data.files import DATA_EXTRA, READERS, read_file, reader_of
from fedelta.data.gaps import Empty, without_empty
from fedelta.data.image_folder import holds_images, image_parts
from fedelta.data.named import get_source, is_named, list_sources
from fedelta.data.rows import Row, joined
from fedelta.registry import listed

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
PARTS: tuple[str, ...] = ("train", "validation", "test")


class RowsNotHere(ValueError):
    """Says that a data set of the Hub is not on this machine and could not be fetched."""


class LoaderNotHere(RowsNotHere, ImportError):
    """Says that what loads data sets of the Hub is not installed."""


@dataclass(frozen=True)
class Splits:
    """Rows to train on, to choose by, and to report on. `validation` may be empty.

    Attributes:
        left_out: by part of the source, how many rows were left out for want of a label.
    """

    train: list[Row]
    validation: list[Row]
    test: list[Row]
    left_out: Mapping[str, int] = field(default_factory=dict[str, int])


def load_rows(
    source: str | Path,
    *,
    split: str | None = None,
    subset: str | None = None,
    fields: Mapping[str, str] | Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    revision: str | None = None,
    path: str | Path | None = None,
    in_files: Sequence[str] = (),
) -> list[Row]:
    """Returns the rows of one split of a source, in its order.

    Args:
        source: the name of a source such as "docstrings", a file, a folder of images with a subfolder for each label, or a Hub
            data set id such as "nyu-mll/glue".
        split: which split of a named source, a folder of images or a Hub data set; "train" if not given. A file has none.
        subset: which configuration of a Hub data set.
        fields: the fields to keep; a mapping {new name: name in the source} renames them.
        limit: keep that many rows, drawn with `seed`; they stay in the source's order.
        seed: the seed of that draw.
        revision: a branch, tag or commit of a Hub data set.
        path: the folder with the files of a named source, if it is not the usual one.
        in_files: fields of which a text is the path of a file; in the rows of a file it counts from that file's folder.

    Raises:
        FileNotFoundError: there is no such file.
        LoaderNotHere: the source needs the extra `data`.
        RowsNotHere: a data set of the Hub is not here, and the Hub cannot be reached.
        ValueError: the source cannot be read as what its suffix says, has no rows, or lacks a field or the split.
    """
    rows = _read(source, split, subset, revision, path)
    if not rows:
        raise ValueError(f"{source} has no rows")
    return subsample(_placed(_with_fields(rows, fields, source), in_files, source), limit, seed)


def pinned_revision(source: str | Path, revision: str | None = None) -> str | None:
    """Returns the commit that a Hub data set has now at a revision; None for other sources, or where no commit is known.

    Raises:
        ValueError: for a revision of something that has none, or that cannot be found.
    """
    if not _is_on_hub(source):
        if revision is not None:
            raise ValueError(f"{source} is not a data set of the Hub and has no revision {revision!r}: leave the revision out")
        return None
    snapshot = _snapshot(str(source), revision)
    return None if snapshot is None else snapshot.name


def _is_on_hub(source: str | Path) -> bool:
    if is_named(source) or reader_of(Path(source)) or Path(source).exists():
        return False
    return isinstance(source, str) and HUB_ID.fullmatch(source) is not None


def _snapshot(name: str, revision: str | None) -> Path | None:
    """Returns the cache's folder of a Hub data set's commit, its card fetched; None without one, if none was asked for."""
    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=["README.md"]))
    except (OSError, ValueError) as error:
        if revision is None:
            return None
        asked = isinstance(error, RevisionNotFoundError | HFValidationError)  # and the Hub, or its client, has answered
        raise (ValueError if asked else RowsNotHere)(
            f"cannot find revision {revision!r} of data set {name!r}: {error}"
        ) from error


def _read(
    source: str | Path, split: str | None, subset: str | None, revision: str | None, path: str | Path | None
) -> list[Row]:
    place = Path(source)
    if (found := _by_split(source, path)) is not None:
        return _split_of(source, found, split or "train")
    if reader_of(place) or place.exists():
        if split:
            raise ValueError(f"{source} is a file and has no split {split!r}: give one file per split")
        return read_file(place)
    if isinstance(source, str) and HUB_ID.fullmatch(source):
        return _from_hub(source, split or "train", subset, revision)
    raise ValueError(
        f"{source!r} is not {' or '.join(list_sources())}, nor a Hub id such as 'owner/name', "
        f"nor a file ending in {', '.join(READERS)} (or these with .gz)"
    )


def _by_split(source: str | Path, path: str | Path | None) -> Mapping[str, Sequence[Row]] | None:
    """Returns the rows of a named source, or of a folder of images, by split; None for any other source.

    Raises:
        ValueError: for a path beside a source that has no name, since it says itself where its rows are.
    """
    if is_named(source):
        return get_source(str(source), path).load()
    if path is not None:
        raise ValueError(f"data.path = {path} has no meaning for the source {str(source)!r}: it belongs to one with a name")
    return image_parts(Path(source)) if holds_images(Path(source)) else None


def _split_of(source: str | Path, found: Mapping[str, Sequence[Row]], split: str) -> list[Row]:
    if split not in found:
        raise ValueError(f"{source} has no split {split!r}; it has {', '.join(found)}")
    return list(found[split])


def _placed(rows: list[Row], in_files: Sequence[str], source: str | Path) -> list[Row]:
    """Returns rows in which the texts of some fields are paths; relative ones count from the folder of the rows' file."""
    place = Path(source)
    if not in_files or is_named(source) or reader_of(place) is None:
        return rows
    folder = place.absolute().parent
    return [{**row, **{name: folder / row[name] for name in in_files if isinstance(row.get(name), str)}} for row in rows]


def _from_hub(name: str, split: str, subset: str | None, revision: str | None) -> list[Row]:
    try:
        import datasets
    except ImportError as error:
        raise LoaderNotHere(f"data set {name!r} is loaded from the Hub by `datasets`: {DATA_EXTRA}") from error
    try:
        # Without a network `datasets` takes whatever it prepared last, so a commit is read from its own folder.
        snapshot = _snapshot(name, revision) if revision is not None and constants.HF_HUB_OFFLINE else None
        where = (name, revision) if snapshot is None else (str(snapshot), None)
        found = datasets.load_dataset(where[0], subset, split=split, revision=where[1])
        return [dict(row) for row in _undecoded(found, datasets.Image)]
    except (ValueError, OSError) as error:  # unknown split or subset; no such data set, no network
        kind = RowsNotHere if isinstance(error, OSError | RowsNotHere) else ValueError
        raise kind(f"cannot load split {split!r} of {name!r} (subset {subset!r}) from the Hub: {error}") from error


def _undecoded(found: Any, image: Any) -> Any:
    """Returns a data set of the Hub whose images stay the bytes of their files, which take a part of the memory of pixels."""
    for name, kind in (getattr(found, "features", None) or {}).items():
        if isinstance(kind, image):
            found = found.cast_column(name, image(decode=False))
    return found


def _with_fields(rows: list[Row], fields: Mapping[str, str] | Sequence[str] | None, source: str | Path) -> list[Row]:
    if not fields:
        return rows
    names = dict(fields) if isinstance(fields, Mapping) else {name: name for name in fields}
    for index, row in enumerate(rows):
        missing = [name for name in names.values() if name not in row]
        if missing:
            hint = joined(row, missing[0])
            has = listed(row) + (f": {hint}" if hint else "")
            raise ValueError(f"{source}: row {index} has no field {missing[0]!r}; it has {has}")

    def renamed(row: Row) -> Row:
        return {new: row[old] for new, old in names.items()}

    return [renamed(row) for row in rows]


def load_splits(
    source: str | Path,
    *,
    train: str | None = None,
    validation: str | None = None,
    test: str | None = None,
    subset: str | None = None,
    fields: Mapping[str, str] | Sequence[str] | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    stratify: str | None = None,
    limit: int | Mapping[str, int] | None = None,
    label: str | None = None,
    empty: Empty = "error",
    seed: int = 0,
    revision: str | None = None,
    path: str | Path | None = None,
    in_files: Sequence[str] = (),
) -> Splits:
    """Loads train, validation and test rows of a source; a part without a name is carved from the training rows.

    Args:
        source: the name of a source; a Hub id; a file with the training rows; or a folder, of images or with the parts as
            files.
        train: the training split: a split's name for the Hub, a path for files (relative to `source` if that is a folder).
        validation: the same for validation; None to carve `validation_fraction` of the training rows.
        test: the same for test; None to carve `test_fraction` of the training rows.
        subset: which configuration of a Hub data set.
        fields: as for `load_rows`.
        validation_fraction: the share of the training rows to choose by; 0 for none. Not used if `validation` is given.
        test_fraction: the share of the training rows to report on. Not used if `test` is given.
        stratify: the field whose shares the carved parts keep.
        limit: at most so many rows of each part, or of the parts named in a mapping; applied last.
        label: the field with the label, looked at for rows without one; None does not look.
        empty: what is done with rows whose label is empty, before anything is carved or limited: "error" refuses them,
            "drop" leaves them out, "keep" takes a blank text for a class like any other.
        seed: for carving and limits.
        revision: a branch, tag or commit of a Hub data set.
        path, in_files: as for `load_rows`.

    Raises:
        ValueError, FileNotFoundError, ImportError: as `load_rows`; a limit names no part; a folder without `train`; an empty
            label.
    """
    limits = _limits(limit)
    given = _named_parts(
        source, {"train": train, "validation": validation, "test": test}, subset, fields, revision, path, in_files
    )
    # rows without a label go before anything is carved, so that the parts keep the shares that were asked for
    parts = {part: without_empty(rows, label, empty, part) for part, rows in given.items()}
    left_out = {part: len(given[part]) - len(rows) for part, rows in parts.items()}
    asked = {"validation": validation_fraction, "test": test_fraction}
    carved = {part: fraction for part, fraction in asked.items() if part not in parts}
    shares = [1 - sum(carved.values()), *carved.values()]
    shared_out = split_rows(parts["train"], shares, seed, stratify=stratify)
    parts |= dict(zip(("train", *carved), shared_out, strict=True))
    limited = {part: subsample(parts[part], limits.get(part), seed) for part in PARTS}
    return Splits(**limited, left_out={part: count for part, count in left_out.items() if count})


def _limits(limit: int | Mapping[str, int] | None) -> dict[str, int]:
    if limit is None:
        return {}
    limits: dict[str, int] = dict.fromkeys(PARTS, limit) if isinstance(limit, int) else dict(limit)
    unknown = set(limits) - set(PARTS)
    if unknown:
        raise ValueError(f"limit names {sorted(unknown)}, but the parts are {', '.join(PARTS)}")
    return limits


def _named_parts(
    source: str | Path,
    names: dict[str, str | None],
    subset: str | None,
    fields: Mapping[str, str] | Sequence[str] | None,
    revision: str | None,
    path: str | Path | None,
    in_files: Sequence[str],
) -> dict[str, list[Row]]:
    """Returns the parts that the source has, before anything is carved."""
    given = {part: name for part, name in names.items() if name}
    place = Path(source)
    of_folder = place.is_dir() and not is_named(source)
    if not (of_folder and "train" in given) and (found := _by_split(source, path)) is not None:
        wanted = {part: given.get(part, part) for part in PARTS if part == "train" or part in found or part in given}
        return {part: _with_fields(_split_of(source, found, name), fields, source) for part, name in wanted.items()}
    if of_folder and "train" not in given:
        raise ValueError(
            f"{source} is a folder: name the file with its training rows as `train`, or give each label of images a subfolder"
        )
    where: dict[str, Any] = {"fields": fields, "in_files": in_files}
    if of_folder:
        return {part: load_rows(place / name, **where) for part, name in given.items()}
    if reader_of(place):
        files = {"train": str(source), **given}
        return {part: load_rows(file, **where) for part, file in files.items()}
    splits = {"train": "train", **given}
    where |= {"subset": subset, "revision": revision}
    return {part: load_rows(source, split=name, **where) for part, name in splits.items()}
