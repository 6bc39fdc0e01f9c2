"""Reads the JSON files of an adapter folder, and refuses by name each entry that a plain LoRA adapter cannot have."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from fedelta.exchange.wire import MalformedError
from fedelta.models.patterns import check_pattern, shortened


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        MalformedError: naming the file, for anything else.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise MalformedError(f"{path} is not JSON: {error}") from error
    except RecursionError as error:
        raise MalformedError(f"{path} is nested too deeply for such a file") from error
    if not isinstance(content, dict):
        raise MalformedError(f"{path} holds a {type(content).__name__}, where an object with entries by name was expected")
    return cast("dict[str, Any]", content)


def check_types(config: Mapping[str, Any], path: Path) -> None:
    """Raises MalformedError, naming the file and the entry, for an entry that holds another kind of value than it should."""
    for key, (fits, kind) in ENTRIES.items():
        if key not in config and key in REQUIRED:
            raise MalformedError(f"{path} has no entry {key!r}: it is incomplete")
        value = config.get(key)
        if not (fits(value) or (value is None and key not in REQUIRED)):
            raise MalformedError(f"{path}: {key} must be {kind}, but is {shortened(repr(value)[:200])}")
    targets = config.get("target_modules")
    if isinstance(targets, str):
        check_pattern(targets, f"{path}: target_modules")


def is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def is_text(value: object) -> bool:
    return isinstance(value, str)


def is_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(is_text, cast("list[object]", value)))


def is_values(value: object, fits: Callable[[object], bool]) -> bool:
    return isinstance(value, dict) and all(map(fits, cast("dict[str, object]", value).values()))


def is_labels(value: object) -> bool:
    """Returns whether a value is a list of labels that differ: texts, true or false, or numbers that JSON can hold."""
    if not isinstance(value, list):
        return False
    labels = cast("list[object]", value)
    fits = all(is_text(x) or isinstance(x, bool) or is_number(x) for x in labels)
    return fits and len(set(labels)) == len(labels)


LARGEST = 1e300
"""The largest number that is accepted: larger ones would overflow where they are multiplied."""


REQUIRED = ("r", "lora_alpha")


ENTRIES: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "r": (is_whole, "a whole number of at least 1"),
    "lora_alpha": (is_number, "a finite number"),
    "use_rslora": (lambda x: isinstance(x, bool), "true or false"),
    "rank_pattern": (lambda x: is_values(x, is_whole), "whole numbers by pattern"),
    "alpha_pattern": (lambda x: is_values(x, is_number), "finite numbers by pattern"),
    "target_modules": (lambda x: is_text(x) or is_texts(x), "a text or a list of texts"),
    "modules_to_save": (is_texts, "a list of texts"),
    "base_model_name_or_path": (is_text, "a text"),
    "task_type": (is_text, "a text"),
}
"""The entries of adapter_config.json that are read here: a test of the value, and what it must be in words."""
