"""Reads the folders of runs for a page, and writes it. Nothing of a folder is run: a stranger may have sent it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from fedelta.exchange import files
from fedelta.report.page import Run, page
from fedelta.runs import client_lines
from fedelta.runs.config import RunConfig
from fedelta.runs.config.paths import shortened
from fedelta.runs.folder import RunFolder
from fedelta.runs.records import is_record


def write_report(
    folders: Sequence[Path],
    output: Path,
    *,
    title: str | None = None,
    metric: str | None = None,
    baseline: str | None = None,
) -> Path:
    """Writes one HTML file on the runs in some folders; `report.page.page` has the other arguments.

    Args:
        folders: of runs, or folders that hold those of runs, at any depth.
        output: the file.

    Raises:
        FileNotFoundError: for a folder without a run.
        ValueError: where no run has finished a round, or none has the baseline.
        OSError: for an output that cannot be written.
        ImportError: for several seeds without scipy, naming the extra.
    """
    found = [folder for given in folders for folder in runs_in(given)]
    runs = [read_run(RunFolder(folder), str(folder)) for folder in dict.fromkeys(found)]
    if any(run.facts.get("diverged") for run in runs):  # whose configs have no paths of a machine, by which they would differ
        runs = [replace(run, config=shortened(run.config)) for run in runs]
    text = page(runs, title=title, metric=metric, baseline=baseline)
    try:
        files.commit(output, text.encode())
    except OSError as error:
        raise OSError(f"{output} cannot be written ({error.strerror}): give another file by --output") from None
    return output


def runs_in(folder: Path) -> list[Path]:
    """Returns the folder if it is a run's, else those of the runs within it, in the order of their names.

    A suite's cell that diverged in its first round is among them: it left no rounds in its folder, but what its tables need.

    Raises:
        FileNotFoundError: if there is none.
    """
    if _holds_run(folder):
        return [folder]
    known = RunFolder(folder)
    within = sorted({path.parent for file in (known.records_file, known.diverged_file) for path in folder.rglob(file.name)})
    # A run that was replaced, or is about to take a place, is not meant where a whole folder of runs is named.
    runs = [path for path in within if not path.name.startswith(".") and path.suffix != ".old" and _holds_run(path)]
    if not runs:
        raise FileNotFoundError(f"{folder} holds no run: give the folder of a run that has finished a round, or one above it")
    return runs


def _holds_run(path: Path) -> bool:
    folder = RunFolder(path)
    return folder.diverged_file.is_file() or (folder.config_file.is_file() and folder.records_file.is_file())


def read_run(folder: RunFolder, name: str, config: RunConfig | None = None) -> Run:
    """Reads what a page needs of a run; records that are damaged are left out.

    Args:
        folder: of the run.
        name: to show it by.
        config: of the run, where the caller has it; else that of the folder.

    Raises:
        FileNotFoundError, ConfigError: for a folder without a config, or with one that is none.
    """
    if config is None and (lost := _diverged(folder, name)) is not None:
        return lost
    clients = client_lines.read(folder.clients_file) if folder.clients_file.is_file() else None
    records, _ = folder.survey()
    values = (config or folder.config()).model_dump(mode="json")
    return Run(
        name, records, values, known_facts(json_object(folder.run_file)), known_split(json_object(folder.split_file)), clients
    )


def _diverged(folder: RunFolder, name: str) -> Run | None:
    """Returns the run of a suite's cell that diverged, with its last round; None where it did not, or the file is damaged."""
    line = json_object(folder.diverged_file)
    records = [record for record in _list(line.get("records")) if is_record(record)]
    try:
        config = RunConfig.model_validate(line.get("config"))
    except ValueError:
        return None
    if not records:
        return None
    clients = [each for each in _list(line.get("clients")) if client_lines.is_line(each)] or None
    facts, split = known_facts(_mapping(line.get("facts"))), known_split(line.get("split"))
    return Run(name, records, config.model_dump(mode="json"), facts, split, clients)


def json_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file; an empty one where there is none that can be read."""
    try:
        found: object = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def known_facts(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns what run.json says, without parts of the wrong kind."""
    rows = {part: n for part, n in _mapping(facts.get("rows")).items() if _is_count(n)}
    majority = facts.get("majority")
    shown = majority if isinstance(majority, float | int) and 0 <= majority <= 1 else None
    platform = _mapping(facts.get("platform"))
    found = {"rows": rows, "majority": shown, "platform": platform, "personal": facts.get("personal") is True}
    return found | _origin(facts)


TEXTS = ("commit", "command", "device", "base", "license", "release", "start", "diverged")
"""The keys of run.json that hold a text."""


def _origin(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns by what code, on what machine and from what data a run was made, as far as that is known."""
    texts = {key: facts[key] for key in TEXTS if isinstance(facts.get(key), str)}
    tables = {key: {k: str(v) for k, v in _mapping(facts.get(key)).items()} for key in ("versions", "data")}
    cores = {"cores": facts["cores"]} if _is_count(facts.get("cores")) else {}
    lines = _lines(_mapping(facts.get("lines")))
    return texts | {key: table for key, table in tables.items() if table} | cores | ({"lines": lines} if lines else {})


def _lines(known: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the lines to compare with that came with a built-in config, without scores that are none."""
    scores = {name: _all_scores(_mapping(parts)) for name, parts in _mapping(known.get("scores")).items()}
    made = {key: str(known.get(key, "")) for key in ("command", "commit")}
    return made | {"scores": scores} if scores else {}


def _all_scores(parts: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    return {part: {m: x for m, x in _mapping(scores).items() if _is_score(x)} for part, scores in parts.items()}


def _is_score(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)


def known_split(split: object) -> Mapping[str, Any] | None:
    """Returns the clients of split.json if every one of them can be drawn."""
    clients = _mapping(_mapping(split).get("clients"))
    whole = [_is_client(client) for client in clients.values()]
    return {"clients": clients} if whole and all(whole) else None


def _is_client(value: object) -> bool:
    client = _mapping(value)
    labels = client.get("labels", {})
    counts = [client.get(key, 0) for key in ("test_rows", "rank")] + list(_mapping(labels).values())
    return _is_count(client.get("rows")) and isinstance(labels, dict) and all(map(_is_count, counts))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _list(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _mapping(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
