"""Decides what may change when a run is taken up, and what may not; no other module has a say in it.

A checkpoint keeps what makes a run this one and no other: the values of all keys but those of `MAY_CHANGE`, and a digest of the
rows of its data. They are compared when the run is taken up, so that an edit of config.yaml counts like `--set`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fedelta.runs.config.read import Overrides, changed, flat, pairs, read_config
from fedelta.runs.config.schema import Data, Model, RunConfig
from fedelta.runs.config.section import ConfigError

MAY_CHANGE = (
    "federation.rounds",
    "federation.quorum",
    "federation.spool",
    "federation.deadline",
    "evaluation",
    "report_to",
    "output",
    "name",
    "method.path",  # what counts is the digest of the file: `demand_same_code`
    "method.label",
    "task.path",
    "training.trainer",
)
"""The keys, and sections with all their keys, that a resumed run may change without becoming another run."""

DIGEST = "model.digest"
"""The key for the digest of the model's code and configs; null takes them as they are (`models.base_files.check_code`)."""

CHOSEN = (
    "model.gemm",
    "model.revision",
    DIGEST,
    "data.revision",
    "federation.engine",
    "federation.token_budget",
    "method.interval",
)
"""The keys that may be left to the machine or the graph. A run writes down what was chosen, and keeps it when taken up."""


def fixed_values(config: RunConfig) -> dict[str, Any]:
    """Returns, by dotted key, the values that a resumed run may not change; of a file of rows or a model that is its name.

    Its folder may be another one, since the rows themselves are compared (`demand_same_rows`), and so are a model's files
    (`model.digest`) and weights (`demand_same_base`).
    """
    return {k: _nowhere(k, v) for k, v in _values(config).items() if not _may_change(k)}


def _nowhere(key: str, value: Any) -> Any:
    is_placed = (key.startswith("data.") or key == "model.name") and isinstance(value, str) and os.path.isabs(value)
    return os.path.basename(value) if is_placed else value


def keep_choices(fixed: Mapping[str, Any], config: RunConfig, changes: Overrides = ()) -> RunConfig:
    """Returns the config with each choice that it leaves open made as the run made it before.

    Args:
        fixed: from `fixed_values`, as the run keeps them.
        config: as it is to be now, with the changes.
        changes: the part of them that a person gave, by dotted key; a `model.digest` that they set to null stays open.
    """
    raw = config.model_dump(mode="json")
    same_method = config.method["name"] == fixed.get("method.name")
    given_up = {key for key, value in pairs(changes) if key == DIGEST and value is None}
    for key in CHOSEN:
        if key in given_up:
            continue
        known = key in fixed and (same_method or not key.startswith("method."))
        if known and flat(raw).get(key) in ("auto", None):
            raw = changed(raw, key.split("."), fixed[key], key)
    return read_config(raw)


def demand_same_run(fixed: Mapping[str, Any], config: RunConfig) -> None:
    """Raises ConfigError if the config gives one of a run's fixed values another value.

    A digest that `keep_choices` left open may differ: a person has looked at the model's files, and takes them as they are.
    """
    now, defaults = fixed_values(config), _values(RunConfig())
    fixed = {key: _nowhere(key, value) for key, value in fixed.items()}  # an earlier release kept a model's whole path
    # A key that the library did not have yet when the run began is no change while it has its default.
    new = {k for k in now.keys() - fixed.keys() if k in defaults and now[k] == defaults[k]}
    left_open = {DIGEST} if now[DIGEST] is None else set[str]()
    keys = sorted(k for k in (fixed.keys() | now.keys()) - new - left_open if fixed.get(k) != now.get(k))
    if keys:
        values = "; ".join(f"{k} was {fixed.get(k)!r}, is {now.get(k)!r}" for k in keys)
        raise ConfigError(
            f"{', '.join(keys)} cannot change when a run is taken up, since its rounds would not belong together ({values}): "
            f"take the change back, in config.yaml or --set, or start a new run, from adapters/last by lora.start if you like "
            f"(may change: {', '.join(MAY_CHANGE)})"
        )


def without_leave(config: RunConfig) -> RunConfig:
    """Returns a folder's config without what only a person may allow, since anybody may have written the folder."""
    safe = {"trust_remote_code": False, "use_safetensors": True}
    return config.model_copy(update={"model": config.model.model_copy(update=safe)})


def demand_leave(stored: Model, settled: Model) -> None:
    """Raises ConfigError, saying how to allow it, if a folder's model needs what was not allowed anew.

    Args:
        stored: the model's section as the folder has it.
        settled: the section that is about to be used, from `without_leave` and a person's own changes.
    """
    if stored.name != settled.name:
        return
    if stored.trust_remote_code and not settled.trust_remote_code:
        raise ConfigError(
            f"the run ran code that came with its model {stored.name!r}, and a folder cannot ask for that: read the "
            "model's *.py files, then give --trust-remote-code (in Python: trust_remote_code=True)"
        )
    if not stored.use_safetensors and settled.use_safetensors:
        raise ConfigError(
            f"the run read weights of {stored.name!r} that are not safetensors, and a folder cannot ask for that: "
            "convert them, or allow it again with --set model.use_safetensors=false"
        )


def demand_rounds(rounds: int, done: int) -> None:
    """Raises ConfigError if a run is to end before the rounds that it has done."""
    if rounds < done:
        raise ConfigError(
            f"federation.rounds = {rounds} is below the {done} rounds that are done: no round can be taken "
            f"back; set it to {done} or more"
        )


def demand_same_base(before: str | None, now: str | None, model: Model) -> None:
    """Raises ConfigError if a model has other weights than when the run began, by the fingerprints, where both are known."""
    if None not in (before, now) and before != now:
        raise ConfigError(
            f"{model.name} has other weights than the model that the run began with (fingerprint {now}, was {before}), and its "
            "rounds would not belong together: bring the model back as it was, or start a new run"
        )


def demand_same_rows(before: Mapping[str, str], now: Mapping[str, str], data: Data) -> None:
    """Raises ConfigError, naming the source, if the digest of a split's rows is not the one that the run began with."""
    if other := [split for split, digest in before.items() if now.get(split) != digest]:
        named = [part for part in (data.train, data.validation, data.test) if part is not None]
        source = data.source if data.clients is None else "a file of data.clients"
        source = f"{source} ({', '.join(named)})" if named else source
        raise ConfigError(
            f"{source} has changed: the {' and '.join(other)} rows that come from it are not those that the run began with, "
            "and its rounds would not belong together; bring the data back as they were, or start a new run"
        )


def demand_same_sites(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ConfigError if a site of a run, by client id, is gone, new, or says other things of itself than when it began."""
    if other := sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k)):
        told = "; ".join(f"client {k} was {before.get(k, 'not there')}, is {now.get(k, 'not there')}" for k in other[:5])
        raise ConfigError(
            f"the sites are not those that the run began with ({told}): bring them back as they were, or start a new run"
        )


def demand_same_code(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raises ConfigError if the file of a user's own method or task is not the one that the run began with."""
    if other := [module for module, digest in before.items() if now.get(module, digest) != digest]:
        raise ConfigError(
            f"the file that defines {' and '.join(other)} was edited since the run began, or is another one, and its rounds "
            "would not belong together: take the edit back, or start a new run"
        )


def _may_change(key: str) -> bool:
    return any(key == may or key.startswith(f"{may}.") for may in MAY_CHANGE)


def _values(config: RunConfig) -> dict[str, Any]:
    return flat(config.model_dump(mode="json"))
