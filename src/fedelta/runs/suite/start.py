"""Makes a suite ready: reads its file, or writes one for a config and some methods; finds its folder and its store."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from fedelta.exchange import files
from fedelta.registry import is_code
from fedelta.runs import provenance
from fedelta.runs.config import BUILT_IN, ConfigError, RunConfig, read_config
from fedelta.runs.config.allowed import Allowed
from fedelta.runs.config.own import Own
from fedelta.runs.config.paths import place_code, placed, relative
from fedelta.runs.config.read import Overrides, pairs, read_yaml
from fedelta.runs.folder import CONFIG
from fedelta.runs.suite.book import Book
from fedelta.runs.suite.cells import Plan, plan_of
from fedelta.runs.suite.keys import demand_other_keys
from fedelta.runs.suite.play import Place
from fedelta.runs.suite.schema import Suite, SuiteFile, demand_store, read_suite, suite_of
from fedelta.runs.suite.store import Store

SUITE = "suite.yaml"

MADE_BY = "# fedelta "
"""How a suite file begins that was written into the suite's folder."""


@dataclass(frozen=True)
class Wanted:
    """Holds what a person says of a suite on the command line; None leaves a thing to the file.

    Attributes:
        changes: of the base config, by dotted key.
        methods: of a suite that is to be written for a config.
        seeds: the same.
        baseline: the same.
        store: the file of finished cells.
        output: the folder of all runs.
        allowed: digests of the Python files that may run.
    """

    changes: Overrides = ()
    methods: Sequence[str] | None = None
    seeds: int | Sequence[int] | None = None
    baseline: str | None = None
    store: str | None = None
    output: Path | None = None
    allowed: Allowed = frozenset()


@dataclass(frozen=True)
class Ready:
    """A suite that can be run.

    Attributes:
        plan: its cells, checked.
        book: of the finished ones.
        text: of the suite file as resolved.
    """

    plan: Plan
    book: Book
    text: str


def ready(source: str, wanted: Wanted) -> Ready:
    """Reads a suite, checks the config of every cell, and writes its file into its folder.

    Args:
        source: a suite file; or, with methods, a config.
        wanted: on the command line.

    Raises:
        ConfigError: for a suite that cannot be run, naming all its faults.
    """
    _demand_changes_of_the_base(wanted.changes)
    file = _file(source, wanted)
    folder = wanted.output or _folder_of(source) or Path("runs") / file.name
    if (folder / CONFIG).exists():
        raise ConfigError(f"{folder} is the folder of a run: give the suite another --output")
    own_store = str(file.place / file.suite.store) if file.suite.store else None
    store = own_store if wanted.store is None else demand_store(wanted.store)
    book = Book(Place(folder, wanted.allowed), None if store is None else Store(Path(store)))
    book.refresh()
    plan = plan_of(file, folder, wanted.changes, Own(wanted.allowed), book.known())
    text = _resolved(file, folder, wanted.changes)
    if not _is_file_of(source, folder):
        files.commit(folder / SUITE, f"{_made_by()}\n{text}".encode())
    return Ready(plan, book, text)


def _demand_changes_of_the_base(changes: Overrides) -> None:
    """Raises ConfigError for a change that no run would have: what a method is, the suite says of each."""
    keys = [key for key, _ in pairs(changes)]
    demand_other_keys(keys, "--set")
    if own := [key for key in keys if key.startswith("method.")]:
        raise ConfigError(f"--set has {own[0]}, but hyper-parameters stand in a method's own mapping in the suite's `methods`")


def _folder_of(source: str) -> Path | None:
    """Returns the suite's folder if its file is the one that was written there; None for any other."""
    path = Path(source)
    if path.name != SUITE or not path.is_file():
        return None
    return path.parent if path.read_text(encoding="utf-8", errors="replace").startswith(MADE_BY) else None


def _is_file_of(source: str, folder: Path) -> bool:
    """Returns whether a suite is read from where it would be written to: then a person may have written it, with comments."""
    return (folder / SUITE).is_file() and Path(source).is_file() and Path(source).samefile(folder / SUITE)


