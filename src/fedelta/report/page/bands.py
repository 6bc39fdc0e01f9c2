"""Shares of energy between successive ranks, over rounds: stacked areas, one panel a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any, TypeGuard, cast

from markupsafe import Markup

from fedelta.report import readings
from fedelta.report.compared import Compared
from fedelta.report.drawing.rows import areas
from fedelta.report.drawing.svg import joined, swatch, tag
from fedelta.report.numerals import listed, share
from fedelta.report.page.parts import Figure, Grid
from fedelta.report.study import Group, Run
from fedelta.report.words import Record

LEFT_OVER = 1e-5
"""A share of energy beyond the components that a record has, from which it is drawn; less may be the rounding of records."""


def energy_bands(c: Compared) -> Figure | None:
    """Draws for each method the shares of energy between successive ranks, over rounds."""
    panels: list[Markup] = []
    rows: list[list[str]] = []
    ends: dict[str, dict[str, float]] = {}
    components = max((len(found) for run in c.study.runs for r in run.records if (found := _spectrum(r))), default=0)
    measured = {group: shares for group in c.study.groups if (shares := _bands(c, group, components))}
    # A band beyond the largest rank is empty throughout, and would take the accent.
    used = {name for shares in measured.values() for _, bands in shares for name, value in bands.items() if value > 0}
    names = list(dict.fromkeys(name for shares in measured.values() for name in shares[0][1] if name in used))
    styles = _band_styles(names)
    for group, shares in measured.items():
        head = tag("p", swatch(group.style), group.label, class_="panel")
        panels.append(tag("div", head, areas(shares, styles, f"energy by component, {group.label}"), data_m=group.key))
        ends[group.label] = shares[-1][1]
        rows.append([group.label, *(share(shares[-1][1].get(name)) for name in styles)])
    if not panels or not styles:
        return None
    legend = [tag("span", tag("i", class_=style), _components(name)) for name, style in styles.items()]
    body = joined([tag("p", "components ", *legend, class_="bleg"), tag("div", *panels, class_="sm")])
    over = "layers and seeds" if c.seeds > 1 else "layers"
    caption = f"Share of ‖ΔW‖² by component, ordered by size; mean over {over}. A band that closes is a rank in no use."
    return Figure(
        _bands_title(ends, next(iter(styles))),
        caption,
        body=body,
        data=Grid(["at the end", *map(_components, styles)], rows, keys=[group.key for group in measured]),
    )


def _bands(c: Compared, group: Group, components: int) -> list[tuple[int, dict[str, float]]]:
    """Returns the mean shares by round, from 1, over the rounds that every run has."""
    found = [_bands_of(run, components) for run in readings.runs_of(c.study, group)]
    common = sorted(set.intersection(*(set(x) for x in found))) if found else []
    return [(t + 1, {name: fmean(x[t].get(name, 0.0) for x in found) for name in found[0][t]}) for t in common]


def _bands_of(run: Run, components: int) -> dict[int, Mapping[str, float]]:
    found: dict[int, Mapping[str, float]] = {}
    for record in run.records:
        diagnostics: Mapping[str, Any] = record.get("diagnostics") or {}
        bands = diagnostics.get("energy_by_band") or bands_of_spectrum(_spectrum(record), components)
        if _is_bands(bands):
            found[record["t"]] = bands
    return found


def _spectrum(record: Record) -> list[float]:
    """Returns the shares of single components that a record has; empty where it has none."""
    found = (record.get("diagnostics") or {}).get("spectrum")
    if not isinstance(found, list) or not all(map(readings.is_number, cast("list[object]", found))):
        return []
    return cast("list[float]", found)


def bands_of_spectrum(shares: Sequence[float], components: int) -> dict[str, float] | None:
    """Returns three bands of the shares of single components: a quarter of them, a quarter, and the other half; None without.

    At equal ranks no client's rank is an edge between bands, so that the edges are taken from the number of components. It is
    that of all runs and rounds: a record may have fewer where the last ones vanished.
    """
    if not shares:
        return None
    edges = sorted({0, max(1, components // 4), max(1, components // 2), components})
    bands = {f"{low + 1}-{high}" if high > low + 1 else f"{high}": sum(shares[low:high]) for low, high in pairwise(edges)}
    beyond = 1.0 - sum(shares)
    return bands | {f"{components + 1}-": beyond} if beyond > LEFT_OVER else bands


def _is_bands(value: object) -> TypeGuard[Mapping[str, float]]:
    return isinstance(value, dict) and bool(value) and all(map(readings.is_number, value.values()))


def _band_styles(names: Sequence[str]) -> dict[str, str]:
    """Gives the lowest band a neutral colour and the highest the accent: what vanishes is what the eye should be on."""
    styles = dict.fromkeys(names, "b1")
    return styles | dict.fromkeys(names[-1:], "b2") | dict.fromkeys(names[:1], "b0")


def _components(band: str) -> str:
    """Writes a band as a range: `3–4`, `17 on`."""
    return f"{band[:-1]} on" if band.endswith("-") else band.replace("-", "–")


def _bands_title(ends: Mapping[str, Mapping[str, float]], lowest: str) -> str:
    narrow = [label for label, bands in ends.items() if bands.get(lowest, 0.0) > 0.98]
    return (
        f"{listed(narrow)} {'ends' if len(narrow) == 1 else 'end'} on components {_components(lowest)}"
        if narrow
        else "Energy by component"
    )
