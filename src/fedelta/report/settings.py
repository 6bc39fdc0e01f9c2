"""Puts methods by settings side by side: means with their sd, and which of them are best or not separated from the best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedelta.report.compared import Compared
from fedelta.report.comparison import Comparison
from fedelta.report.numerals import DASH
from fedelta.report.standings import Standing, absent, standings


@dataclass(frozen=True)
class BySetting:
    """A table of methods by settings.

    Attributes:
        labels: of the methods, in the suite's order.
        texts: by label and setting, what a cell says.
        bold: by label, the settings in which it is best or not separated from the best.
        reasons: by label and setting, why there is no score.
    """

    labels: list[str]
    texts: Mapping[str, Mapping[str, str]]
    bold: Mapping[str, set[str]]
    reasons: Mapping[str, Mapping[str, str]]


def by_setting(comparison: Comparison, found: Mapping[str, Compared]) -> BySetting:
    """Returns the table; methods without a run in any setting are in it, too."""
    labels = list(comparison.methods)
    texts: dict[str, dict[str, str]] = {label: {} for label in labels}
    bold: dict[str, set[str]] = {label: set() for label in labels}
    reasons: dict[str, dict[str, str]] = {label: {} for label in labels}
    for name, c in found.items():
        for s in standings(c):
            texts[s.group.label][name] = _text(c, s)
            if s.bold:
                bold[s.group.label].add(name)
        for x in absent(c):
            texts[x.label][name] = "n/a" if x.state == "not applicable" else DASH
            reasons[x.label][name] = f"{x.state}: {x.reason}" if x.reason else x.state
    return BySetting(labels, texts, bold, reasons)


def _text(c: Compared, s: Standing) -> str:
    spread = f" ± {c.measure.text(s.sd)}" if s.sd is not None else ""
    return f"{c.measure.text(s.mean)}{spread}"


def settings_line(c: Compared) -> str:
    """Says what the cells of the table are: `test accuracy, %, mean ± sd`."""
    unit = f", {c.measure.unit}" if c.measure.unit else ""
    return f"{c.study.part} {c.measure.name}{unit}{', mean ± sd' if c.seeds > 1 else ''}"
