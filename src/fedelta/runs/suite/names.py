"""Calls values, settings and methods by the names that tables and folders have for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

Values: TypeAlias = Mapping[str, Any]
"""Chosen values by dotted key."""


def text_of(values: Values) -> str:
    """Returns tuned values as a reader sees them: the value alone where there is one key."""
    if len(values) == 1:
        return shown(next(iter(values.values())))
    return ",".join(f"{key.split('.')[-1]}={shown(value)}" for key, value in values.items())


def shown(value: object) -> str:
    """Returns a value in few characters."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def slug(text: str) -> str:
    """Returns a name of a folder for a label or a setting."""
    return re.sub(r"[^\w.=,+-]+", "-", text).rstrip("-.").lstrip(".") or "-"
