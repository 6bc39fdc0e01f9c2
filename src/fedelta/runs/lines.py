"""Gives a built-in config the scores of its lines to compare with, which were measured before and come with fedelta.

`configs/NAME-lines.json`, which `tools/lines.py` writes from the folder of a suite:

    {"command": by which it was made, "commit": of the code, "config": digest of the config but for its method,
     "rows": {"train": digest, "validation", "test"}, "versions": {package: version},
     "scores": {"local_only": {"test": {metric: value}, ...}, "centralised": ..., "untrained": ...}}

A run shows them where it has the same config, but for the method, the same rows, and versions of the packages that differ in
their last part at most. Anywhere else they would answer another question, and are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from fedelta.runs.config import BUILT_IN, RunConfig
from fedelta.runs.digests import digest_of

DECIDE = ("torch", "transformers", "peft")
"""Packages whose versions move the numbers."""


def config_digest(config: RunConfig) -> str:
    """Returns the digest of all that a config asks for but its method."""
    return digest_of(config.model_copy(update={"method": RunConfig().method}))


def lines_for(config: RunConfig, rows: Mapping[str, str], versions: Mapping[str, str]) -> dict[str, Any] | None:
    """Returns command, commit and scores of the lines that hold for a run; None where there are none.

    Args:
        config: of the run.
        rows: the digest of each split's rows.
        versions: of the packages, by name.
    """
    for name in BUILT_IN:
        known = _known(name)
        same_rows = bool(known) and known["rows"] == rows and _alike(known["versions"], versions)
        if same_rows and known["config"] == config_digest(config):
            return {key: known[key] for key in ("command", "commit", "scores")}
    return None


def _alike(known: Mapping[str, str], here: Mapping[str, str]) -> bool:
    """Returns whether the packages that decide differ in the last part of their version at most."""
    return all(package in here and _release(known[package]) == _release(here[package]) for package in DECIDE)


def _release(version: str) -> list[str]:
    return version.split(".")[:2]


@cache
def _known(name: str) -> dict[str, Any]:
    file = files("fedelta").joinpath(f"runs/configs/{name}-lines.json")
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
