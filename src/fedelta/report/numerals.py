"""Writes numbers as a page shows them: one precision a quantity, a true minus, and a dash where there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedelta.report.statistics import Interval
from fedelta.tasks.metrics import LOWER_IS_BETTER

DASH, MINUS, NO_BREAK = "–", "\u2212", "\u00a0"

SHARES = frozenset({"accuracy", "exact_match", "macro_f1", "mcc"})
"""Metrics that are written in per cent."""

FINE_ROWS = 10_000
"""Test rows from which per cents have two decimals: one row is then less than 0.01."""


def two_digits(value: float) -> str:
    """Writes a rough number by its first two digits, without an exponent."""
    return f"{float(f'{value:.2g}'):,.0f}" if abs(value) >= 100 else f"{value:.2g}"


def minus(text: str) -> str:
    """Writes a number's hyphen as a minus."""
    return text.replace("-", MINUS)


@dataclass(frozen=True)
class Measure:
    """A metric, and how its values are written.

    Attributes:
        metric: its name, as in the records.
        rows: of the test, where known.
    """

    metric: str
    rows: int = 0

    @property
    def lower_is_better(self) -> bool:
        """Returns True for a loss or a perplexity."""
        return self.metric in LOWER_IS_BETTER

    @property
    def factor(self) -> float:
        """Returns what a value is multiplied by before it is written."""
        return 100.0 if self.metric in SHARES else 1.0

    @property
    def unit(self) -> str:
        """Returns the unit of written values; empty where there is none."""
        return "%" if self.metric in SHARES else "nats" if self.metric == "loss" else ""

    @property
    def difference_unit(self) -> str:
        """Returns the unit of written differences: percentage points for shares."""
        return "pp" if self.metric in SHARES else self.unit

    @property
    def name(self) -> str:
        """Returns the metric's name for a reader."""
        return self.metric.replace("_", " ")

    def text(self, value: float | None) -> str:
        """Writes a value without its unit."""
        if value is None or not math.isfinite(value):
            return DASH
        if self.metric == "perplexity":
            return f"{value:.3g}"
        return minus(f"{value * self.factor:.{self._digits()}f}")

    def with_unit(self, value: float | None) -> str:
        """Writes a value and its unit: `60.5 %`."""
        return self.text(value) if value is None or not self.unit else f"{self.text(value)}{NO_BREAK}{self.unit}"

    def difference(self, value: float | None) -> str:
        """Writes a signed difference without its unit: `+5.3`."""
        if value is None or not math.isfinite(value):
            return DASH
        return minus(f"{value * self.factor:+.{self._digits()}f}")

    def bounds(self, interval: Interval | None) -> str:
        """Writes an interval of differences: `−1.2 to +5.3`; empty for none."""
        return "" if interval is None else f"{self.difference(interval.low)} to {self.difference(interval.high)}"

    def _digits(self) -> int:
        if self.metric not in SHARES:
            return 3
        return 2 if self.rows > FINE_ROWS else 1


def share(value: float | None) -> str:
    """Writes a share in per cent with two significant digits: `4.4 %`, `0.064 %`."""
    if value is None or not math.isfinite(value):
        return DASH
    digits = 0 if value == 0 else max(0, 1 - math.floor(math.log10(abs(value) * 100)))
    return minus(f"{value * 100:.{min(digits, 6)}f}{NO_BREAK}%")


def seconds(value: float) -> str:
    """Writes a time: whole seconds, and from 600 on minutes and seconds."""
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if value >= 600 else f"{value:.0f}"


def significant(value: float | None, digits: int = 3) -> str:
    """Writes a number with so many significant digits and no exponent where it can be helped."""
    return DASH if value is None or not math.isfinite(value) else minus(f"{value:.{digits}g}")


def count(value: float | None) -> str:
    """Writes a number of steps or rows, with thousands apart: `12,800`."""
    return DASH if value is None else f"{value:,.0f}"


def listed(names: list[str]) -> str:
    """Writes names as a sentence has them: `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
