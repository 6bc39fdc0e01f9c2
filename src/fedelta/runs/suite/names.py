"""Calls values, settings and methods by the names that tables and folders have for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from fedelta.runs.config.section import ConfigError

Values: TypeAlias = Mapping[str, Any]
"""Chosen values by dotted key."""


def text_of(values: Values) -> str:
    """Returns tuned values as a reader sees them: the value alone where there is one key."""
    if len(values) == 1:
        return shown(next(iter(values.values())))
    return ",".join(f"{key.split('.')[-1]}={shown(value)}" for key, value in values.items())


def text_given(given: object, what: str) -> str:
    """Returns a label or a name as it is written; a number stands for its text.

    Args:
        given: in the suite file.
        what: it is, for the message.

    Raises:
        ConfigError: for anything else, and for control characters: tables have one line for each method, and a terminal would
            obey some letters.
    """
    if isinstance(given, bool) or not isinstance(given, str | int | float) or not str(given).strip():
        raise ConfigError(f"{what} should be a text, got {given!r:.80}")
    if not str(given).isprintable():
        raise ConfigError(f"{what} should be of one line, without control characters, got {given!r:.80}")
    return str(given)


def shown(value: object) -> str:
    """Returns a value in few characters."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def slug(text: str) -> str:
    """Returns a name of a folder for a label or a setting."""
    return re.sub(r"[^\w.=,+-]+", "-", text).rstrip("-.").lstrip(".") or "-"
