"""The terms of a run: every resolved key that changes numbers, as the server sends them to its sites in each parcel.

A site's own config is its consent to the model, to the weights of it that train, to the rows that train, and to the task with
all that it reads of a row. The terms may change what stands in `SECTIONS` and nothing else: no code, no path, no file of a
method, no leave to run a model's code. What lies beyond the node's bounds is refused before data are read or a model is loaded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from fedelta.code_files import CodeFile
from fedelta.method import Method
from fedelta.methods import named_method
from fedelta.runs.config.allowed import CHOICES
from fedelta.runs.config.checks import check
from fedelta.runs.config.choices import Choices
from fedelta.runs.config.code_terms import DIGESTS, choice_here, files_here, without_place
from fedelta.runs.config.node import Allow, Node, Refusal
from fedelta.runs.config.own import Own
from fedelta.runs.config.read import flat, read_config
from fedelta.runs.config.schema import RunConfig
from fedelta.runs.config.section import ConfigError
from fedelta.runs.own_methods import is_catalogued, parts_of
from fedelta.tasks.task import Task

SECTIONS: Mapping[str, Collection[str]] = {
    "lora": (
        "rank",
        "lora_alpha",
        "rslora",
        "scale",
        "dropout",
        "target_modules",
        "modules_to_save",
        "rank_pattern",
        "alpha_pattern",
    ),
    "training": (
        "batch_size",
        "learning_rate",
        "learning_rate_decay",
        "local_steps",
        "local_epochs",
        "max_grad_norm",
        "optimizer",
    ),
    "model": ("name", "dtype", "quantization", "base_dropout", "gemm", "compact", "cache_activations"),
    "federation": ("rounds", "channel"),
    "data": ("client_test_fraction", "limit", "empty"),
}
"""The keys of each section that are terms.

`lora.start` is a path, and so the site's own: the digest of the template tells where two ends start from different adapters.
"""

DEALT = ("validation_fraction", "test_fraction", "stratify")
"""Keys of `data` that are terms, too, where the shares are dealt from the seed."""

OF_TASK = ("max_length", "pad_to_multiple", "metrics")
"""The settings of a task that may differ from the site's own: they choose nothing of a row."""

OWN_ROWS = ("limit", "client_test_fraction")
"""The keys of `data` that travel to be compared alone: whoever chose how many rows train could have one row trained on."""

OWN_LAYERS = ("target_modules", "modules_to_save")
"""The keys of `lora` that travel to be compared alone: whoever chose the weights that train would be bound by no rank."""

MOST_CLIENTS = 10**6
"""The largest number of clients that rows are dealt to: each site deals all shares, to keep its own."""


def terms_of(config: RunConfig, method: Method, files: Mapping[str, CodeFile] = MappingProxyType({})) -> dict[str, Any]:
    """Returns the terms of a run as plain JSON, by section.

    Args:
        config: of the run, resolved.
        method: as it was settled for the run.
        files: by key, the Python files: the digests of method's and task's travel, and neither code nor paths.
    """
    raw = config.model_dump(mode="json")
    terms: dict[str, Any] = {
        "seed": raw["seed"],
        "method": _settled(without_place(config.method), method),
        "task": without_place(raw["task"]),
    }
    if digests := {key: files[key].digest for key in CHOICES if key in files}:  # a Trainer's file is each site's own
        terms[DIGESTS] = digests
    for section, keys in _sections(config).items():
        terms[section] = {key: raw[section][key] for key in keys}
    if config.data.clients is None:
        terms["partition"] = raw["partition"]
    return terms


