"""Writes down once what a run is made of: `run.json` of the whole, and `split.json` of each client, which can be withheld.

    run.json     {"rows": {"train", "validation", "test"}, "majority": share of the commonest label of the test rows or null,
                  "personal": whether participants run models of their own, "platform": versions, device and threads,
                  "versions": of Python and packages, "commit": of fedelta's checkout, with + where it was changed, or "",
                  "command": without folders, "cores": that could be used, "device": the GPU's name or null,
                  "base": fingerprint of the base model or null,
                  "license", "release": of a base by alias, and in what its weights differ from those of its Hub id,
                  "data": {"train": digest of its rows, ...},
                  "start": when the run began, UTC,
                  "lines": of a built-in config, the known scores of its lines to compare with (`fedelta.runs.lines`),
                  "code": by "method" and "task", the sha256 of the user's file that defines it, where there is one}
    split.json   {"labels": [...], "clients": {"0": {"name", "rows", "test_rows", "rank", "labels": {label: rows}}, ...},
                  "distance": mean total variation of a client's labels from those of all together, or null}

A client has a `name` where the config gives it one. When a run ended is said by the `at` of its last record.

A resumed run keeps them as they are. Where the rows are elsewhere there is no split.json, and `rows` is empty.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any

import torch

from fedelta.code_files import CodeFile
from fedelta.exchange import files
from fedelta.models.aliases import ALIASES, alias_of, folder_of
from fedelta.runs import provenance
from fedelta.runs.client_lines import EACH
from fedelta.runs.config import Model
from fedelta.runs.deal import Deal
from fedelta.runs.lines import lines_for
from fedelta.runs.machine import cores, utc
from fedelta.runs.rounds import Experiment
from fedelta.split.view import partition_table

MOST_LABELS = 1000
"""Different labels up to which they are counted by client."""


def write_once(
    run_file: Path,
    split_file: Path,
    experiment: Experiment,
    notes: Mapping[str, Any],
    code: Mapping[str, CodeFile] = MappingProxyType({}),
) -> None:
    """Writes both files where they are not there.

    Args:
        run_file: of the whole run.
        split_file: of each client.
        experiment: what is run.
        notes: of its checkpoint: the `platform`, and the digests of its `rows`, which take a while to compute.
        code: by key of the config, the user's own files.
    """
    dealt = experiment.deal
    if not run_file.exists():
        splits = {} if dealt is None else _rows(dealt)
        facts: dict[str, Any] = {
            "rows": splits,
            "majority": experiment.majority(),
            **_kind(experiment),
            "platform": dict(notes["platform"]),
        }
        digests = {key: file.digest for key, file in code.items()}
        versions = provenance.versions()
        facts |= _origin(experiment) | {"versions": versions, "data": notes["rows"]} | ({"code": digests} if digests else {})
        known = lines_for(experiment.config, notes["rows"], versions)
        facts |= {"lines": known} if known else {}
        files.commit(run_file, _json(facts))
    if dealt is not None and len(dealt.parts) <= EACH and not split_file.exists():
        files.commit(split_file, _json(split_of(dealt)))


def split_of(dealt: Deal) -> dict[str, Any]:
    """Returns the rows, held-out rows, rank and labels of each client."""
    labels = [None if label is None else str(label) for label in dealt.labels(dealt.splits.train)]
    names = sorted({label for label in labels if label is not None})
    counted = 0 < len(names) <= MOST_LABELS
    clients: dict[str, Any] = {}
    distances = [row["distance"] for row in partition_table(dealt.parts, labels)] if counted else []
    known = [distance for distance in distances if distance is not None]
    for k, part in enumerate(dealt.parts):
        found = Counter(labels[i] for i in part)
        own = {"labels": {name: found[name] for name in names if found[name]}} if counted else {}
        name = {"name": dealt.names[k]} if dealt.names else {}
        shift = {"feature_shift": dealt.shifts[k]} if dealt.shifts else {}
        clients[str(k)] = {
            **name,
            **shift,
            "rows": len(part),
            "test_rows": len(dealt.held_out[k]),
            "rank": int(dealt.ranks[k]),
            **own,
        }
    distance = round(fmean(known), 4) if known else None
    return {"labels": names if counted else [], "clients": clients, "distance": distance}


def _origin(experiment: Experiment) -> dict[str, Any]:
    """Returns by what code, on what machine and from what base a run is made."""
    device = experiment.device
    return {
        "commit": provenance.commit(),
        "command": provenance.command(),
        "cores": cores(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "base": experiment.template.base,
        **_of_alias(experiment.config.model),
        "start": utc(),
    }


def _kind(experiment: Experiment) -> dict[str, bool]:
    return {"personal": experiment.method.personal or experiment.mixing is not None}


def _of_alias(model: Model) -> dict[str, str]:
    """Returns the licence of a base by alias, and in what its weights differ from those of its Hub id."""
    alias = alias_of(model.name)
    if alias is None or model.revision is not None or folder_of(alias) is None:
        return {}
    known = {"license": ALIASES[alias].license, "release": ALIASES[alias].release}
    return {key: value for key, value in known.items() if value}


def _rows(dealt: Deal) -> dict[str, int]:
    splits = dealt.splits
    return {"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)}


def _json(value: object) -> bytes:
    return (json.dumps(value, allow_nan=False, ensure_ascii=False) + "\n").encode()
