"""Demands: an option of the wrong type or beyond its bounds is refused by its name."""

import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest

from fedelta.demands import Check, demand_all, demand_kinds, function, instance, number, one_of, optional, several, whole

REFUSED: list[tuple[Check, Any, str]] = [
    (whole(), "3", "x must be a whole number, got '3'"),
    (whole(), 2.5, "x must be a whole number, got 2.5"),
    (whole(), True, "x must be a whole number, got True"),
    (whole(), None, "x must be a whole number, got None"),
    (whole(least=1), 0, "x must be 1 or more, got 0"),
    (whole(most=10), 11, "x must be 10 or less, got 11"),
    (number(), "1", "x must be a number, got '1'"),
    (number(), False, "x must be a number, got False"),
    (number(), float("nan"), "x must be a finite number, got nan"),
    (number(), float("inf"), "x must be a finite number, got inf"),
    (number(), 10**400, "x must be a finite number, got 1000"),
    (number(above=0), 0, "x must be above 0, got 0"),
    (number(above=0, most=1), 1.5, "x must be 1 or less, got 1.5"),
    (number(below=1), 1.0, "x must be below 1, got 1.0"),
    (one_of("a", True), "b", "x must be 'a' or True, got 'b'"),
    (one_of("a", True), 1, "x must be 'a' or True, got 1"),
    (one_of("a"), [], r"x must be 'a', got []"),
    (instance(bool, "True or False"), 1, "x must be True or False, got 1"),
    (function(), 3, "x must be a function, got 3"),
    (optional(number()), "1", "x must be a number, got '1'"),
    (number(), "1e-3", "x must be a number, got '1e-3': YAML takes it for text without a point and a sign, as in 1.0e-3"),
    (several(number(), number()), [0.9], "x must be 2 values, got [0.9]"),
    (several(number(), number()), 0.9, "x must be 2 values, got 0.9"),
    (several(number(), whole()), (1.0, 0.5), "x[1] must be a whole number, got 0.5"),
]


@pytest.mark.parametrize(("check", "value", "message"), REFUSED, ids=[m for _, _, m in REFUSED])
def test_what_cannot_be_is_refused_by_name(check: Check, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        check("x", value)
    assert str(raised.value).startswith(message)
    assert len(str(raised.value)) < 200


def test_what_can_be_passes() -> None:
    for check, value in [
        (whole(least=1), 1),
        (whole(), np.int64(3)),
        (number(least=0, most=1), 0),
        (number(), np.float32(0.5)),
        (one_of("a", True), True),
        (function(), len),
        (optional(number()), None),
        (several(number(), whole()), [0.5, 1]),
    ]:
        check("x", value)


def test_every_option_of_a_table_is_asked_for() -> None:
    class Options:
        first, second = 1, "two"

    demand_all(Options(), {"first": whole()})
    with pytest.raises(ValueError, match="second must be a whole number"):
        demand_all(Options(), {"first": whole(), "second": whole()})


@dataclass(frozen=True)
class Annotated:
    """A field of each annotation that is looked at, and one of another."""

    rate: float = 0.1
    count: int = 1
    on: bool = False
    side: Literal["A", "B"] = "A"
    betas: tuple[float, float] = (0.9, 0.99)
    cap: float | None = None
    ranks: int | tuple[int, ...] = 4


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rate", "0.1", "must be a number, got '0.1'"),
        ("rate", float("inf"), "must be a finite number, got inf"),
        ("count", 2.5, "must be a whole number, got 2.5"),
        ("on", "no", "must be True or False, got 'no'"),
        ("on", 1, "must be True or False, got 1"),
        ("side", "C", "must be 'A' or 'B', got 'C'"),
        ("betas", [0.9], "must be 2 values, got [0.9]"),
        ("cap", "none", "must be a number, got 'none'"),
    ],
)
def test_a_field_is_held_to_its_annotation(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"Annotated: {field} {message}")):
        demand_kinds(Annotated(**{field: value}))


def test_fields_that_are_as_annotated_pass() -> None:
    demand_kinds(Annotated())
    from_a_file: dict[str, Any] = {"rate": 1, "on": True, "betas": [0, 0.5], "cap": 2, "ranks": "left to the class"}
    demand_kinds(Annotated(**from_a_file))