def under_terms(own: RunConfig, terms: object, node: Node) -> tuple[RunConfig, Choices]:
    """Returns a site's own config with the terms of a run in it, checked against the node's bounds; and what it names, built.

    Args:
        own: the site's config.
        terms: what came from the server, of any form.
        node: what the site allows.

    Raises:
        Refusal: for a key that is none of the terms, a value that the site's config does not consent to or that cannot be, or
            one beyond the node's bounds; it names the key.
    """
    if not isinstance(terms, Mapping):
        raise Refusal(f"the terms of a run are keys and values by section, not a {type(terms).__name__}")
    given = cast("Mapping[str, Any]", terms)
    _demand_known(own, given)
    _demand_own_model(own, given)
    raw = own.model_dump(mode="json")
    merged = {**raw, **{key: given[key] for key in ("seed", *CHOICES, "partition") if key in given}}
    for section in SECTIONS:
        merged[section] = {**raw[section], **_mapping(given, section)}
    merged["model"]["name"] = own.model.name  # as it is spelled here
    files, here = files_here(own, node), Own(node.may_run())
    merged |= {key: choice_here(key, given, files) for key in CHOICES if key in given}
    try:
        settled = read_config(merged)
        _demand_allowed_method(settled.method, node.allow)
        settled = _within_rank(settled, node.allow.max_rank)
        chosen = check(settled, here)
    except ConfigError as error:
        raise Refusal(f"the terms cannot be carried out here: {error}") from None
    _demand_own_layers(own, settled)
    _demand_own_rows(own, settled)
    _demand_own_task(own, chosen.task, here)
    _demand_bounded(own, settled, node.allow)
    return settled, chosen


def demand_steps(steps: int | None, allow: Allow) -> None:
    """Raises Refusal for more optimiser steps in a round than the node allows."""
    if steps is not None and allow.max_steps is not None and steps > allow.max_steps:
        raise Refusal(f"training: {steps} local steps in a round are asked for, this site allows {allow.max_steps}")


def demand_memory(needed: int, allow: Allow, what: str) -> None:
    """Raises Refusal for a message or an adapter with more bytes than the node allows."""
    if needed > allow.most_memory():
        raise Refusal(f"{what} has {needed} bytes, this site allows {allow.most_memory()} (allow.max_memory)")


def _sections(config: RunConfig) -> dict[str, Collection[str]]:
    """Returns the sections and keys that are the terms of a config."""
    dealt = DEALT if config.data.clients is None else ()
    return {**SECTIONS, "data": (*SECTIONS["data"], *dealt)}


def _demand_known(own: RunConfig, given: Mapping[str, Any]) -> None:
    """Raises Refusal for a key that a server has no say in, by its dotted name."""
    sections = _sections(own)
    for key in given:
        if key in sections:
            for inner in _mapping(given, key):
                if inner not in sections[key]:
                    raise Refusal(f"{key}.{inner} is this site's own and cannot come from a server")
        elif key == "partition" and own.data.clients is not None:
            raise Refusal("partition cannot come from a server here: this site has rows of its own (data.clients)")
        elif key not in ("seed", "partition", DIGESTS, *CHOICES):
            raise Refusal(f"{key!s:.80} is this site's own and cannot come from a server")


