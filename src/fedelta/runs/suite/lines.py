"""A finished cell as one line of JSON: all that tables and pages need, without adapters. And what reads such a line.

    {"kind": "cell", "digest": ..., "code": {"fedelta", "commit"}, "config": ..., "files": digests by
     key and name, "facts": run.json, "split": split.json or null, "records": [...], "clients": lines of clients.jsonl or null}
    {"kind": "untrained", "digest": ..., "scores": {"test": {metric: value}, ...}}

Tables are made of such lines alone, whether they come from the folders of a suite or from its store.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, TypeAlias, cast

from fedelta.engines.rounds import DivergedError
from fedelta.exchange import strict_json
from fedelta.report.study import Run
from fedelta.runs import client_lines, reports
from fedelta.runs.config import RunConfig
from fedelta.runs.config.paths import shortened
from fedelta.runs.digests import Known, files_of
from fedelta.runs.folder import RunFolder
from fedelta.runs.records import Record, is_record

Line: TypeAlias = Mapping[str, Any]
"""One line; plain JSON values."""

CELL, UNTRAINED = "cell", "untrained"


def line_of(folder: RunFolder, digest: str, diverged: DivergedError | None = None) -> Line:
    """Returns the line of a finished run.

    Args:
        folder: of the run.
        digest: of its config.
        diverged: ended it before its last round; that round is then the last record, and the facts have the error's first line.
    """
    clients = client_lines.read(folder.clients_file) if folder.clients_file.is_file() else None
    facts = reports.json_object(folder.run_file)
    records = [_without_layers(record) for record in folder.records()]
    if diverged is not None:
        facts["diverged"] = str(diverged).splitlines()[0]
        records.append(_lost_round(diverged))
    line = {
        "kind": CELL,
        "digest": digest,
        "code": _code_of(facts),
        "config": portable(folder.config()),
        "files": files_of(folder.config()),
        "facts": facts,
        "split": reports.json_object(folder.split_file) or None,
        "records": records,
        "clients": clients,
    }
    return parsed(encoded(line))


def _lost_round(diverged: DivergedError) -> Record:
    """Returns the record of a round of which nothing could be used."""
    return {
        "t": diverged.t,
        "cohort": sorted(diverged.cohort),
        "dropped": dict(diverged.left_out),
        "train_loss": None,
        "bytes": {"down": diverged.sent.total_down, "up": diverged.sent.total_up},
        "seconds": {},
    }


def untrained_line(digest: str, scores: Mapping[str, Mapping[str, float]]) -> Line:
    """Returns the line of the scores before any training."""
    return {"kind": UNTRAINED, "digest": digest, "scores": scores}


def encoded(line: Line) -> bytes:
    """Returns a line as bytes, without its end."""
    return json.dumps(line, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def parsed(raw: bytes) -> Line:
    """Returns the line in some bytes.

    Raises:
        ValueError: for what is no line that its readers could use.
    """
    try:
        line: object = strict_json.read(raw)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"is no JSON that can be read ({error!s:.80})") from None
    found = cast("dict[str, Any]", line) if isinstance(line, dict) else {}
    if not isinstance(found.get("digest"), str) or found.get("kind") not in (CELL, UNTRAINED):
        raise ValueError("is no finished run: it lacks `kind` or `digest`")
    (_demand_cell if found["kind"] == CELL else _demand_untrained)(found)
    return found


def _demand_cell(line: Mapping[str, Any]) -> None:
    records, clients = line.get("records"), line.get("clients")
    if not isinstance(records, list) or not records or not all(map(is_record, cast("list[object]", records))):
        raise ValueError("has records that are none")
    if any(record["t"] != t for t, record in enumerate(cast("list[Record]", records))):
        raise ValueError("has records of other rounds than the first ones, in order")
    if clients is not None and not (
        isinstance(clients, list) and all(map(client_lines.is_line, cast("list[object]", clients)))
    ):
        raise ValueError("has lines of clients that are none")
    for key in ("code", "config", "facts", "files"):
        if not isinstance(line.get(key), dict):
            raise ValueError(f"has no {key!r} with keys and values")
    for named in cast("dict[str, object]", line["files"]).values():
        if not isinstance(named, dict) or not all(isinstance(x, str) for x in cast("dict[str, object]", named).values()):
            raise ValueError("has digests of files that are none")
    code = cast("dict[str, object]", line["code"])
    # Printable, since tables show both, and a terminal would obey some letters of a stranger's store.
    if not all(isinstance(part := code.get(key), str) and part.isprintable() for key in ("fedelta", "commit")):
        raise ValueError("does not say by which code it was run")


def _demand_untrained(line: Mapping[str, Any]) -> None:
    scores = line.get("scores")
    parts = list(cast("dict[str, object]", scores).values()) if isinstance(scores, dict) else [None]
    for part in parts:
        values = list(cast("dict[str, object]", part).values()) if isinstance(part, dict) else [None]
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            raise ValueError("has scores that are none")


def run_of(line: Line, name: str) -> Run:
    """Returns a cell's line as a run for tables and pages."""
    facts, split = reports.known_facts(line["facts"]), reports.known_split(line.get("split"))
    return Run(name, line["records"], line["config"], facts, split, line.get("clients"))


def known_of(lines: Iterable[Line]) -> Known:
    """Returns the digests of the files that finished cells were made of.

    A name that stood for several files is left out: any of them might be the one that is meant.
    """
    found: dict[tuple[str, str], set[str]] = {}
    for line in lines:
        for key, named in line.get("files", {}).items():
            for name, digest in named.items():
                found.setdefault((key, name), set()).add(digest)
    return Known({place: next(iter(digests)) for place, digests in found.items() if len(digests) == 1})


def commit_of(line: Line) -> str:
    """Returns the commit of the code that ran a cell, with "+" for local changes; empty where it is not known."""
    return str(line["code"]["commit"])


def portable(config: RunConfig) -> dict[str, Any]:
    """Returns a config without the folder of the run and without paths of one machine: of those the name alone is kept."""
    values = config.model_dump(mode="json")
    return {**shortened(values), "output": None}


def _without_layers(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a record without the table by layer, which is most of its bytes."""
    diagnostics = record.get("diagnostics")
    if not isinstance(diagnostics, Mapping):
        return dict(record)
    kept = {key: value for key, value in cast("Mapping[str, Any]", diagnostics).items() if key != "layers"}
    return {**record, "diagnostics": kept}


def _code_of(facts: Mapping[str, Any]) -> dict[str, str]:
    platform = facts.get("platform")
    known: Mapping[str, Any] = cast("Mapping[str, Any]", platform) if isinstance(platform, Mapping) else {}
    return {"fedelta": str(known.get("fedelta", version("fedelta"))), "commit": str(facts.get("commit") or "")}


OF_A_RECORD = ("round", "diagnostics", "evaluation", "save")
"""The parts of a record's `seconds` that make up its time; `train` and `aggregate` are within `round`."""


def seconds_of(records: Sequence[Mapping[str, Any]]) -> float:
    """Returns the time that a run's rounds took, with all that was done after each."""
    return sum(float(record["seconds"].get(part, 0.0)) for record in records for part in OF_A_RECORD)
