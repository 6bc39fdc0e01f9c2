"""Figures of what happens to the update, and of whether nodes agree: lines over rounds. They describe, and explain nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import degrees

from fedelta.report import readings
from fedelta.report.compared import Compared, competitors
from fedelta.report.drawing.lines import Frame, Line
from fedelta.report.drawing.svg import tick_text
from fedelta.report.numerals import share, significant
from fedelta.report.page.curves import figure_of, lines_of, round_text, seeds_text
from fedelta.report.page.parts import Figure

FOLD = 3.0
"""The ratio of last values from which a title says that one method loses what another keeps."""


@dataclass(frozen=True)
class Diagnostic:
    """A number of `diagnostics` as a figure: its key, title, caption, and name of the axis."""

    key: str
    title: str
    caption: str
    axis: str
    factor: Callable[[float], float] = float


OF_THE_UPDATE = (
    Diagnostic(
        "effective_rank",
        "Effective rank",
        "of the mean update: exp of the entropy of its singular values; mean over layers",
        "effective rank",
    ),
    Diagnostic(
        "increment_overlap_B_squared",
        "Do clients move the same way?",
        "overlap of the column spaces of what clients added this round; 1 = one subspace",
        "overlap of B, mean cos²",
    ),
    Diagnostic(
        "increment_angle_with_mean_B_average",
        "Angle to the mean",
        "mean principal angle between a client’s increment and the mean’s",
        "angle, degrees",
        degrees,
    ),
    Diagnostic(
        "increment_client_cosine",
        "Agreement of increments",
        "mean cosine between two clients’ increments; 0 = unrelated",
        "cosine",
    ),
    Diagnostic(
        "increment_cancellation_ratio", "What survives the averaging", "‖mean‖ / mean ‖·‖ of increments; 1 = all agree", "ratio"
    ),
    Diagnostic("update_norm", "Size of the update", "mean ‖ΔW‖ of the clients", "‖ΔW‖"),
)

OF_NODES = (
    Diagnostic(
        "consensus_product_relative",
        "How far apart the nodes’ models are",
        "√(Σ‖ΔWᵢ − mean‖² / Σ‖ΔWᵢ‖²); 0 = consensus",
        "distance",
    ),
    Diagnostic(
        "cross_term_norm", "What averaging the factors gets wrong", "‖mean(BA) − mean(B) mean(A)‖ over the nodes", "norm"
    ),
)

AGGREGATION_ERROR = Diagnostic(
    "aggregation_error",
    "What averaging the factors would get wrong",
    "‖mean(BA) − mean(B) mean(A)‖ / ‖mean(BA)‖; equal ranks only",
    "relative error",
)


def higher_rank_energy(c: Compared) -> Figure | None:
    """Draws the share of energy beyond the smallest rank, on a logarithmic axis; zeros are left out, and said to be."""
    lines = lines_of(c.study, readings.at("diagnostics", "higher_rank_energy_ratio"))
    positive = [_positive(line) for line in lines]
    zeros = sum(len(a.points) - len(b.points) for a, b in zip(lines, positive, strict=True))
    positive = [line for line in positive if line.points]
    if not positive:
        return None
    ends = {line.label: line.points[-1][1] for line in competitors(positive)}
    low, high = min(ends, key=lambda k: ends[k]), max(ends, key=lambda k: ends[k])
    told = len(ends) > 1 and ends[high] > FOLD * ends[low]
    title = f"{low} loses the higher ranks; {high} keeps them" if told else "Energy in the higher ranks"
    dropped = f" {zeros} zeros cannot be drawn." if zeros else ""
    caption = f"Share of the server’s energy beyond the smallest rank; logarithmic. {seeds_text(c.study)}{dropped}".strip()
    frame = Frame(
        "round", "share of energy, logarithmic", round_text, share, y_tick=lambda v, _: f"{v * 100:g} %", logarithmic=True
    )
    return figure_of(title, caption, positive, frame)


def _positive(line: Line) -> Line:
    band = [(x, low, high) for x, low, high in line.band if low > 0]
    return Line(line.key, line.style, line.label, [(x, y) for x, y in line.points if y > 0], band)


def diagnostics(c: Compared, wanted: Sequence[Diagnostic], *, small: bool = True) -> Iterator[Figure]:
    """Draws those of these diagnostics that some run has."""
    for d in wanted:
        lines = lines_of(c.study, readings.at("diagnostics", d.key), banded=not small, factor=d.factor)
        if lines:
            whole = d.factor is degrees
            frame = Frame("round", d.axis, round_text, (lambda y: f"{y:.0f}") if whole else significant, y_tick=tick_text)
            caption = d.caption if small else f"{d.caption}. {seeds_text(c.study)}".strip()
            yield figure_of(d.title, caption, lines, frame, small=small)
