"""The records of rounds.jsonl: one JSON object a line, with the keys and types that their readers count on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

Record: TypeAlias = dict[str, Any]
"""One line of rounds.jsonl; plain JSON values."""


TIMES = ("seconds", "at", "load", "memory")
"""The keys that say when, how fast and on how busy a machine: equal runs differ in them and in nothing else."""


def without_times(record: Mapping[str, Any]) -> Record:
    """Returns a record without what equal runs differ in."""
    return {key: value for key, value in record.items() if key not in TIMES}


def read_record(line: bytes) -> Record | None:
    """Returns the record in a line; None where it holds none that its readers could use."""
    try:
        record: object = json.loads(line)
        json.dumps(record, allow_nan=False)  # it is written again when a run is taken up
    except (ValueError, RecursionError):
        return None
    return cast("Record", record) if is_record(record) else None


def is_record(found: object) -> bool:
    """Returns whether a value is a record with the keys and types that its readers count on."""
    if not isinstance(found, dict):
        return False
    record = cast("Record", found)
    return all(is_right(record.get(key)) for key, is_right in NEEDED.items()) and all(
        record.get(key) is None or is_right(record[key]) for key, is_right in OPTIONAL.items()
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= sys.maxsize


def _is_number(value: object) -> bool:
    """Returns whether a value can be drawn: an integer of JSON may be larger than any float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_number_or_null(value: object) -> bool:
    return value is None or _is_number(value)


def _is_list_of_counts(value: object) -> bool:
    return isinstance(value, list) and all(_is_count(k) for k in cast("list[object]", value))


def _is_mapping(value: object) -> bool:
    return isinstance(value, dict)


def _each(is_right: Callable[[object], bool]) -> Callable[[object], bool]:
    """Returns a check of an object all of whose values are right."""
    return lambda value: isinstance(value, dict) and all(map(is_right, cast("Record", value).values()))


def _has(*keys: str, is_right: Callable[[object], bool]) -> Callable[[object], bool]:
    """Returns a check of an object in which the values of some keys are there and right."""
    return lambda value: isinstance(value, dict) and all(is_right(cast("Record", value).get(key)) for key in keys)


NEEDED: Mapping[str, Callable[[object], bool]] = {
    "t": _is_count,
    "cohort": _is_list_of_counts,
    "dropped": _is_mapping,
    "bytes": _has("down", "up", is_right=_is_count),
    "seconds": _each(_is_number),
    "train_loss": _is_number_or_null,
}
"""What every record has; a loss of null stands for none."""

OPTIONAL: Mapping[str, Callable[[object], bool]] = {
    "validation": _each(_is_number_or_null),
    "test": _each(_is_number_or_null),
    "clients": _each(_has("mean", "spread", "worst", is_right=_is_number)),
    "at": lambda value: isinstance(value, str),
    "load": _is_number,
    "memory": _each(_is_count),
    "diagnostics": _has(
        "effective_rank", "server_effective_rank", "stable_rank", "server_stable_rank", is_right=_is_number_or_null
    ),
}
"""What a record may have, and what is read of it."""
