"""Completes methods, configs and keys for a shell. Each call is a process of its own, so nothing here imports torch."""

from __future__ import annotations

from pathlib import Path


def method_names(incomplete: str) -> list[str]:
    """Returns the methods whose names begin so."""
    from fedelta.registry import names_in

    return [name for name in names_in("fedelta.methods") if name.startswith(incomplete)]


def models(incomplete: str) -> list[str]:
    """Returns the models that can be fetched and whose names begin so."""
    from fedelta.models.aliases import ALIASES

    return [name for name in ALIASES if name.startswith(incomplete)]


def configs(incomplete: str) -> list[str]:
    """Returns the built-in configs, YAML files and folders that begin so."""
    from fedelta.runs.config.read import BUILT_IN

    return [name for name in BUILT_IN if name.startswith(incomplete)] + files(incomplete, (".yaml", ".yml"))


def files(incomplete: str, endings: tuple[str, ...]) -> list[str]:
    """Returns files with one of these endings, and folders, whose paths begin so; those with a dot in front only if asked."""
    written, _, start = incomplete.rpartition("/")
    folder = Path(f"{written}/" if "/" in incomplete else ".").expanduser()
    before = f"{written}/" if "/" in incomplete else ""
    try:
        found = sorted(folder.iterdir())
    except OSError:
        return []
    found = [path for path in found if path.name.startswith(start) and (start.startswith(".") or path.name[0] != ".")]
    return [f"{before}{path.name}{'/' if path.is_dir() else ''}" for path in found if path.is_dir() or path.suffix in endings]


def keys(incomplete: str) -> list[str]:
    """Returns the keys of a config that begin so, with the sign before their value; nothing once a value is written."""
    from fedelta.runs.config.read import flat
    from fedelta.runs.config.schema import RunConfig

    found = [key for key in flat(RunConfig().model_dump(mode="json")) if not key.endswith(".name") or key == "model.name"]
    every = [*found, "method", "task", "training.optimizer"]
    return sorted(f"{key}=" for key in every if key.startswith(incomplete))
