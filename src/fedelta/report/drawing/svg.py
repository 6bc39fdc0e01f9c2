"""Elements, scales and ticks of a drawing. Every text and attribute is escaped here, so that no name can be markup."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

Number = int | float

TICKS = 5
"""Ticks that an axis aims at."""

MARKERS = {
    "k0": "M-3.4 0a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0 -6.8 0",
    "k1": "M-3.2 -3.2h6.4v6.4h-6.4z",
    "k2": "M0 -4.2L4 3H-4z",
    "k3": "M0 -4.4L4.4 0L0 4.4L-4.4 0z",
    "k4": "M0 4.2L4 -3H-4z",
    "kr": "M-1.2 -4h2.4v2.8h2.8v2.4h-2.8v2.8h-2.4v-2.8h-2.8v-2.4h2.8z",
    "kg": "M-2.4 0a2.4 2.4 0 1 0 4.8 0a2.4 2.4 0 1 0 -4.8 0",
}
"""The shape of each class of colour, around 0: neither colour nor print alone tells methods apart."""


def tag(name: str, *inside: object, **attributes: object) -> Markup:
    """Returns an element; text and attributes are escaped, elements inside it are kept.

    Underscores in the names of attributes stand for hyphens, and one at the end is dropped: `class_`, `data_m`.
    """
    written = Markup("").join(
        Markup(' {}="{}"').format(Markup(key.rstrip("_").replace("_", "-")), _plain(value))
        for key, value in attributes.items()
        if value is not None
    )
    body = Markup("").join(escape(part) for part in inside)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, body)


def _plain(value: object) -> object:
    """Returns coordinates to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


def joined(parts: Iterable[Markup]) -> Markup:
    """Returns elements one after another."""
    return Markup("").join(parts)


def path(points: Sequence[tuple[float, float]], *, closed: bool = False) -> str:
    """Returns the `d` of straight lines through points."""
    steps = "L".join(f"{_plain(float(x))} {_plain(float(y))}" for x, y in points)
    return f"M{steps}{'z' if closed else ''}"


def marker(style: str, x: float, y: float, *, title: str | None = None) -> Markup:
    """Returns a method's mark at a point."""
    inside = [tag("title", title)] if title else []
    return tag("path", *inside, class_="mk", d=MARKERS[style], transform=f"translate({_plain(float(x))} {_plain(float(y))})")


def swatch(style: str) -> Markup:
    """Returns a method's mark as a small picture, for a legend or a table."""
    mark = tag("path", class_="mk", d=MARKERS[style])
    return tag("svg", mark, class_=f"sw {style}", viewBox="-6 -6 12 12", width=12, height=12, aria_hidden="true")


def picture(width: int, height: int, label: str, *parts: Markup) -> Markup:
    """Returns a whole drawing; the label names for a screen reader what it shows."""
    box = f"0 0 {width} {height}"
    return tag("svg", *parts, viewBox=box, width=width, height=height, role="img", aria_label=label)


def shortened(text: str, most: int) -> str:
    """Returns a text of at most so many characters, with an ellipsis in place of its end."""
    return text if len(text) <= most else text[: max(1, most - 1)].rstrip() + "…"


# --- scales ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels, with the ticks that it marks.

    Attributes:
        low, high: the values at both ends.
        start, end: the pixels there.
        ticks: values that are marked.
        logarithmic: whether equal ratios are equal lengths.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[float]
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Returns the pixel of a value; a value beyond an end is put there."""
        low, high, x = self.low, self.high, value
        if self.logarithmic:
            low, high, x = math.log10(low), math.log10(high), math.log10(max(value, self.low))
        share = (min(max(x, low), high) - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


def nice_ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """Returns round values that cover a range: steps of 1, 2, 2.5 or 5 times a power of ten."""
    if not high > low:
        low, high = low - abs(low) * 0.1 - 1e-9, low + abs(low) * 0.1 + 1e-9
    raw = (high - low) / max(1, count - 1)
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def round_ticks(first: int, last: int, count: int = TICKS) -> list[float]:
    """Returns rounds, all whole, with the first and the last among them and none too close to either."""
    if last <= first:
        return [float(first)]
    inner = [t for t in nice_ticks(first, last, count) if t == int(t) and first < t < last]
    room = (last - first) / (2.2 * count)
    return [float(first), *(t for t in inner if t - first > room and last - t > room), float(last)]


def log_ticks(low: float, high: float) -> list[float]:
    """Returns the powers of ten around a range of positive values."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    return [10.0**k for k in range(first, max(last, first + 1) + 1)]


def tick_text(value: float, ticks: Sequence[float]) -> str:
    """Writes a tick exactly: 1.75 is not 1.8; all ticks of an axis have the decimals that their step needs."""
    steps = [abs(b - a) for a, b in pairwise(ticks)] or [abs(value) or 1.0]
    digits = next((d for d in range(9) if all(abs(x * 10**d - round(x * 10**d)) < 1e-6 for x in [*steps, *ticks])), 9)
    return f"{value:.{digits}f}".replace("-", "\u2212")