def _file(source: str, wanted: Wanted) -> SuiteFile:
    if wanted.methods is None:
        if source in BUILT_IN:
            raise ConfigError(f"{source} is a config, not a suite: say what is compared, such as --methods fedavg,flexlora")
        given = {"seeds": wanted.seeds, "baseline": wanted.baseline}
        if named := [f"--{key}" for key, value in given.items() if value is not None]:
            raise ConfigError(f"{', '.join(named)}: a suite file says that itself; it belongs to a config with --methods")
        _demand_no_config(Path(source))
        return read_suite(Path(source))
    path = Path(source)
    if path.is_file() and "methods" in read_yaml(path):
        raise ConfigError(f"{source} is a suite, which names its methods itself: leave --methods out")
    raw: dict[str, Any] = {"base": source if source in BUILT_IN else str(path), "methods": list(wanted.methods)}
    raw |= {"seeds": wanted.seeds} if wanted.seeds is not None else {}
    raw |= {"baseline": wanted.baseline} if wanted.baseline is not None else {}
    return suite_of(raw, f"{path.stem}-compare", Path.cwd())


def _demand_no_config(path: Path) -> None:
    """Raises ConfigError for a file that is the config of a run, of which a suite's keys would all be missing."""
    keys = read_yaml(path).keys() if path.is_file() else set[str]()
    if keys & RunConfig.model_fields.keys() and not keys & Suite.model_fields.keys():
        raise ConfigError(f"{path} is a config, not a suite: say what is compared, such as --methods fedavg,flexlora")


def _resolved(file: SuiteFile, folder: Path, changes: Overrides) -> str:
    """Returns the suite file as it lies in the suite's folder: it can be run from there."""
    values = file.suite.model_dump(mode="json", exclude_none=True)
    moved = {
        **values,
        "base": _moved_base(file, folder, changes),
        "methods": [_moved_method(method, file.place, folder) for method in file.suite.methods],
    }
    if file.suite.sweep is not None:
        moved["sweep"] = [_moved_setting(file, name, folder) for name in file.settings()]
    if file.suite.tune is not None:
        moved["tune"] = _moved_grid(file.suite.tune, file.place, folder)
    if file.suite.store is not None:
        moved["store"] = _moved(file.place / file.suite.store, folder)
    return yaml.safe_dump(moved, sort_keys=False, allow_unicode=True)


def _made_by() -> str:
    return f"{MADE_BY}{version('fedelta')}" + (f", commit {commit}" if (commit := provenance.commit()) else "")


def _moved_base(file: SuiteFile, folder: Path, changes: Overrides) -> str | dict[str, Any]:
    base = file.base
    if pairs(changes):
        values = read_config(base, changes).model_dump(mode="json")
        return relative({key: value for key, value in values.items() if key not in ("name", "output")}, folder)
    if isinstance(base, Mapping):
        return relative(base, folder)
    return _moved(base, folder) if isinstance(base, Path) else base


def _moved_method(method: str | Mapping[str, Any], place: Path, folder: Path) -> str | dict[str, Any]:
    """Returns a method's entry with its paths as they are from the suite's folder."""
    if isinstance(method, str):
        return _moved(place / method, folder) if is_code(method) else method
    changes: Mapping[str, Any] = method.get("set") or {}
    own: dict[str, Any] = {}
    if changes:
        own["set"] = relative({key: placed(key, value, place) for key, value in changes.items()}, folder)
    if isinstance(method.get("tune"), Mapping):
        own["tune"] = _moved_grid(method["tune"], place, folder)
    return {**relative({"method": place_code(method, place)}, folder)["method"], **own}


def _moved_grid(tune: Mapping[str, Any], place: Path, folder: Path) -> dict[str, Any]:
    """Returns what is tuned with the paths among the values as they are from the suite's folder."""

    def moved(key: str, value: Any) -> Any:
        return relative({key: placed(key, value, place)}, folder)[key] if isinstance(value, str) else value

    return {key: [moved(key, value) for value in given] if isinstance(given, list) else given for key, given in tune.items()}


def _moved_setting(file: SuiteFile, name: str, folder: Path) -> dict[str, Any]:
    """Returns a setting as it is listed, with its paths as they are from the suite's folder."""
    own = file.own_seeds(name)
    words = ({"name": name} if name else {}) | ({} if own is None else {"seeds": own})
    return {**words, **relative(file.settings()[name], folder)}


def _moved(path: Path, folder: Path) -> str:
    """Returns a path as it is from a folder."""
    return Path(os.path.relpath(path, folder)).as_posix()
