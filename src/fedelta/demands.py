"""Checks of single options, put together in a table by name: each refuses what cannot be by the option's name.

A table of them stands beside the options that it is for, so that a reader sees all bounds at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from types import NoneType
from typing import Any, Literal, TypeAlias, cast, get_args, get_origin, get_type_hints

AS_TEXT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)e[-+]?\d+", re.IGNORECASE)
"""A number with an exponent, for which YAML 1.1 wants a point and a sign."""

Check: TypeAlias = Callable[[str, object], None]
"""(name, value) -> None; raises ValueError that names the option."""


def demand_all(owner: object, checks: Mapping[str, Check]) -> None:
    """Raises ValueError for the first option of an object that its check refuses."""
    for name, check in checks.items():
        check(name, getattr(owner, name))


def demand_kinds(owner: Any) -> None:
    """Raises ValueError for the first field of a dataclass that holds something else than its annotation says.

    Asked for are bool, int, float, Literal, tuples of so many of them, and each of these or None. Fields annotated otherwise
    are left to the class. Numbers must be finite, and a list passes for a tuple, since that is what a config file has.
    """
    cls = type(owner)
    for name, check in _kinds_of(cls).items():
        check(f"{cls.__name__}: {name}", getattr(owner, name))


@cache
def _kinds_of(cls: type[Any]) -> Mapping[str, Check]:
    # Kept, since annotations take milliseconds to read, and compositions make their parts anew in every call.
    hints = get_type_hints(cls)
    found = {field.name: _kind_of(hints[field.name]) for field in fields(cls)}
    return {name: check for name, check in found.items() if check is not None}


def _kind_of(hint: Any) -> Check | None:
    """Returns the check of an annotation; None for one that says nothing that could be asked."""
    for plain, check in ((bool, one_of(True, False)), (int, whole()), (float, number())):
        if hint is plain:
            return check
    inside = get_args(hint)
    if get_origin(hint) is Literal:
        return one_of(*inside)
    if get_origin(hint) is tuple:
        parts = [_kind_of(part) for part in inside]
        return None if None in parts else several(*cast("Sequence[Check]", parts))
    if len(inside) == 2 and inside[1] is NoneType:
        check = _kind_of(inside[0])
        return None if check is None else optional(check)
    return None


def whole(*, least: int | None = None, most: int | None = None) -> Check:
    """Returns the check of a whole number; True and False are none."""

    def check(name: str, value: object) -> None:
        _demand_kind(name, value, Integral, "a whole number")
        _demand_bounds(name, cast("int", value), least=least, most=most)

    return check


def number(
    *, least: float | None = None, above: float | None = None, most: float | None = None, below: float | None = None
) -> Check:
    """Returns the check of a finite number; True and False are none."""

    def check(name: str, value: object) -> None:
        _demand_kind(name, value, Real, "a number")
        given = cast("float", value)
        _demand_bounds(name, given, least=least, above=above, most=most, below=below)
        if not _is_finite(given):
            raise _refusal(name, "a finite number", value)

    return check


def one_of(*allowed: str | bool) -> Check:
    """Returns the check of a choice among a few values, which 1 for True is not."""

    def check(name: str, value: object) -> None:
        if not any(type(value) is type(known) and value == known for known in allowed):
            *first, last = map(repr, allowed)
            raise _refusal(name, f"{', '.join(first)} or {last}" if first else last, value)

    return check


def instance(kind: type, words: str) -> Check:
    """Returns the check of an object of a class, which the message calls by `words`."""

    def check(name: str, value: object) -> None:
        if not isinstance(value, kind):
            raise _refusal(name, words, value)

    return check


def function() -> Check:
    """Returns the check of what can be called."""

    def check(name: str, value: object) -> None:
        if not callable(value):
            raise _refusal(name, "a function", value)

    return check


def several(*checks: Check) -> Check:
    """Returns the check of a tuple or list of so many values, each with a check of its own."""

    def check(name: str, value: object) -> None:
        if not isinstance(value, tuple | list) or len(cast("Sequence[object]", value)) != len(checks):
            raise _refusal(name, f"{len(checks)} values", value)
        for at, (own, part) in enumerate(zip(checks, cast("Sequence[object]", value), strict=True)):
            own(f"{name}[{at}]", part)

    return check


def optional(check: Check) -> Check:
    """Returns the check that lets None pass, too."""

    def checked(name: str, value: object) -> None:
        if value is not None:
            check(name, value)

    return checked


def _demand_kind(name: str, value: object, kind: type, words: str) -> None:
    if isinstance(value, str) and AS_TEXT.fullmatch(value):
        raise ValueError(f"{_refusal(name, words, value)}: YAML takes it for text without a point and a sign, as in 1.0e-3")
    if isinstance(value, bool) or not isinstance(value, kind):
        raise _refusal(name, words, value)


def _demand_bounds(
    name: str,
    value: float,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    if value != value:  # NaN lies within no bounds, and beyond none
        raise _refusal(name, "a finite number", value)
    if least is not None and value < least:
        raise _refusal(name, f"{least:g} or more", value)
    if above is not None and value <= above:
        raise _refusal(name, f"above {above:g}", value)
    if most is not None and value > most:
        raise _refusal(name, f"{most:g} or less", value)
    if below is not None and value >= below:
        raise _refusal(name, f"below {below:g}", value)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _refusal(name: str, words: str, value: object) -> ValueError:
    return ValueError(f"{name} must be {words}, got {value!r:.60}")
