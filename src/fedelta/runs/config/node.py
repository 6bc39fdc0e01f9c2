"""The node file: what belongs to one machine, and what its owner allows a server to ask.

A site runs from two files: the config, which all who take part share, and its own node file. The config of a site is its
consent to the model, to the fields of its rows and to the task; the section `allow` of the node file bounds all else.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from fedelta.code_files import CodeFile, read_code
from fedelta.runs.config.allowed import DIGEST, Allowed, allowed
from fedelta.runs.config.read import explained, read_yaml
from fedelta.runs.config.section import ConfigError, Section

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
"""The units of an amount of memory."""

AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([KMG]i?B|B)", re.IGNORECASE)

MOST_MEMORY = 1 << 30
"""Bytes of the largest message that is read where the node file names no bound."""


class Refusal(ValueError):
    """A server asked for what this site does not do; the message names the key and the bound."""


class Allow(Section):
    """Bounds of what a server may ask of this site; what is beyond them is refused by name, and logged here."""

    methods: list[str] | None = Field(
        default=None, description="the methods that may be run, by name; all that come with the library if not given"
    )
    max_steps: int | None = Field(default=None, ge=1, description="the most optimiser steps in a round")
    max_batch_size: int | None = Field(default=None, ge=1, description="the most examples in a step")
    max_rank: int | None = Field(
        default=None, ge=1, description="the largest rank that this site trains: it takes the smaller of this and its own"
    )
    max_memory: int | str | None = Field(
        default=None, description='the largest adapter or message: bytes, or a text such as "64MB"; 1 GiB if not given'
    )
    base: str | None = Field(default=None, description="the fingerprint of the one base model that may be trained on")

    @field_validator("max_memory")
    @classmethod
    def _amount(cls, value: int | str | None) -> int | str | None:
        if value is not None:
            amount_of(value)
        return value

    def most_memory(self) -> int:
        """Returns the bytes of the largest adapter or message."""
        return MOST_MEMORY if self.max_memory is None else amount_of(self.max_memory)


class Node(Section):
    """One site: its name, its own rows, and what it allows."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", description="of the site, as in `data.clients` and in every log"
    )
    client: int | None = Field(default=None, ge=0, description="its id in the run; its position in `data.clients` by default")
    data: str | None = Field(
        default=None, description="the file of its training rows; that of `data.clients` under its name by default"
    )
    test: str | None = Field(
        default=None, description="a file of rows to score its models by; else `data.client_test_fraction` of its own are"
    )
    state: str | None = Field(
        default=None, description="the folder for its memories, log and socket; in the user's data folder by default"
    )
    device: str | None = Field(default=None, description="`cpu`, `cuda`, ...; that of the config by default")
    certificates: str | None = Field(
        default=None,
        description="without a server: a folder with `ca.crt` and its own `.crt` and `.key`; beside the roster by default",
    )
    listen: str | None = Field(
        default=None,
        description="without a server: where to listen, such as `tls/0.0.0.0:7447`; its endpoint by default",
    )
    code: list[str] = Field(
        default=[],
        description="the Python files of methods and tasks that may run here; a server names one by its digest, and sends none",
    )
    trainer: str | None = Field(
        default=None,
        pattern=r"\.py:[A-Za-z_][A-Za-z0-9_]*$",
        description="this site's own function that makes a Trainer of transformers or TRL for each round, as "
        "`./site.py:make_trainer`; that of `training.trainer` of its config by default",
    )
    allow: Allow = Allow()

    def files(self) -> dict[str, CodeFile]:
        """Returns the Python files that may run here, by their digests.

        Raises:
            FileNotFoundError, ValueError: for a path to no Python file.
        """
        found = [read_code(path) for path in self.code if not DIGEST.fullmatch(path)]
        return {file.digest: file for file in found}

    def may_run(self) -> Allowed:
        """Returns the digests of the Python files that may run here."""
        return allowed(self.code)

    def folder(self) -> Path:
        """Returns the folder of the site's state."""
        return Path(self.state) if self.state else data_folder() / "sites" / self.name


def read_node(path: str | Path) -> Node:
    """Reads a node file; its paths are taken from the folder in which it lies.

    Raises:
        ConfigError: for a file that is not there, or is no node file, naming the key.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no node file at {path}: write one with at least `name`, see the page on node files")
    node = node_from(read_yaml(path))
    here = path.resolve().parent
    placed: dict[str, Any] = {
        key: str(here / Path(value).expanduser()) for key in PATHS if (value := getattr(node, key)) is not None
    }
    code = [str(here / Path(file).expanduser()) for file in node.code]
    return node.model_copy(update={**placed, "code": code})


PATHS = ("data", "test", "state", "certificates", "trainer")
"""The keys that hold a path."""


def node_from(values: Any) -> Node:
    """Returns the node of a mapping; raises ConfigError, naming each key that is wrong."""
    try:
        return Node.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(f"node file: {line}" for line in explained(error, Node))) from None


def amount_of(value: int | str) -> int:
    """Returns an amount of memory in bytes.

    Raises:
        ValueError: for a text that is no amount, or an amount of nothing.
    """
    if isinstance(value, int):
        found = value
    else:
        match = AMOUNT.fullmatch(value.strip())
        if match is None:
            raise ValueError(f'{value!r} is no amount of memory: write bytes, or a text such as "64MB" or "1.5 GiB"')
        found = int(float(match[1]) * UNITS[match[2].upper()])
    if found < 1:
        raise ValueError(f"{value!r} is no amount of memory: it must be at least one byte")
    return found


def data_folder() -> Path:
    """Returns the folder for fedelta among what the user's programs keep."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "fedelta"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "fedelta"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "fedelta"