def _mapping(given: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = given.get(key, {})
    if not isinstance(found, Mapping):
        raise Refusal(f"the terms' {key} holds a {type(found).__name__}, where keys and values belong")
    return found


def _demand_own_model(own: RunConfig, given: Mapping[str, Any]) -> None:
    """Raises Refusal for another model than the site's config names; of a local folder only the last part is compared."""
    name = _mapping(given, "model").get("name", own.model.name)
    if name != own.model.name and (not isinstance(name, str) or Path(name).name != Path(own.model.name).name):
        raise Refusal(f"model.name is {name!r:.80}, but this site's config consents to {own.model.name!r} alone")


def _demand_own_layers(own: RunConfig, settled: RunConfig) -> None:
    """Raises Refusal for other weights to train than those that the site's config names."""
    for key in OWN_LAYERS:
        found, wanted = getattr(settled.lora, key), getattr(own.lora, key)
        if _unordered(found) != _unordered(wanted):
            raise Refusal(f"lora.{key} is {found!r:.200}, but this site's config consents to {wanted!r:.200} alone")


def _unordered(names: list[str] | str | None) -> Collection[str] | None:
    return set(names) if isinstance(names, list) else names


def _demand_own_rows(own: RunConfig, settled: RunConfig) -> None:
    """Raises Refusal for fewer or more rows to train on than those that the site's config leaves."""
    for key in OWN_ROWS:
        found, wanted = getattr(settled.data, key), getattr(own.data, key)
        if found != wanted:
            raise Refusal(f"data.{key} is {found!r:.200}, but this site's config consents to {wanted!r:.200} alone")


def _demand_own_task(own: RunConfig, task: Task, here: Own) -> None:
    """Raises Refusal for another task than the site's config names, or one that reads or makes anything else of a row."""
    mine = here.task_alone(own)
    if type(task) is not type(mine):  # equal files give one class, wherever they lie
        raise Refusal(f"task is {type(task).__name__!r}, but this site's config consents to {type(mine).__name__!r} alone")
    for entry in fields(mine):
        found, wanted = getattr(task, entry.name), getattr(mine, entry.name)
        if entry.name not in OF_TASK and found != wanted:
            raise Refusal(f"task.{entry.name} is {found!r:.200}, but this site's config consents to {wanted!r:.200} alone")
    longest = max(mine.max_length, mine.pad_to_multiple)
    for key in ("max_length", "pad_to_multiple"):
        if getattr(task, key) > longest:
            raise Refusal(f"task.{key} is {getattr(task, key)}, where this site's config has sequences of up to {longest}")


def _demand_bounded(own: RunConfig, settled: RunConfig, allow: Allow) -> None:
    """Raises Refusal for more work or memory than the node allows, as far as that is known without rows and a model."""
    training, cache = settled.training, settled.model.cache_activations
    demand_steps(training.local_steps, allow)
    if allow.max_batch_size is not None and training.batch_size > allow.max_batch_size:
        raise Refusal(f"training.batch_size is {training.batch_size}, this site allows {allow.max_batch_size}")
    if cache > own.model.cache_activations:
        demand_memory(cache << 20, allow, "model.cache_activations")
    if own.data.clients is None and (settled.num_clients() or 0) > MOST_CLIENTS:
        raise Refusal(f"partition.clients is {settled.num_clients()}, where rows are dealt to {MOST_CLIENTS} at the most")


def _demand_allowed_method(choice: Mapping[str, Any], allow: Allow) -> None:
    """Raises Refusal for a method that the node does not allow, or that combines one, or that did not come with the library."""
    if "path" in choice:  # a file of this site's own list
        _demand_plain(without_place(choice), "method")
        return
    _demand_plain(choice, "method")
    try:
        method = named_method(**choice)
    except (ValueError, TypeError, OverflowError) as error:
        raise Refusal(f"method: {error}") from None
    for part in parts_of(method):
        name = type(part).__module__.rpartition(".")[2]
        if allow.methods is None and not is_catalogued(type(part)):
            raise Refusal(f"method {name!r} did not come with the library: this site runs it only if allow.methods names it")
        if allow.methods is not None and name not in allow.methods:
            raise Refusal(f"method {name!r} is not among those that this site allows: {', '.join(allow.methods) or 'none'}")


def _demand_plain(value: Any, where: str) -> None:
    """Raises Refusal for a text that could be a path: no setting of a method is one."""
    for key, inner in flat({where: value}).items():
        leaves = inner if isinstance(inner, list) else [inner]
        if any(isinstance(leaf, str) and ("/" in leaf or "\\" in leaf) for leaf in leaves):
            raise Refusal(f"{key} is {inner!r:.80}: no path comes from a server")


def _within_rank(config: RunConfig, most: int | None) -> RunConfig:
    """Returns the config with no layer of a rank above the node's; ranks of the other clients are capped alike."""
    pattern = config.lora.rank_pattern
    if most is None or all(rank <= most for rank in pattern.values()):
        return config
    capped = {layer: min(rank, most) for layer, rank in pattern.items()}
    return config.model_copy(update={"lora": config.lora.model_copy(update={"rank_pattern": capped})})


def _settled(choice: Mapping[str, Any], method: Method) -> dict[str, Any]:
    """Returns the method by name with all its hyper-parameters, as they were settled for the run.

    What is itself a method stays as the config names it.
    """
    values = {entry.name: getattr(method, entry.name) for entry in fields(method)}
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if not any(_methods_in(v))}
    return {**choice, **plain}


def _methods_in(value: Any) -> Iterator[bool]:
    if isinstance(value, list | tuple):
        for inner in cast("Collection[Any]", value):
            yield from _methods_in(inner)
    else:
        yield is_dataclass(value)
