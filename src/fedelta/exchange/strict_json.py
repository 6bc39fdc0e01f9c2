"""Reads JSON from somebody who may write what is none: Python's own reader takes NaN, and numbers that become infinity."""

from __future__ import annotations

import json
import math
from typing import Any


def read(text: str | bytes) -> Any:
    """Returns the value in a JSON text.

    Raises:
        ValueError, TypeError, RecursionError: for a text that is no JSON, is too deep, or holds a number that no float holds.
    """
    return json.loads(text, parse_constant=_no_number, parse_float=_finite)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    """Returns the number in a text; raises ValueError for one that no float holds, such as 1e999, Python's infinity."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text:.40} is beyond what a float holds")
    return value
