"""Says what is installed and what this machine has: the facts that a report of a fault needs."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from fedelta.models.aliases import ALIASES, folder_of
from fedelta.runs.machine import cores
from fedelta.user_cache import cache_folder

PACKAGES = ("fedelta", "torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "networkx", "pydantic", "typer")
"""The packages whose versions may change a result, or what a command prints."""

FOR_USERS = ("data", "images", "compare", "plots", "certs", "flower", "flower-sim", "gossip")
"""Extras that a user installs, in the order in which they are shown; any other that the package names comes behind them."""

NOT_FOR_USERS = ("dev", "docs", "browser")

VARIABLES = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_OFFLINE", "FEDELTA_CACHE")
"""Variables of the environment that change what a run does."""


def facts() -> dict[str, Any]:
    """Returns versions, devices, threads, extras, folders and variables, as plain JSON."""
    return {
        "versions": {"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}},
        "platform": platform.platform(),
        "interpreter": sys.executable,
        **_torch(),
        "extras": extras(),
        "models": {name: folder_of(name) is not None for name in ALIASES},
        "cache": _folder(cache_folder()),
        "hub cache": _folder(_hub_cache()),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def version_of(package: str) -> str | None:
    """Returns the version of an installed package, which is not imported; None if it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _torch() -> dict[str, Any]:
    """Returns devices and threads, as torch sees them; the reason where it cannot be imported."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return {"torch error": str(error), "devices": [], "threads": None, "cores": cores()}
    devices = [f"cuda:{k} {torch.cuda.get_device_name(k)}" for k in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    return {"cuda": torch.version.cuda, "devices": ["cpu", *devices], "threads": torch.get_num_threads(), "cores": cores()}


def extras() -> dict[str, list[str]]:
    """Returns for each extra the packages that are missing; an empty list where it is whole."""
    needs = _needs(metadata.requires("fedelta") or [])
    ordered = [name for name in FOR_USERS if name in needs]
    ordered += sorted(needs.keys() - {*FOR_USERS, *NOT_FOR_USERS})
    return {name: [package for package in _packages(name, needs) if version_of(package) is None] for name in ordered}


def _needs(requirements: list[str]) -> dict[str, list[str]]:
    """Returns what each extra asks for, from lines such as `flwr<2,>=1.41; extra == 'flower'`."""
    found: dict[str, list[str]] = {}
    for line in requirements:
        wanted, _, condition = line.partition(";")
        if match := re.search(r"extra == ['\"]([\w-]+)['\"]", condition):
            found.setdefault(match[1], []).append(wanted.strip())
    return found


def _packages(extra: str, needs: dict[str, list[str]]) -> list[str]:
    """Returns the names of the packages of an extra, with those of the extras that it takes in."""
    found: list[str] = []
    for wanted in needs.get(extra, []):
        match = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", wanted)
        if match is None:
            continue
        if match[1] == "fedelta":
            for other in (match[2] or "").split(","):
                found += _packages(other, needs)
        else:
            found.append(match[1])
    return list(dict.fromkeys(found))


def _hub_cache() -> Path:
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def _folder(path: Path) -> dict[str, Any]:
    """Returns a folder's path, whether it can be written to, and its bytes; none where it is not there yet."""
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    files = [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()] if path.is_dir() else []
    return {"path": str(path), "writable": os.access(there, os.W_OK), "bytes": sum(file.stat().st_size for file in files)}
